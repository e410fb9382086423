"""What a backend provides: the functions that operators and layers call, and how.

A row of `dispatch.TABLE` names modules that have these functions. They take their arguments by name
only. Tensors are on the backend's device; the state's format is float32, or float64 if the input is
float64.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from neurospike.neurons.rule import Rule


class Scan(Protocol):
    """The time loop of any recorded neuron; column `module` of a fused row.

    If the row has `checkpoint_every`, both functions are also given `saved`, the states before
    every K-th step. If it has `by_sample`, they may be given `by_sample=True`: then the sequences
    to fill are transposes of contiguous tensors `[B, T, *F]`.

    Either may return a function, or None. That function is called in place of the next calls whose
    tensors have the same formats, shapes and strides, with as many threads; the values of `numbers`
    may differ. Its arguments are positional, in this order:

    - of `forward`: current, states, parameters, numbers, lengths, spikes, finals, traces, saved;
    - of `backward`: grad_spikes, grad_finals, grad_traces, current, states, parameters, numbers,
      lengths, saved, out, out_states, out_parameters.

    `lengths`, int64 `[B]`, are given where samples end at different steps: sample b has only its
    first `lengths[b]` steps, none of them if that is below 0, and all if it is above `steps`. After
    its end spikes and the current's gradient are 0, its states and each trace stay those of its
    last step (or those it started from), and gradients that arrive at later steps are ignored.
    """

    def forward(
        self,
        *,
        current: Tensor,
        states: Sequence[Tensor],
        parameters: Sequence[Tensor],
        neuron: str,
        numbers: Sequence[float],
        steps: int,
        constant: bool,
        spikes: Tensor | None,
        traces: Sequence[Tensor],
        finals: Sequence[Tensor],
        lengths: Tensor | None = None,
        **more: Any,
    ) -> Callable[..., None] | None:
        """Fill spikes `[T, B, *F]`, traces (one for each state, or none) and finals `[B, *F]`."""

    def backward(
        self,
        *,
        grad_spikes: Tensor | None,
        grad_traces: Sequence[Tensor | None],
        grad_finals: Sequence[Tensor | None],
        current: Tensor,
        states: Sequence[Tensor],
        parameters: Sequence[Tensor],
        neuron: str,
        numbers: Sequence[float],
        steps: int,
        constant: bool,
        out: Tensor,
        out_states: Sequence[Tensor],
        out_parameters: Sequence[Tensor | None],
        lengths: Tensor | None = None,
        **more: Any,
    ) -> Callable[..., None] | None:
        """Fill the gradients of current, states (all or none) and parameters (all but None)."""


class Recurrence(Protocol):
    """A recurrent layer's time loop, `current_t = x_t + weight @ spikes_{t-1}`; column `recurrent`.

    Everything but `current` and `spikes` is in the state's format. In `states`, in `finals` and in
    their gradients the spikes of the last step come first; the neuron's states follow.
    """

    def forward(
        self,
        *,
        current: Tensor,
        weight: Tensor,
        states: Sequence[Tensor],
        parameters: Sequence[Tensor],
        lengths: Tensor | None,
        neuron: str,
        numbers: Sequence[float],
        spikes: Tensor,
        traces: Sequence[Tensor],
        finals: Sequence[Tensor],
        currents: Tensor | None,
    ) -> None:
        """Fill spikes, traces, finals, and `currents`, the neurons' summed inputs `current_t`.

        There is one trace `[T, B, N]` for each of the neuron's states, or none. `currents` are
        `[T, B, N]`, or None.
        """

    def backward(
        self,
        *,
        grad_spikes: Tensor | None,
        grad_finals: Sequence[Tensor | None],
        grad_traces: Sequence[Tensor | None],
        currents: Tensor,
        traces: Sequence[Tensor],
        weight: Tensor,
        states: Sequence[Tensor],
        parameters: Sequence[Tensor],
        lengths: Tensor | None,
        neuron: str,
        numbers: Sequence[float],
        out: Tensor,
        out_states: Sequence[Tensor],
        out_parameters: Sequence[Tensor | None],
    ) -> None:
        """Fill the gradients of currents, states (all or none) and parameters (all but None).

        A row with `checkpoint_every` is given `traces`, the neuron's states after each step. A
        module with `OVERWRITES = True` may be given the same tensor as `currents` and as `out`.
        """

    def weight_gradient(self, *, grad: Tensor, spikes: Tensor, out: Tensor) -> None:
        """Fill `out` `[N, N]` with `grad.T @ spikes`, both `[M, N]`."""


class Stepped(Protocol):
    """The time loop in torch, differentiated by autograd; column `module` of an unfused row."""

    def scan(
        self,
        current: Tensor,
        states: Sequence[Tensor],
        parameters: Sequence[Tensor],
        neuron: str,
        numbers: Sequence[float],
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return `(spikes, states, traces)`, all differentiable; `lengths` as in `Scan`."""


class Events(Protocol):
    """Finding the active inputs of rows of spikes `[M, K]`."""

    def words(self, width: int) -> int:
        """Return how many integers hold the bits of a row."""

    def find(self, spikes: Tensor, bits: Tensor) -> Any:
        """Fill `bits` `[M, words]`; return their counts."""


class Linear(Events, Protocol):
    """The event-driven product; column `linear`."""

    def forward(
        self, *, spikes: Tensor, weight: Tensor, bias: Tensor | None, bits: Tensor, found: Any
    ) -> Tensor:
        """Return `spikes @ weight.T + bias` `[M, N]`."""

    def backward(
        self,
        *,
        grad: Tensor,
        spikes: Tensor,
        bits: Tensor,
        valued: bool,
        out: Tensor | None = None,
    ) -> Tensor:
        """Return the weight's gradient, `grad.T @ spikes` `[N, K]`, in `out` if it is given."""


class LinearScan(Events, Protocol):
    """An event-driven product and its LIF neurons in one loop; column `layer`."""

    def panels(self, outputs: int, state: torch.dtype) -> int:
        """Return into how many parts `outputs` neurons are divided among threads."""

    def forward(
        self,
        *,
        bits: Tensor,
        found: Any,
        weight: Tensor,
        bias: Tensor | None,
        mem: Tensor | None,
        beta: Tensor,
        threshold: Tensor,
        rule: Rule,
        steps: int,
    ) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
        """Return spikes `[T, B, N]`, the last membrane `[B, N]`, and `kept` for `backward`."""

    def backward(
        self,
        *,
        grad_spikes: Tensor | None,
        grad_final: Tensor | None,
        kept: Sequence[Tensor],
        bias: Tensor | None,
        mem: Tensor | None,
        beta: Tensor,
        threshold: Tensor,
        rule: Rule,
        shape: tuple[int, ...],
        want_mem: bool,
        want_parameters: bool,
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of weight, `bias`, `mem`, `beta` and `threshold`."""


class Delay(Protocol):
    """Delaying each channel of a sequence by its own number of steps; column `delay`.

    `y_t = sum_j weights[j] * x_{t - lag - j}`, and 0 after the end of a sample. Both functions are
    given `current` `[T, B, *F]`, which is x; `history` `[max_delay, B, *F]`, the steps before it in
    its format, or None for zeros; `lag` `[P]`, int32, of the P channels of F flattened, and
    `weights` `[taps, P]` in the state's format, at least two taps, where `0 <= lag` and
    `lag + taps - 1 <= max_delay`; and `lengths` `[B]`, int64 from 0 to T, or None for T.
    """

    def forward(
        self,
        *,
        current: Tensor,
        history: Tensor | None,
        lag: Tensor,
        weights: Tensor,
        lengths: Tensor | None,
        max_delay: int,
        out: Tensor,
    ) -> None:
        """Fill `out` `[T, B, *F]`, y in the format of x."""

    def backward(
        self,
        *,
        grad: Tensor,
        current: Tensor,
        history: Tensor | None,
        lag: Tensor,
        weights: Tensor,
        lengths: Tensor | None,
        max_delay: int,
        out: Tensor | None,
        out_history: Tensor | None,
        out_weights: Tensor | None,
    ) -> None:
        """Fill the gradients of current, history and weights (those that are not None)."""


class Coder(Protocol):
    """An encoder; columns `draws` and `latency`, which take different arguments."""

    def usable(self, data: Tensor) -> bool:
        """Return whether it can encode such a tensor."""

    def spikes(self, data: Tensor, *arguments: Any) -> Tensor | None:
        """Return the spikes, or None where torch has to encode."""
