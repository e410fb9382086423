"""A recurrent layer as a loop: a product by torch and one step of a backend's scan per time step.

It serves backends without a kernel for recurrent layers, and layers that such a kernel does not
support. On a GPU a CUDA graph removes the host's share of its time.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from neurospike.backend import dispatch


def _in_full(run: Callable[..., None]) -> Callable[..., None]:
    """Turn autocast off for a method, so that products are in the state's format."""

    @functools.wraps(run)
    def in_full(self: Any, *, weight: Tensor, **given: Any) -> None:
        with torch.autocast(weight.device.type, enabled=False):
            run(self, weight=weight, **given)

    return in_full


class SteppedRecurrence:
    """A `protocols.Recurrence` that calls a row's `Scan` for one step at a time."""

    def __init__(self, row: dispatch.Backend) -> None:
        self.scan = dispatch.scan_of(row)
        self.saves = row.checkpoint_every > 0

    @_in_full
    def forward(
        self,
        *,
        current: Tensor,
        weight: Tensor,
        states: Sequence[Tensor],
        spikes: Tensor,
        traces: Sequence[Tensor],
        finals: Sequence[Tensor],
        currents: Tensor | None,
        lengths: Tensor | None,
        **neuron: Any,
    ) -> None:
        """Fill `spikes` and `finals`, `traces` unless empty, and `currents` unless None."""
        state = finals[0].dtype
        last: Tensor | None = states[0] if states else None
        before = list(states[1:])
        saved: dict[str, Any] = {"saved": ()} if self.saves else {}
        for t in range(len(current)):
            total = current[t].to(state)
            if last is not None:
                total = torch.addmm(total, last, weight.T)
            if currents is not None:
                currents[t].copy_(total)
            after = [torch.empty_like(one) for one in finals[1:]]
            fired = torch.empty_like(finals[0])
            self.scan.forward(
                current=total[None],
                states=before,
                steps=1,
                constant=False,
                spikes=fired[None],
                traces=(),
                finals=after,
                lengths=self._one_step(lengths, t),
                **saved,
                **neuron,
            )
            spikes[t].copy_(fired)
            for trace, one in zip(traces, after):
                trace[t].copy_(one)
            if lengths is not None and last is not None:
                fired = torch.where((lengths > t)[:, None], fired, last)
            last, before = fired, after
        assert last is not None  # there is at least one step
        for final, found in zip(finals, (last, *before)):
            final.copy_(found)

    @_in_full
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
        out: Tensor,
        out_states: Sequence[Tensor],
        out_parameters: Sequence[Tensor | None],
        lengths: Tensor | None,
        **neuron: Any,
    ) -> None:
        """Fill `out`, and those of `out_states` and `out_parameters` that are asked for."""
        steps, step = len(currents), currents[0]
        zeros = torch.zeros_like(step)
        coming, *carried = [zeros if one is None else one for one in grad_finals]
        for one in out_parameters:
            if one is not None:
                one.zero_()
        each = [None if one is None else torch.empty_like(one) for one in out_parameters]
        for t in reversed(range(steps)):
            before = [one[t - 1] for one in traces] if t else list(states[1:])
            saved: dict[str, Any] = {}
            if self.saves:
                saved["saved"] = [one.flatten() for one in before or [zeros] * len(traces)]
            given = coming if grad_spikes is None else coming + grad_spikes[t]
            shown = [None if one is None else one[t] for one in grad_traces]
            if lengths is not None:  # after its end a sample only passes on its final gradient
                goes = (lengths > t)[:, None]
                coming = torch.where(goes, zeros, coming)
                shown = [None if one is None else torch.where(goes, one, zeros) for one in shown]
            for k, one in enumerate(shown):
                carried[k] = carried[k] if one is None else carried[k] + one
            gradients = [torch.empty_like(step) for _ in traces]
            self.scan.backward(
                grad_spikes=given[None],
                grad_traces=(),
                grad_finals=carried,
                current=currents[t][None],
                states=before,
                steps=1,
                constant=False,
                out=out[t][None],
                out_states=gradients,
                out_parameters=each,
                lengths=self._one_step(lengths, t),
                **saved,
                **neuron,
            )
            carried = gradients
            product = torch.mm(out[t], weight)
            coming = product if lengths is None else coming + product
            for total, one in zip(out_parameters, each):
                if total is not None and one is not None:
                    total += one
        for target, found in zip(out_states, (coming, *carried)):
            target.copy_(found)

    @staticmethod
    def weight_gradient(*, grad: Tensor, spikes: Tensor, out: Tensor) -> None:
        """Fill `out` `[N, N]` with `grad.T @ spikes`, the product of two tensors `[M, N]`."""
        torch.mm(grad.T, spikes, out=out)

    @staticmethod
    def _one_step(lengths: Tensor | None, t: int) -> Tensor | None:
        """Return lengths for step `t` alone: 1 for a sample that has it, else 0."""
        return None if lengths is None else (lengths - t).clamp(0, 1)
