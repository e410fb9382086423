"""`Recurrent`: neurons of any kind with all-to-all recurrent weights, over whole sequences."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from neurospike.neurons.program import with_bias
from neurospike.neurons.rule import Rule
from neurospike.ops.arguments import check_count, check_flag
from neurospike.ops.recurrent_loop import run_recurrent
from neurospike.ops.wants import TRACES

from .lif import LI, LIF
from .other_names import explain_other_names
from .spiking import Spiking
from .time_axis import OverTime, over_time


class Recurrent(OverTime):
    """A layer of neurons with a recurrent weight from every neuron's spikes to every neuron.

        current_t = x_t + weight @ spikes_{t-1} (+ bias)

    The whole time loop runs fused, forward and backward, as that of the neurons alone does.

        layer = ns.Recurrent(ns.SEAdLIF(), 256)
        spikes, state = layer(current)             # [T, B, 256] -> [T, B, 256], each [B, 256]
        spikes, state = layer(more_current, state) # continue

    Args:
        neuron: a layer of neurons that spike, such as `ns.LIF(0.9)`, `ns.ALIF()` or any
            `ns.Spiking`; each of its parameters is a single number or `[size]`. Its `backend` is
            used for this layer.
        size: number of neurons N.
        bias: add a learned bias to the current at every step.
        mask: `[N, N]` of 0 and 1, or of False and True: the weights to keep. The others act as 0
            and are not learned.
        zero_diagonal: mask the weights from each neuron to itself.
        batch_first: take and return `[B, T, N]`, traces too; states stay `[B, N]`. See `LIF`.

    Attributes: `neuron`; `weight` `[N, N]`, whose row i holds the weights to neuron i, drawn
    uniformly from `-1 / sqrt(N)` to `1 / sqrt(N)`, as in torch's `nn.RNN`; `bias` `[N]` or None;
    `mask` `[N, N]` or None.

    Raises:
        TypeError: neurons that do not spike, or something that is not a layer of neurons.
        ValueError: a size below 1, neurons with `batch_first=True`, a mask of the wrong shape or
            with values other than 0 and 1.
    """

    carries_state = True
    weight: nn.Parameter
    bias: nn.Parameter | None
    mask: Tensor | None

    _biased = ("", "")  # the last program of the neurons, and the same with a bias

    @explain_other_names
    def __init__(
        self,
        neuron: LIF | Spiking,
        size: int,
        bias: bool = False,
        mask: Tensor | None = None,
        zero_diagonal: bool = False,
        batch_first: bool = False,
    ) -> None:
        super().__init__()
        self.batch_first = check_flag("batch_first", batch_first)
        if not isinstance(neuron, (LIF, Spiking)):
            what = "an LI, whose neurons never spike" if isinstance(neuron, LI) else repr(neuron)
            raise TypeError(
                "neuron must be a layer of neurons that spike, such as ns.LIF(0.9) or ns.ALIF(), "
                f"got {what}"
            )
        if neuron.batch_first:
            raise ValueError(
                "the neurons of a recurrent layer have no axes of their own: give batch_first=True "
                "to ns.Recurrent, not to them"
            )
        self.neuron, self.size = neuron, check_count("size", size)
        is_biased = check_flag("bias", bias)
        bound = 1.0 / math.sqrt(size)
        self.weight = nn.Parameter(torch.empty(size, size).uniform_(-bound, bound))
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(size).uniform_(-bound, bound)) if is_biased else None
        )
        is_zero = check_flag("zero_diagonal", zero_diagonal)
        self.register_buffer("mask", _checked_mask(mask, size, is_zero))
        self._rule()  # fills `_biased` before torch.compile traces the layer

    @property
    def states(self) -> tuple[str, ...]:
        """Names of the states: the last spikes, then the neuron's."""
        return ("spike", *self.neuron.rule.states)

    @property
    def segment(self) -> int | None:
        """Steps after which the gradient is cut off, as set on the neurons."""
        return self.neuron.segment

    @over_time
    def forward(
        self,
        current: Tensor,
        state: Sequence[Tensor] | None = None,
        *,
        num_steps: int | None = None,
        return_trace: bool = False,
        lengths: Tensor | Sequence[int] | None = None,
    ) -> tuple[Any, ...]:
        """Return `(spikes, state)`, and with `return_trace` `(spikes, state, trace)`.

        Args:
            current: `[T, B, N]`; with `num_steps` `[B, N]`, the same at every step. float16,
                bfloat16, float32 or float64.
            state: what an earlier call returned: the last spikes and the neuron's states, each
                `[B, N]`, float64 if the current is, else float32. Default: no spikes, and the
                neuron's states at rest.
            num_steps: number of steps `T >= 0` of a constant current.
            return_trace: also return each state of the neuron at every step, a tuple of
                `[T, B, N]`.
            lengths: how many of the T steps belong to each sample, `[B]`; see `neurospike.lif`.

        Returns:
            Spikes `[T, B, N]` in the current's number format, and the states after the last step,
            a tuple of `[B, N]`.

        Raises:
            TypeError, ValueError: a tensor of the wrong kind, shape, number format or device, or
                the wrong number of states.
            BackendError: the backend named cannot run here; every reason is listed.
        """
        out = run_recurrent(
            self._rule(),
            current,
            self.weight if self.mask is None else self.weight * self.mask,
            self._start(state, current, num_steps),
            self._values(),
            num_steps,
            lengths,
            TRACES if return_trace else 0,
            self.neuron.backend,
            self.segment,
        )
        assert out.spikes is not None
        return (out.spikes, out.states, out.traces) if return_trace else (out.spikes, out.states)

    if TYPE_CHECKING:  # torch leaves open what a call returns
        __call__ = forward

    def extra_repr(self) -> str:
        """Return what `print` shows of the layer."""
        masked = ""
        if self.mask is not None:
            masked = ", masked" if self.mask.is_meta else f", {int(self.mask.sum())} weights"
        axes = ", batch_first=True" if self.batch_first else ""
        return f"size={self.size}, bias={self.bias is not None}{masked}{axes}"

    def _rule(self) -> Rule:
        """Return the rule of the neurons, with the bias, if any, as its last parameter."""
        rule = self.neuron.rule
        if self.bias is None:
            return rule
        if self._biased[0] != rule.program:
            self._biased = (rule.program, with_bias(rule.program))
        return Rule(self._biased[1], rule.numbers, rule.states, (*rule.parameters, "bias"))

    def _values(self) -> Sequence[Tensor]:
        """Return the values of the parameters of `_rule`."""
        if isinstance(self.neuron, Spiking):
            values = tuple(self.neuron.parameter_values())
        else:
            values = self.neuron._decay(), self.neuron.threshold
        return values if self.bias is None else (*values, self.bias)

    def _start(
        self, given: Sequence[Tensor] | None, current: Tensor, num_steps: int | None
    ) -> Sequence[Tensor]:
        """Return the states to start from; empty if all are zero."""
        many = len(self.states)
        if given is None:
            rest = (
                self.neuron.rest_of(current, num_steps) if isinstance(self.neuron, Spiking) else ()
            )
            return (torch.zeros_like(rest[0]), *rest) if rest else ()
        if isinstance(given, Tensor) or not isinstance(given, Sequence) or len(given) != many:
            got = type(given).__name__
            got += f" of {len(given)}" if isinstance(given, Sequence) else ""
            raise TypeError(
                f"the state of a recurrent layer is a tuple ({', '.join(self.states)}) of {many}, "
                f"got {got}"
            )
        return tuple(given)


def _checked_mask(mask: Tensor | None, size: int, zero_diagonal: bool) -> Tensor | None:
    """Return the mask of weights to keep, of 0 and 1, `[N, N]`; None if all are kept."""
    if mask is None and not zero_diagonal:
        return None
    try:
        found = torch.ones(size, size) if mask is None else torch.as_tensor(mask).detach().clone()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"mask must be a tensor [N, N] of 0 and 1, got {mask!r}") from None
    if found.shape != (size, size):
        raise ValueError(f"mask must have the shape {(size, size)}, got {tuple(found.shape)}")
    if not (found.is_meta or bool(((found == 0) | (found == 1)).all())):
        raise ValueError("mask must hold 0 and 1, or true and false, and nothing else")
    found = found.to(torch.get_default_dtype())
    return found.fill_diagonal_(0.0) if zero_diagonal else found
