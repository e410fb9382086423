"""Who sees what a call does: torch's own tools, or nobody."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

_PLAIN = frozenset({Tensor, nn.Parameter, type(None), float, int})
_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._len_torch_function_stack
_transforms = torch._C._are_functorch_transforms_active
_tracing = torch._C._get_tracing_state
_profiler = torch.autograd._profiler_enabled
_TRACES = tuple(torch._C._TorchDispatchModeKey.__members__.values())


def is_watched(tensors: Iterable[Tensor | float | None]) -> bool:
    """True where operators are seen: by torch.compile, modes, `torch.func`, tracing, the profiler.

    True as well for tensors of other classes, such as those that stand for values.
    """
    return (
        torch.compiler.is_compiling()
        or _dispatch_modes() > 0
        or _function_modes() > 0
        or _transforms()
        or _tracing() is not None
        or _profiler()
        or not _PLAIN.issuperset(map(type, tensors))
    )


# What operators do, by their names; the function alone costs a small layer less of the host's time.
implemented: dict[str, Callable[..., Any]] = {}


def operation(name: str, tensors: Iterable[Tensor | None]) -> Callable[..., Any]:
    """Return an operator, or where nobody sees which one is called, what it does.

    Not for where a gradient may be recorded: an operator's own operations are not.
    """
    if is_watched(tensors):
        found: Callable[..., Any] = getattr(torch.ops.neurospike, name)
        return found
    return implemented[name]


def is_traced(tensors: Iterable[Tensor | float | None]) -> bool:
    """True where tensors stand for values, or a program is made of what is called.

    Elsewhere a number may be read, whoever watches: torch's checkpoint repeats a forward pass that
    the profiler or a mode saw without them, or the other way round, and wants the same one.
    """
    return (
        torch.compiler.is_compiling()
        or _transforms()
        or _tracing() is not None
        or any(torch._C._get_dispatch_mode(kind) is not None for kind in _TRACES)
        or torch._ops._len_torch_dispatch_stack_pre_dispatch() > 0
        or not _PLAIN.issuperset(map(type, tensors))
    )


def is_plain(tensor: Tensor) -> bool:
    """True for a plain CPU tensor outside of compile, autocast, functorch and forward AD."""
    return (
        type(tensor) is Tensor
        and tensor.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )
