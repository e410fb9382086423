"""Whether torch's tools (compilation, transforms, tracing, profiling) observe a call."""

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
    """True if operators are observed: by torch.compile, modes, `torch.func`, tracing or profiling.

    True also for tensors of other classes, such as fake tensors.
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


# The functions behind the operators, by name: calling one directly costs a small layer less host
# time.
implemented: dict[str, Callable[..., Any]] = {}


def operation(name: str, tensors: Iterable[Tensor | None]) -> Callable[..., Any]:
    """Return an operator or, if no tool observes the call, the function behind it.

    Not for calls whose gradient autograd might record: it would differentiate the function's
    operations, where an operator is opaque to it.
    """
    if is_watched(tensors):
        found: Callable[..., Any] = getattr(torch.ops.neurospike, name)
        return found
    return implemented[name]


def is_traced(tensors: Iterable[Tensor | float | None]) -> bool:
    """True if tensors may have no values, or a program is recorded from the calls.

    Otherwise a number may be read even under a profiler or a mode: torch's checkpoint may repeat a
    forward pass with or without these, and has to get the same result.
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
