"""Walk through a network of another library, and replace each of its layers by one of ours."""

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

from neurospike.layers.delay import Delay
from neurospike.layers.leaky import Replacement
from neurospike.layers.libraries import library_of
from neurospike.layers.lif import LIF
from neurospike.layers.recurrent import Recurrent
from neurospike.layers.sequential import Sequential, carries_state
from neurospike.layers.spiking import Spiking

from . import norse, snntorch, spikingjelly
from .checks import (
    Given,
    check_axis,
    check_hooks,
    check_place,
    check_returns_no_state,
    check_stateless,
)
from .library import Library, Opened

LIBRARIES = {one.name: one for one in (snntorch.LIBRARY, spikingjelly.LIBRARY, norse.LIBRARY)}
Converted = LIF | Spiking | Recurrent | Delay | Sequential


def convert(module: nn.Module, *, surrogate: Replacement = None) -> Converted:
    """Return a network of snnTorch, SpikingJelly or Norse with its neurons as fused layers.

        net = ns.convert(net)                      # an nn.Sequential of theirs
        spikes, states = net(images, num_steps=25) # before: a loop of 25 calls, net(images)
        spikes, states = net(frames)               # [T, B, *F], each step its own frame

    All other layers, the recurrent weights, and learned decays and thresholds are shared with
    `module`, not copied; the new network starts at rest, whatever state the old one is in. A layer
    that is in the network twice runs twice. Hooks on neurons are lost, those on layers that are
    kept stay. In training, batch normalisation takes its statistics over all steps at once, as
    SpikingJelly does with `step_mode="m"`, while a loop over steps takes them step by step.

    snnTorch: `Leaky` becomes `LIF`, `Synaptic` and `Alpha` become the layers of the same names
    here; `RLeaky` and `RSynaptic` become `OneToOne` if they have `all_to_all=False`, and
    `Recurrent`, whose current is `[T, B, N]`, if they have `linear_features`. `SynapticDelay`
    becomes `Delay`. If the last layer is neurons that return their states too (`output=True`, or
    without `init_hidden`), it returns these at every step, each `[T, B, *F]`, in the order of
    snnTorch: `(spikes, mems), states = net(...)` for a `Leaky`.

    SpikingJelly 2.0: `LIFNode`, `ParametricLIFNode` and `IFNode`, in both step modes, become
    `Spiking` layers that reset at once and fire where the membrane reaches the threshold (`>=`), as
    theirs do. Its `layer.Conv2d` and the like become torch's own with the same parameters; with
    `step_mode="s"` among neurons with `"m"` they are given whole sequences, as before.
    `layer.Dropout` keeps one mask for all steps; `SeqToANNContainer`, `MultiStepContainer` and
    `StepModeContainer` are replaced by their layers. States are membranes.

    Norse 1.1: `LIFBoxCell`, `LIFCell`, `LIF`, `IAFCell`, `IAF`, `LICell`, `LI` and `LIBoxCell`
    become `Spiking` layers that compute in the order and number formats of Norse's own steps;
    `SequentialState` and `Lift` are replaced by their layers. Integrators return their membranes at
    every step. States are tuples in the order of Norse's, `(v, i)` or `(v,)`.

    Spikes are equal bit for bit wherever the layers in between give the same bits for a larger
    batch, except those of a `Recurrent`: it computes
    `beta * mem + (input + (weight @ spikes + bias))`, with the product summed in a different order,
    where snnTorch computes `(beta * mem + input) + (weight @ spikes + bias)`. Membranes then differ
    in their last bits, and so does a spike whose membrane is that close to the threshold, which in
    turn changes the neurons that it reaches.

    Args:
        module: neurons, or an `nn.Sequential` or a container named above, possibly nested, of
            neurons and of layers without a state. A subclass of neurons is converted if it
            overrides nothing that its base computes with.
        surrogate: replaces that of every converted layer: a name, an object of
            `neurospike.surrogate`, or the derivative as a function of u.

    Raises:
        TypeError: other neurons of these libraries, with what to use; other layers that return a
            state, such as `nn.LSTM`, without `carries_state = True`; a module that steps neurons in
            a `forward` of its own, which has to be rewritten with the fused layers.
        ValueError: neurons with an option that a fused layer does not have, such as recurrence by
            convolution (the error names it); neurons that are in the network twice; neurons or
            dropout that take single steps among others that take sequences; a hook on a container
            or on dropout, which are replaced; a layer of torch along the batch axis of a single
            step, such as `nn.Softmax(0)`.
    """
    found: Any = None
    if isinstance(module, nn.Module):
        found = _Conversion(surrogate).of(module, "", last=True, given=_given(module))
    if not isinstance(found, Converted):
        raise TypeError(
            "convert takes neurons of snnTorch, SpikingJelly or Norse or an nn.Sequential of them, "
            f"got {type(module).__name__}"
        )
    return found


class _OnSequences(nn.Module):
    """A layer that is given all steps at once, `[T, B, *F]`, as in the original network."""

    carries_state = True  # so that `Sequential` gives it all steps; its state is None

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, state: None = None, *, lengths: Any = None) -> tuple[Any, None]:
        """Return `(layer(x), None)`; raise TypeError if the output is not a tensor."""
        y = self.layer(x)
        if not isinstance(y, Tensor):
            raise TypeError(
                f"{type(self.layer).__name__} returned a {type(y).__name__}, wanted one tensor; a "
                "layer with a state of its own needs the attribute carries_state = True"
            )
        return y, None


class _Conversion:
    """One call of `convert`, with the surrogate asked for and the place of each layer so far."""

    def __init__(self, surrogate: Replacement) -> None:
        self.surrogate = surrogate
        self.met: dict[int, str] = {}

    def of(self, module: nn.Module, path: str, last: bool, given: Given) -> nn.Module:
        """Return the replacement of `module` in the new network, or the module itself.

        path: its dotted name in the old network.
        last: whether it is the last layer.
        given: what input it is given there.
        """
        library = LIBRARIES.get(library_of(module) or "")
        if library is not None:
            if kind := library.kind_of(module):
                return self.neurons(library, module, kind, path, last, given)
            found = library.other(module)
            if found is not None:
                kind = type(module).__name__
                if carries_state(found):
                    self.meet(module, kind, path)
                    check_hooks(module, path)
                if carries_state(found) or library.takes_sequences(module):
                    check_place(library.takes_sequences(module), kind, path, given)
                    return found
                return _kept(found, path, given)
        inside = _opened(module)
        if inside is not None and (inside.by_steps or inside.keeps_no_state):
            check_place(True, type(module).__name__, path, given)
        if inside is not None and not isinstance(module, nn.Sequential):  # a wrapper of one layer
            check_hooks(module, path)
            ((name, layer),) = inside.layers.items()
            inner_path = f"{path}.{name}" if path else name
            if inside.hands_states:
                check_stateless(module, layer, inner_path)
            return self.of(layer, inner_path, last, _given_in(inside, given))
        if inside is not None:
            return self.row(module, inside, path, last, given)
        for name, inner in module.named_modules():
            theirs = LIBRARIES.get(library_of(inner) or "")
            if theirs is not None and (inner is module or _is_stepped(theirs, inner)):
                raise TypeError(_refusal(theirs, module, name, inner, path))
        check_returns_no_state(module, path)
        return module if carries_state(module) else _kept(module, path, given)

    def row(
        self, module: nn.Module, inside: Opened, path: str, last: bool, given: Given
    ) -> nn.Module:
        """Return the replacement of a container whose layers run in a row."""
        names = list(inside.layers)
        if inside.hands_states:
            for name, child in inside.layers.items():
                check_stateless(module, child, f"{path}.{name}" if path else name)
        layers: dict[str, nn.Module] = {
            name: self.of(
                child,
                f"{path}.{name}" if path else name,
                last and name == names[-1],
                _given_in(inside, given),
            )
            for name, child in inside.layers.items()
        }
        has_memory = any(carries_state(layer) for layer in layers.values())
        if inside.keeps_no_state and has_memory:
            raise ValueError(
                f"{path or 'the network'} is a {type(module).__name__} that holds layers with a "
                "state, for which it takes all steps for one batch; use a MultiStepContainer"
            )
        if path and not has_memory:
            is_same = all(layer is inside.layers[name] for name, layer in layers.items())
            if is_same and type(module).forward in _IN_A_ROW:
                return module
        check_hooks(module, path)
        found: nn.Module = nn.Sequential(OrderedDict(layers))
        if not path or has_memory:
            first = getattr(module, "batch_first", False)
            found = Sequential(OrderedDict(layers), batch_first=first)
        found.training = module.training  # `train` would change the mode of its layers, too
        return found

    def meet(self, theirs: nn.Module, kind: str, path: str) -> None:
        """Raise ValueError for a layer with a state that is in the network twice."""
        before = self.met.setdefault(id(theirs), path)
        if before != path:
            raise ValueError(
                f"layers {before} and {path} are one and the same {kind}, which keeps one state "
                f"for both places; fused layers cannot share it: make a {kind} for each place"
            )

    def neurons(
        self, library: Library, theirs: Any, kind: str, path: str, last: bool, given: Given
    ) -> nn.Module:
        """Return the fused layer of neurons of a class `kind` of a library."""
        self.meet(theirs, kind, path)
        check_place(library.takes_sequences(theirs), kind, path, given)
        try:
            return library.fused(theirs, kind, last and library.is_shown(theirs), self.surrogate)
        except (ValueError, TypeError) as error:
            raise type(error)(f"layer {path}: {error}" if path else str(error)) from None


_IN_A_ROW = (nn.Sequential.forward, Sequential.forward)


def _opened(module: nn.Module) -> Opened | None:
    """Return the contents of a module that runs its layers in a row; None for any other module."""
    if isinstance(module, nn.Sequential) and type(module).forward in _IN_A_ROW:
        return Opened({name: one for name, one in module._modules.items() if one is not None})
    library = LIBRARIES.get(library_of(module) or "")
    return None if library is None else library.opened(module)


def _given(module: nn.Module) -> Given:
    """Return what input a network is given, according to its first neurons, else its layers."""
    layers = []
    for inner in module.modules():
        library = LIBRARIES.get(library_of(inner) or "")
        if library is None:
            continue
        if library.kind_of(inner):
            return Given.SEQUENCES if library.takes_sequences(inner) else Given.STEPS
        inside = library.opened(inner)
        if inside is not None and (inside.by_steps or inside.keeps_no_state):
            return Given.SEQUENCES
        if library.other(inner) is not None:
            layers.append(library.takes_sequences(inner))
    return Given.SEQUENCES if any(layers) else Given.STEPS


def _given_in(inside: Opened, given: Given) -> Given:
    """Return what input the layers of a container are given if the container is given `given`."""
    if inside.by_steps:
        return Given.STEPS
    return Given.BATCH if inside.keeps_no_state else given


def _is_stepped(library: Library, module: nn.Module) -> bool:
    """True for a module that steps through time; False for a library's wrappers and containers."""
    return library.other(module) is None and _opened(module) is None


# Layers that do the same to [T, B, *F] as to each step of it.
_EACH_STEP = (nn.Linear, nn.Identity, nn.Dropout, nn.AlphaDropout)


def _kept(layer: nn.Module, path: str, given: Given) -> nn.Module:
    """Return a layer without a state as a `Sequential` can run it, which gives it `[T * B, *F]`."""
    if given is Given.STEPS:
        check_axis(layer, path)
    if given is not Given.SEQUENCES:
        return layer
    kind = type(layer)
    is_elementwise = kind.__module__ == "torch.nn.modules.activation" and not hasattr(layer, "dim")
    if kind in _EACH_STEP or (is_elementwise and kind is not nn.MultiheadAttention):
        return layer
    return _OnSequences(layer)


def _refusal(library: Library, module: nn.Module, name: str, inner: nn.Module, path: str) -> str:
    """Return the error for a module at `path` that cannot be converted, with what to do."""
    where = ".".join(part for part in (path, name) if part) or "the module"
    inside = f" inside a {type(module).__name__}, whose forward steps it" if name else ""
    text = f"cannot convert {where}, {library.refusal(inner, inside)}"
    at, parts = module, name.split(".") if name else []
    for k, part in enumerate(parts[:-1], start=1):
        at = getattr(at, part)
        if _opened(at) is not None and library.kind_of(inner):
            row = ".".join(parts[:k])
            return f"{text}. Or convert the row that holds it: net.{row} = ns.convert(net.{row})"
    return text
