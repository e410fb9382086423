"""What the spiking layers of a network do while it is called: `record` and `recording`.

They register hooks on the layers, so any `nn.Module` can be recorded as it is. The `record` of the
networks in `neurospike.models`, the animation, the energy count and rate penalties use this.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from neurospike.ops.arguments import check_module

from .lif import LI, LIF
from .recurrent import Recurrent
from .sequential import Sequential
from .spiking import Spiking
from .time_axis import OverTime

_KINDS = (LIF, LI, Spiking, Recurrent)
_IN_TURN = (nn.Sequential, nn.ModuleList)  # run their modules in order, one call for each place


class Recording:
    """What the spiking layers of a network did at every step. Time is always the first axis.

    The input and output of a network with `batch_first = True` are transposed to have time first,
    unless they have two axes only, `[B, F]`, and no time. Where the network has no attribute
    `batch_first` but layers of it have `batch_first=True`, the order of its axes is unknown:
    `current`, `output` and `votes` then raise ValueError if their tensor begins with `[B, T]`.

    Layers have their dotted names of `net.named_modules()`, in the order of their first calls. The
    calls of a layer that is called again with a state, chunk by chunk or step by step, are joined
    over time. A layer that is called again from rest starts a new series, named `"name (2)"`, and
    so on. A layer that is in several places of a `Sequential` has a series under the name of each
    place.
    """

    def __init__(self) -> None:
        self._series: dict[str, _Series] = {}
        self._first: _Series | None = None  # of the first layer in this call of the network
        self._steps = 0  # how many steps that layer has run in it
        self._given = _Parts()
        self._returned = _Parts()

    @property
    def spikes(self) -> dict[str, Tensor]:
        """Spikes `[T, B, *F]` of each layer that fires, by its name, with their gradient."""
        return {name: one.joined()[0] for name, one in self._series.items() if one.fires}

    @property
    def states(self) -> dict[str, dict[str, Tensor]]:
        """States `[T, B, *F]` by layer and name, as `states["1"]["mem"]`, with their gradient.

        The state of `ns.LI` is its output, those of `ns.Recurrent` are the states of its neurons.
        With `states=False` only layers that do not fire are here.
        """
        every = {name: (one, one.joined()) for name, one in self._series.items() if one.states}
        return {
            name: dict(zip(one.states, joined[one.fires :]))
            for name, (one, joined) in every.items()
        }

    @property
    def lengths(self) -> Tensor | None:
        """How many of the steps belong to each sample, int64 `[B]`; None if all do."""
        return next((one.lengths() for one in self._series.values()), None)

    @property
    def current(self) -> Tensor | None:
        """First tensor given to the network, `[T, B, *F]`; a constant `[B, *F]` is expanded.

        None if the network was given no tensor, or one that does not hold all steps of the call.
        """
        return self._given.over_time()

    @property
    def output(self) -> Any:
        """What the network returned, or the first entry if that is a tuple.

        Outputs `[T, B, *G]` of several calls are joined over time, as those of the layers are; of
        any other kind of output it is that of the last call.
        """
        joined = self._returned.over_time()
        return self._returned.last if joined is None else joined

    @property
    def votes(self) -> Tensor:
        """Running mean of the output over the steps so far, `[T, B, *G]`.

        An output without a time axis, such as scores `[B, C]`, is repeated at every step. Raises
        TypeError for an output that is not a tensor.
        """
        output = self._over_steps()
        steps = torch.arange(1, len(output) + 1, device=output.device)
        steps = steps.view(-1, *(1,) * (output.dim() - 1))
        return held(output.float().cumsum(0) / steps, self.lengths)

    def _over_steps(self) -> Tensor:
        output, series = self.output, next(iter(self._series.values()))
        if not isinstance(output, Tensor):
            raise TypeError(
                f"the network returned {type(output).__name__}, wanted a tensor or a tuple that "
                "begins with one, of which scores can be made"
            )
        if self._returned.over_time() is not None:
            return output
        return output.expand(len(series.joined()[0]), *output.shape)


def held(votes: Tensor, lengths: Tensor | None) -> Tensor:
    """Return votes `[T, B, *G]` that keep their last value after each sample's end."""
    if lengths is None:
        return votes
    last = lengths.clamp_min(1) - 1
    steps = torch.arange(len(votes), device=votes.device)[:, None].minimum(last)
    return votes.gather(0, steps.view(*steps.shape, *(1,) * (votes.dim() - 2)).expand_as(votes))


@contextmanager
def recording(net: nn.Module, *, states: bool = True) -> Iterator[Recording]:
    """Record what the spiking layers of a network do in a `with` block.

        with ns.recording(net, states=False) as seen:
            out, _ = net(x)
        loss = cross_entropy(out.mean(0), labels) + rate_penalty(seen.spikes)

    The network's output and gradients stay the same; gradients flow through the recorded tensors,
    too. A recorded layer runs on its own, not fused with the linear layer before it. The layers
    recorded are `ns.LIF`, `ns.LI`, `ns.Recurrent`, and `ns.Spiking` with its subclasses, such as
    `ns.ALIF`. Calls by other threads, and of the function `ns.lif`, are not recorded.

    Args:
        net: any module with such layers, or such a layer. For a compiled module pass the module
            that was compiled.
        states: also keep every state at every step, each of which takes as much memory as the
            spikes or twice that.

    Raises:
        ValueError: the network has no such layer.
        RuntimeError: raised in the block if torch.compile compiles a layer.
    """
    places = spiking_layers(net)
    if not places:
        raise ValueError(
            f"{type(net).__name__} has no layer to record: it needs one of ns.LIF, ns.LI, "
            "ns.Recurrent, or ns.Spiking and its kinds"
        )
    seen = Recording()
    handles = [net.register_forward_pre_hook(lambda *_: _begin(seen))]
    try:
        for layer, names in places.items():
            watcher = _Watcher(seen, layer, names, states)
            handles.append(layer.register_forward_pre_hook(watcher.before, with_kwargs=True))
            # Before other hooks, so that these get what they would get without a recording.
            handles.append(
                layer.register_forward_hook(watcher.after, with_kwargs=True, prepend=True)
            )
        handles.append(
            net.register_forward_hook(
                lambda _, given, options, out: _end(seen, net, given, options, out),
                with_kwargs=True,
            )
        )
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def record(net: nn.Module, *inputs: Any, **options: Any) -> Recording:
    """Call `net(*inputs, **options)` and return what its spiking layers did.

        seen = ns.record(net, x, num_steps=25)
        seen.spikes["1"]                           # [T, B, *F] of the layer net[1]
        seen.states["1"]["mem"]                    # [T, B, *F]
        ns.spike_rates(seen)["1"]                  # [*F], spikes per step

    Args:
        net: any module with layers of this library; a compiled one runs without torch.compile.
        *inputs: positional arguments of the call, such as the input and states to continue from.
        **options: keyword arguments of the call, such as `num_steps=` and `lengths=`.

    Returns:
        A `Recording`. Inside `torch.no_grad()` it needs no memory beyond the tensors it holds.

    Raises:
        ValueError: the network has no such layer, or the call reached none.
        Exception: what the call raises.
    """
    # A module compiled by torch.compile ignores hooks that are registered later.
    net = getattr(net, "_orig_mod", net)
    with recording(net) as seen:
        net(*inputs, **options)
    if not seen._series:
        raise ValueError(
            f"this call of {type(net).__name__} reached none of its spiking layers: call them as "
            "modules, layer(x), not by layer.forward(x)"
        )
    return seen


def spiking_layers(net: nn.Module) -> dict[nn.Module, list[str]]:
    """Return the layers to record, each with its names: one for each place that it is in."""
    check_module("net", net)
    found: dict[nn.Module, list[str]] = {}
    parents: dict[str, nn.Module] = {}
    for name, module in net.named_modules(remove_duplicate=False):
        parents[name] = module
        above = parents.get(name.rpartition(".")[0])
        if not isinstance(module, _KINDS) or (isinstance(above, Recurrent) and above is not module):
            continue  # the neurons of a recurrent layer are not called on their own
        names = found.setdefault(module, [])
        if not names or isinstance(above, _IN_TURN):
            names.append(name or type(module).__name__)
    return found


def _begin(seen: Recording) -> None:
    seen._first, seen._steps = None, 0


def _end(seen: Recording, net: nn.Module, given: Any, options: Any, out: Any) -> None:
    """Store the first tensor that a call of the network was given, and its output."""
    if seen._first is None:
        return
    lead = (seen._steps, seen._first.shape[0])
    seen._given.doubt = seen._returned.doubt = doubt_of(net)
    tensors = [one for one in (*given, *options.values()) if isinstance(one, Tensor)]
    first = tensors[0] if tensors else None
    if first is not None and options.get("num_steps") is not None:
        first, seen._given.doubt = first.expand(lead[0], *first.shape), ""
    else:
        first = _of_network(net, first, lead)
    seen._given.add(first, lead)
    out = out[0] if isinstance(out, (tuple, list)) and out else out
    seen._returned.add(_of_network(net, out, lead), lead)


def _of_network(net: nn.Module, one: Any, lead: tuple[int, int]) -> Any:
    """Return an input or output of a network with time first, if it has a time axis."""
    if isinstance(net, (OverTime, Sequential)):
        return _time_first(net, one)
    # Two axes are left alone: scores [B, C] would be transposed if C happened to equal T.
    turn = getattr(net, "batch_first", False) and isinstance(one, Tensor) and one.dim() > 2
    return one.transpose(0, 1) if turn and one.shape[:2] == lead[::-1] else one


def doubt_of(net: nn.Module) -> str:
    """Return the error for a network whose time axis is unclear, to be formatted with a shape.

    Returns "" if the axis is clear.
    """
    if hasattr(net, "batch_first"):
        return ""
    layers = [one for one in spiking_layers(net) if getattr(one, "batch_first", False)]
    layers += [one for one in net.modules() if isinstance(one, Sequential) and one.batch_first]
    if not layers:
        return ""
    return (
        f"{type(net).__name__} has no batch_first, while its {type(layers[0]).__name__} has "
        "batch_first=True, and was given or returned {}, which may be [B, T, *F]: set batch_first "
        f"= True on the {type(net).__name__} if it is, or batch_first = False if it is [T, B, *F]"
    )


def _time_first(module: nn.Module, given: Any) -> Any:
    """Return a tensor of a layer with time first, transposed if the layer is `batch_first`."""
    is_ours = isinstance(module, (OverTime, Sequential))  # torch's have a batch_first, too
    swap = is_ours and module.batch_first and isinstance(given, Tensor) and given.dim() > 1
    return given.transpose(0, 1) if swap else given


class _Parts:
    """The inputs, or the outputs, of several calls of a network."""

    def __init__(self) -> None:
        self.last: Any = None
        self.doubt = ""  # what `doubt_of` returned
        self._unclear = ""
        self._parts: list[Tensor] | None = []  # None as soon as one has no time axis

    def add(self, one: Any, lead: tuple[int, int]) -> None:
        self.last = one
        has_time = isinstance(one, Tensor) and one.shape[:2] == lead
        if self.doubt and isinstance(one, Tensor) and one.dim() > 2 and one.shape[:2] == lead[::-1]:
            self._unclear = self.doubt.format(list(one.shape))
        if self._parts is not None and has_time:
            self._parts.append(one)
        else:
            self._parts = None

    def over_time(self) -> Tensor | None:
        """Return the calls joined over time; None if one of them has no time axis.

        Raises ValueError if it is unclear which axis is time.
        """
        if self._unclear:
            raise ValueError(self._unclear)
        if not self._parts:
            return None
        self._parts[:] = [_joined(self._parts)]
        return self._parts[0]


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class _Series:
    """Calls of a layer that continue one another in time."""

    def __init__(self, shape: torch.Size, fires: bool, states: tuple[str, ...]) -> None:
        self.shape, self.fires, self.states = shape, fires, states
        self._parts: list[tuple[Tensor, ...]] = []
        self._lengths: list[Tensor] = []
        self._has_lengths = False

    def add(self, tensors: tuple[Tensor, ...], lengths: Any) -> None:
        self._parts.append(tensors)
        self._has_lengths |= lengths is not None
        every = torch.full(self.shape[:1], len(tensors[0]), device=tensors[0].device)
        own = every if lengths is None else torch.as_tensor(lengths).to(every)
        self._lengths.append(own)

    def joined(self) -> tuple[Tensor, ...]:
        """Return spikes, if the layer fires, and states, if they are kept, over all calls."""
        if len(self._parts) > 1:
            self._parts = [tuple(_joined(list(parts)) for parts in zip(*self._parts))]
        return self._parts[0]

    def lengths(self) -> Tensor | None:
        return torch.stack(self._lengths).sum(0) if self._has_lengths else None


class _Watcher:
    """Hooks of one layer: request its states at every step, and store what it returns."""

    def __init__(self, seen: Recording, layer: nn.Module, names: list[str], states: bool) -> None:
        self.seen, self.fires = seen, not isinstance(layer, LI)
        self.states: tuple[str, ...] = ("mem",)
        if self.fires:
            self.states = _states_of(layer) if states else ()
        self.asks = self.fires and bool(self.states)
        self.asked = False  # whether the caller asked for the trace, which it then has to get
        self.names, self.calls, self.continued = names, 0, 0
        self.places: list[list[_Series]] = [[] for _ in names]
        self.thread = threading.get_ident()

    def before(self, _layer: nn.Module, given: Any, options: dict[str, Any]) -> Any:
        if torch.compiler.is_compiling():
            raise RuntimeError(
                "a layer that is recorded cannot be compiled; record the network as it was before "
                "torch.compile"
            )
        if threading.get_ident() != self.thread:
            return None
        self.asked = bool(options.get("return_trace"))
        return (given, {**options, "return_trace": True}) if self.asks else None

    def after(self, layer: nn.Module, given: Any, options: dict[str, Any], out: Any) -> Any:
        if threading.get_ident() != self.thread:
            return None
        tensors = (out[0],)
        if self.asks:
            tensors += out[2] if isinstance(out[2], tuple) else (out[2],)
        tensors = tuple(_time_first(layer, one) for one in tensors)
        state = given[1] if len(given) > 1 else options.get("mem", options.get("state"))
        series = self.series(state is not None, tensors[0].shape[1:])
        series.add(tensors, options.get("lengths"))
        seen = self.seen
        if seen._first is None:
            seen._first = series
        if seen._first is series:
            seen._steps += len(tensors[0])
        return out[:2] if self.asks and not self.asked else None

    def series(self, goes_on: bool, shape: torch.Size) -> _Series:
        """Return the series of a call: the one that it continues, or a new one."""
        at = self.calls % len(self.names)
        self.calls += 1
        place = self.places[at]
        alike = [one for one in place if one.shape == shape]
        if goes_on and alike:
            if len(self.names) > 1:
                return alike[-1]
            self.continued += 1
            return alike[(self.continued - 1) % len(alike)]
        found = _Series(shape, self.fires, self.states)
        place.append(found)
        name = self.names[at]
        self.seen._series[name if len(place) == 1 else f"{name} ({len(place)})"] = found
        return found


def _states_of(layer: nn.Module) -> tuple[str, ...]:
    neuron: Any = layer.neuron if isinstance(layer, Recurrent) else layer
    states: tuple[str, ...] = neuron.rule.states
    return states
