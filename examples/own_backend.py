"""A backend of one's own: two functions and one row of the table.

This one steps the formulas through time in plain torch, forward and backward. It is slow, but it is
all there is to a backend: a compiled one differs in how it runs the very same formulas.
`python examples/own_backend.py`
"""

import torch

import neurospike as ns
from neurospike import dispatch, formulas, ops, rule
from neurospike.binding import bind

NAME = "stepped"


# --8<-- [start:functions]
def forward(current, mem, beta, threshold, key, parameters, steps, constant, spikes, final, trace):
    """Fill `spikes`, `trace` `[T, B, *F]` (each only if not empty) and `final` `[B, *F]`."""
    step = bind(formulas.step, rule.from_key(key).names)
    state = torch.zeros_like(final) if mem is None else mem.clone()
    beta, threshold = _features(beta, final), _features(threshold, final)
    for t in range(steps):
        now = (current if constant else current[t]).to(state.dtype)
        spike, state, _ = step(state, now, beta, threshold)
        if spikes.numel():
            spikes[t] = spike
        if trace.numel():
            trace[t] = state
    final.copy_(state)


def backward(
    grad_spikes,
    grad_final,
    grad_trace,
    current,
    mem,
    beta,
    threshold,
    key,
    parameters,
    steps,
    constant,
    out,
    out_mem,
    out_beta,
    out_threshold,
):
    """Fill the gradients of current, `mem`, `beta` and `threshold`, the last three if not empty."""
    wanted = rule.from_key(key)
    step, step_vjp = (bind(one, wanted.names) for one in (formulas.step, formulas.step_vjp))
    like = current if constant else current[0] if steps else out_mem
    state = torch.zeros(like.shape, dtype=beta.dtype) if mem is None else mem
    b, th = _features(beta, state), _features(threshold, state)
    befores, charged = [], []
    for t in range(steps):  # the forward once more: nothing was saved but the inputs
        now = (current if constant else current[t]).to(state.dtype)
        befores.append(state)
        _, state, v = step(state, now, b, th)
        charged.append(v)
    carry = torch.zeros_like(state) if grad_final is None else grad_final
    d_beta, d_threshold = torch.zeros_like(state), torch.zeros_like(state)
    out.zero_()
    for t in reversed(range(steps)):
        zero = torch.zeros_like(state)
        grad_spike = zero if grad_spikes is None else grad_spikes[t].to(state.dtype)
        grad_mem = carry if grad_trace is None else grad_trace[t] + carry
        h = wanted.surrogate(charged[t] - th, *parameters)
        d, carry, one, other = step_vjp(befores[t], charged[t], b, th, h, grad_spike, grad_mem)
        d_beta, d_threshold = d_beta + one, d_threshold + other
        if constant:
            out += d
        else:
            out[t] = d
    if out_mem.numel():
        out_mem.copy_(carry)
    for sums, filled in ((d_beta, out_beta), (d_threshold, out_threshold)):
        if filled.numel():
            a_neuron = sums.flatten(1).sum(0)
            filled.copy_(a_neuron if filled.numel() > 1 else a_neuron.sum(0, keepdim=True))


def _features(values, like):
    """One value a neuron `[P]`, or one for all `[1]`, in the shape of the features of `like`."""
    return values if values.numel() == 1 else values.view(like.shape[1:])


# --8<-- [end:functions]


# --8<-- [start:row]
def register():
    """Add the row. One that stays belongs into `dispatch.TABLE` and needs nothing else."""
    row = dispatch.Backend(NAME, __name__, device_types=("cpu",), instead="numba")
    dispatch.TABLE[NAME] = row
    ops.define(row)


# --8<-- [end:row]


def run(backend, reset, reset_delay):
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
    )
    total = sum((out * torch.randn(out.shape, generator=drawn)).sum() for out in outputs)
    return [out.detach() for out in outputs], torch.autograd.grad(total, inputs)


def main():
    """Compare with the reference under every rule; return the largest distance of a gradient."""
    worst = 0.0
    for reset in rule.RESETS:
        for reset_delay in (True, False):
            (spikes, *_), gradients = run(NAME, reset, reset_delay)
            (same, *_), wanted = run("reference", reset, reset_delay)
            assert torch.equal(spikes, same), (reset, reset_delay)
            for got, want in zip(gradients, wanted):
                worst = max(worst, float((got - want).norm() / want.norm().clamp_min(1e-30)))
    return worst


if __name__ == "__main__":
    register()
    print(f"{NAME}: spikes equal under all rules, gradients within {main():.1e} of the reference")
    print(f"backends: {', '.join(ns.backends())}")
