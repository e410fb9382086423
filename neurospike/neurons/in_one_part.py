"""Differentiable functions of two parts, called as functions of one part are.

`torch.func` asks for a forward pass apart from what keeps its inputs, and of such a function torch
looks up the arguments' names at every call. Of a decay that is clamped, which has two arguments,
that makes 21 us of 5.
"""

import functools
from typing import Any

import torch


def apply(function: type[torch.autograd.Function], *inputs: Any) -> Any:
    """Return `function.apply(*inputs)`, of a function with `setup_context`."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return function.apply(*inputs)
    return _whole(function).apply(*inputs)


@functools.cache
def _whole(function: type[torch.autograd.Function]) -> type[torch.autograd.Function]:
    """Return a function with its forward pass in one part."""

    def forward(ctx: Any, *inputs: Any) -> Any:
        output = function.forward(*inputs)
        function.setup_context(ctx, inputs, output)
        return output

    return type(
        function.__name__,
        (torch.autograd.Function,),
        {"forward": staticmethod(forward), "backward": staticmethod(function.backward)},
    )
