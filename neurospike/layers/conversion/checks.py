"""What `convert` refuses besides neurons: layers that would compute something else afterwards."""

import inspect
from enum import Enum

from torch import nn

from neurospike.layers.libraries import library_of
from neurospike.layers.sequential import carries_state


class Given(Enum):
    """The input that a place in the original network is given."""

    STEPS = "single steps"  # [B, *F]
    SEQUENCES = "whole sequences"  # [T, B, *F]
    BATCH = "all steps as one batch"  # [T * B, *F]


def check_place(takes_sequences: bool, kind: str, path: str, given: Given) -> None:
    """Raise ValueError for single steps where sequences are given, or the other way round."""
    if takes_sequences != (given is Given.SEQUENCES):
        own = Given.SEQUENCES if takes_sequences else Given.STEPS
        raise ValueError(
            f"layer {path}: this {kind} takes {own.value}, in a place that is given "
            f"{given.value}; make all layers of the network take the same"
        )


_NO_STATE = (
    "which no layer here hands on; convert what comes before and after it apart, or write it as a "
    "module with carries_state = True for ns.Sequential, which is given [T, B, *F] and its state"
)


_RETURN_STATES = (nn.RNN.forward, nn.LSTM.forward, nn.GRU.forward)


def check_stateless(container: nn.Module, layer: nn.Module, path: str) -> None:
    """Raise TypeError for a layer of torch or the user whose state a container keeps."""
    takes_state = isinstance(layer, nn.RNNBase) or (
        "state" in inspect.signature(layer.forward).parameters
    )
    if takes_state and library_of(layer) is None and not carries_state(layer):
        raise TypeError(
            f"cannot convert {path}, {type(layer).__name__}: a {type(container).__name__} hands it "
            f"its state, {_NO_STATE}"
        )


def check_returns_no_state(layer: nn.Module, path: str) -> None:
    """Raise TypeError for a layer of torch that returns its state beside its output."""
    if isinstance(layer, nn.RNNBase) and type(layer).forward in _RETURN_STATES:
        raise TypeError(
            f"cannot convert {path or 'the module'}, {type(layer).__name__}: it returns its state "
            f"beside its output, {_NO_STATE}"
        )


_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def check_hooks(module: nn.Module, path: str) -> None:
    """Raise ValueError for a module with hooks that is about to be replaced."""
    hooks = [one for kind in _HOOKS for one in getattr(module, kind).values()]
    if hooks:
        names = ", ".join(getattr(one, "__qualname__", repr(one)) for one in hooks)
        raise ValueError(
            f"{path or 'the network'} is a {type(module).__name__} with the hook {names}, which "
            "the module in its place would not have; remove it before ns.convert, and register it "
            "on the new network or on a layer that is kept"
        )


def check_axis(layer: nn.Module, path: str) -> None:
    """Raise ValueError for a layer of torch that works along the batch axis of a single step."""
    kind = type(layer)
    if not kind.__module__.startswith("torch.nn.modules."):
        return
    for name in ("dim", "start_dim"):
        if getattr(layer, name, None) == 0:
            raise ValueError(
                f"layer {path}: this {kind.__name__} has {name}=0, the batch of a single step, "
                "where the new network has all steps and samples, [T * B, *F]; give it an axis "
                "of the features, or write it as a module with carries_state = True for "
                "ns.Sequential, which is given [T, B, *F]"
            )
