"""Walk through a network of another library, and put our layer in the place of each of theirs."""

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
    """Return a network of snnTorch, SpikingJelly or Norse with fused layers in the place of theirs.

        net = ns.convert(net)                      # an nn.Sequential of theirs
        spikes, states = net(images, num_steps=25) # was: a loop of 25 calls, net(images)
        spikes, states = net(frames)               # [T, B, *F], each step its own frame

    All other layers, the recurrent weights, and the decays and thresholds that are learned, are
    those of `module` itself, not copies; the new network begins at rest, whatever state the old one
    is in. A layer that stands in the network twice is run twice. Hooks on neurons are not carried
    over, those on layers that are kept are. In training, batch normalisation takes its statistics
    over all steps at once, as SpikingJelly does with `step_mode="m"`, where a loop over steps takes
    them step by step.

    snnTorch: `Leaky` becomes `LIF`, `Synaptic` and `Alpha` become ours of the same names, `RLeaky`
    and `RSynaptic` become `OneToOne` with `all_to_all=False`, and `Recurrent` with
    `linear_features`, whose current is `[T, B, N]`. `SynapticDelay` becomes `Delay`. Last neurons
    that return their states too (`output=True`, or without `init_hidden`) give them at every step,
    each `[T, B, *F]`, in the order of snnTorch: `(spikes, mems), states = net(...)` for a `Leaky`.

    SpikingJelly 2.0: `LIFNode`, `ParametricLIFNode` and `IFNode`, in both step modes, become
    `Spiking` layers that reset at once and fire at the threshold, too (`>=`), as theirs do. Its
    `layer.Conv2d` and the like become torch's own with the same parameters, which are given whole
    sequences where `step_mode="s"` stands among neurons with `"m"`; `layer.Dropout` keeps one mask
    for all steps; `SeqToANNContainer`, `MultiStepContainer` and `StepModeContainer` are
    opened. States are membranes.

    Norse 1.1: `LIFBoxCell`, `LIFCell`, `LIF`, `IAFCell`, `IAF`, `LICell`, `LI` and `LIBoxCell`
    become `Spiking` layers in the order and number formats of Norse's own steps; `SequentialState`
    and `Lift` are opened. Integrators give their membranes at every step. States are tuples in the
    order of Norse's, `(v, i)` or `(v,)`.

    Spikes are equal bit for bit wherever the layers between give the same bits for a larger batch,
    except those of a `Recurrent`. It adds up `beta * mem + (input + (weight @ spikes + bias))`, the
    product in an order of its own, where snnTorch has `(beta * mem + input) + (weight @ spikes +
    bias)`. Membranes differ in their last bits, and a spike where one comes that close to the
    threshold, after which the neurons that it reaches may go another way.

    Args:
        module: neurons, or an `nn.Sequential` or a container named above of them and of layers
            without memory, which may be nested. A subclass of neurons is converted if it overrides
            nothing that its base computes with.
        surrogate: for every converted layer, in place of its own: a name, an object of
            `neurospike.surrogate`, or the derivative as a function of u.

    Raises:
        TypeError: other neurons of these libraries, with what to use; other layers that hand on a
            state, such as `nn.LSTM`, and have no `carries_state = True`; a module that steps
            neurons in a `forward` of its own, which has to be rewritten with the fused layers.
        ValueError: neurons with an option that a fused layer does not have, such as recurrence by
            convolution, which is named; neurons that stand in the network twice; neurons or
            dropout that take single steps beside others that take sequences; a hook on a container
            or on dropout, in whose place another module stands; a layer of torch along the batch
            of a single step, such as `nn.Softmax(0)`.
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
    """A layer that is given all steps at once, `[T, B, *F]`, as in the network it comes from."""

    carries_state = True  # which hands it all steps; its state is None

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, state: None = None, *, lengths: Any = None) -> tuple[Any, None]:
        """Return `(layer(x), None)`; TypeError if that is no tensor."""
        y = self.layer(x)
        if not isinstance(y, Tensor):
            raise TypeError(
                f"{type(self.layer).__name__} returned a {type(y).__name__}, wanted one tensor; a "
                "layer with a state of its own needs the attribute carries_state = True"
            )
        return y, None


class _Conversion:
    """One call of `convert`: the surrogate asked for, and where each layer was met."""

    def __init__(self, surrogate: Replacement) -> None:
        self.surrogate = surrogate
        self.met: dict[int, str] = {}

    def of(self, module: nn.Module, path: str, last: bool, given: Given) -> nn.Module:
        """Return what stands for `module` in the new network.

        path: where it stands in the old one.
        last: nothing comes after it.
        given: what it is given there.
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
        """Return what stands for layers that run in a row."""
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
        found.training = module.training  # not `train`, which would put its layers in that mode
        return found

    def meet(self, theirs: nn.Module, kind: str, path: str) -> None:
        """Raise ValueError for a layer with a state that stands in the network twice."""
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
    """Return the layers of a module that runs them in a row; None for any other module."""
    if isinstance(module, nn.Sequential) and type(module).forward in _IN_A_ROW:
        return Opened({name: one for name, one in module._modules.items() if one is not None})
    library = LIBRARIES.get(library_of(module) or "")
    return None if library is None else library.opened(module)


def _given(module: nn.Module) -> Given:
    """Return what a network is given: its first neurons say so, or its layers if it has none."""
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
    """Return what the layers of a container are given that is given `given`."""
    if inside.by_steps:
        return Given.STEPS
    return Given.BATCH if inside.keeps_no_state else given


def _is_stepped(library: Library, module: nn.Module) -> bool:
    """True for what steps through time, rather than a library's form of a layer of torch."""
    return library.other(module) is None and _opened(module) is None


# What does the same to [T, B, *F] as to each step of it.
_EACH_STEP = (nn.Linear, nn.Identity, nn.Dropout, nn.AlphaDropout)


def _kept(layer: nn.Module, path: str, given: Given) -> nn.Module:
    """Return a layer without a state for a `Sequential`, which gives it `[T * B, *F]`."""
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
    """Return why what stands at `path` cannot be converted, and what to do."""
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
