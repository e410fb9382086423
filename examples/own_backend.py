"""A backend of one's own: two functions and one row of the table.

This one steps a recorded neuron and its derived gradient through time in plain torch. It is slow,
but it is all there is to a backend: a compiled one differs in how it runs the very same operations.
`python examples/own_backend.py`
"""

import itertools

# --8<-- [start:functions]
import torch

import neurospike as ns
from neurospike import ops
from neurospike.backend import dispatch
from neurospike.neurons import rule, stepped

NAME = "stepped"


def forward(
    *,
    current,
    states,
    parameters,
    neuron,
    numbers,
    steps,
    constant,
    spikes,
    traces,
    finals,
    lengths=None,
):
    """Fill `spikes` `[T, B, *F]`, `traces` (one for each state, or none) and `finals` `[B, *F]`."""
    step = stepped.step_of(neuron, numbers, finals[0])
    now = states or [torch.zeros_like(final) for final in finals]
    values = [_features(value, finals[0]) for value in parameters]
    for t in range(steps):
        x = (current if constant else current[t]).to(finals[0].dtype)
        before = now
        spike, *now = step(x, *before, *values)
        if lengths is not None:  # a sample that is over fires no more and stays as it is
            goes = _goes(lengths, t, spike)
            spike = torch.where(goes, spike, 0.0)
            now = [torch.where(goes, *both) for both in zip(now, before)]
        if spikes is not None:
            spikes[t] = spike
        for trace, state in zip(traces, now):
            trace[t] = state
    for final, state in zip(finals, now):
        final.copy_(state)


def backward(
    *,
    grad_spikes,
    grad_traces,
    grad_finals,
    current,
    states,
    parameters,
    neuron,
    numbers,
    steps,
    constant,
    out,
    out_states,
    out_parameters,
    lengths=None,
):
    """Fill the gradients of current, states (all or none) and parameters (each that is no None)."""
    shape = current.shape if constant else current.shape[1:]
    zeros = torch.zeros(shape, dtype=ops.state_dtype(current.dtype))
    values = [_features(value, zeros) for value in parameters]
    step = stepped.step_of(neuron, numbers, zeros)
    count = len(grad_finals)
    adjoint = stepped.adjoint_of(neuron, numbers, zeros, (True,) * (1 + count))
    befores = [states or [zeros] * count]
    for t in range(steps):  # the forward once more: nothing was saved but the inputs
        x = (current if constant else current[t]).to(zeros.dtype)
        befores.append(step(x, *befores[-1], *values)[1:])
    carries = [zeros if one is None else one for one in grad_finals]
    sums = [zeros for _ in parameters]
    out.zero_()
    for t in reversed(range(steps)):
        x = (current if constant else current[t]).to(zeros.dtype)
        of_spike = zeros if grad_spikes is None else grad_spikes[t].to(zeros.dtype)
        of_states = [
            carry if trace is None else trace[t] + carry
            for trace, carry in zip(grad_traces or [None] * count, carries)
        ]
        d, *found = adjoint(x, *befores[t], *values, of_spike, *of_states)
        if lengths is not None:
            goes = _goes(lengths, t, d)
            others = [*carries, *(torch.zeros_like(d) for _ in sums)]
            d, *found = (torch.where(goes, *both) for both in zip((d, *found), (0.0, *others)))
        carries, sums = found[:count], [a + b for a, b in zip(sums, found[count:])]
        if constant:
            out += d
        else:
            out[t] = d
    for target, carry in zip(out_states, carries):
        target.copy_(carry)
    for target, total in zip(out_parameters, sums):
        if target is not None:
            each = total.flatten(1).sum(0)
            target.view(-1).copy_(each if target.numel() > 1 else each.sum(0))


def _goes(lengths, t, like):
    """Which samples have a step `t`, in a shape that broadcasts against `[B, *F]`."""
    return (t < lengths).view(-1, *(1,) * (like.dim() - 1))


def _features(values, like):
    """One value per neuron `[P]`, or one for all `[1]`, in the shape of the features of `like`."""
    return values if values.numel() == 1 else values.view(like.shape[1:])


# --8<-- [end:functions]


# --8<-- [start:row]
def register():
    """Add the row. One that stays belongs into `dispatch.TABLE` and needs nothing else."""
    row = dispatch.Backend(NAME, __name__, device_types=("cpu",), instead="numba")
    dispatch.TABLE[NAME] = row
    ops.define(row)


# --8<-- [end:row]


def run(backend, reset, reset_delay, lengths):
    """Outputs and gradients of a layer with learned decays, on values that are always the same."""
    drawn = torch.Generator().manual_seed(0)
    current, mem = torch.randn(12, 3, 70, generator=drawn), torch.randn(3, 70, generator=drawn)
    beta = 0.5 + 0.5 * torch.rand(70, generator=drawn)
    inputs = [t.requires_grad_() for t in (current, mem, beta, torch.tensor(0.8))]
    current, mem, beta, threshold = inputs
    outputs = ns.lif(
        current,
        mem,
        beta=beta,
        threshold=threshold,
        reset=reset,
        reset_delay=reset_delay,
        return_trace=True,
        backend=backend,
        lengths=lengths,
    )
    total = sum((out * torch.randn(out.shape, generator=drawn)).sum() for out in outputs)
    return [out.detach() for out in outputs], torch.autograd.grad(total, inputs)


def main():
    """Compare with the reference under every rule; return the largest distance of a gradient."""
    worst = 0.0
    for reset in rule.RESETS:
        for case in itertools.product((reset,), (True, False), (None, [12, 0, 5])):
            (spikes, *_), gradients = run(NAME, *case)
            (same, *_), wanted = run("reference", *case)
            assert torch.equal(spikes, same), case
            for got, want in zip(gradients, wanted):
                worst = max(worst, float((got - want).norm() / want.norm().clamp_min(1e-30)))
    return worst


if __name__ == "__main__":
    register()
    print(f"{NAME}: spikes equal under all rules, gradients within {main():.1e} of the reference")
    print(f"backends: {', '.join(ns.backends())}")
