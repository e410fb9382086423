"""The neurons that come with the library, each one scalar function.

Each takes `(current, *states, *parameters)` of one time step and returns `(spike, *new_states)`.
Unless a function says otherwise, time is in steps, and membranes and currents have the unit of the
threshold. For a neuron with several kinds of reset, a function takes the reset and returns the
neuron.
"""

from neurospike.formulas import detach, exp, fire, heaviside, sqrt, where


def lif_subtract(current, mem, beta, threshold):
    """LIF that subtracts the threshold at the step after a spike; snnTorch's `Leaky`."""
    v = beta * mem + current - heaviside(mem - threshold) * threshold
    return fire(v - threshold), v


def lif_zero(current, mem, beta, threshold):
    """LIF set to zero at the step after a spike, before that step's current is added."""
    v = beta * ((1.0 - heaviside(mem - threshold)) * mem) + current
    return fire(v - threshold), v


def lif_none(current, mem, beta, threshold):
    """LIF without a reset."""
    v = beta * mem + current
    return fire(v - threshold), v


def lif_subtract_immediate(current, mem, beta, threshold):
    """LIF that subtracts the threshold at once; the gradient flows through the spike."""
    v = beta * mem + current
    spike = fire(v - threshold)
    return spike, v - spike * threshold


def lif_zero_immediate(current, mem, beta, threshold):
    """LIF set to zero at once; the gradient flows through the spike."""
    v = beta * mem + current
    spike = fire(v - threshold)
    return spike, v * (1.0 - spike)


def lif_subtract_detached(current, mem, beta, threshold):
    """LIF that subtracts the threshold at once, without a gradient through the reset."""
    v = beta * mem + current
    spike = fire(v - threshold)
    return spike, v - detach(spike) * threshold


def lif_zero_detached(current, mem, beta, threshold):
    """LIF set to zero at once, without a gradient through the reset."""
    v = beta * mem + current
    spike = fire(v - threshold)
    return spike, v * (1.0 - detach(spike))


def lif_to(current, mem, beta, threshold, reset):
    """LIF set to the value `reset` at once; the gradient flows through the spike."""
    v = beta * mem + current
    spike = fire(v - threshold)
    return spike, to_value(v, spike, reset)


def li(current, mem, beta):
    """Leaky integrator, which never fires."""
    return 0.0, beta * mem + current


# Neurons by their reset and its timing.
LIF = {
    "subtract delayed": lif_subtract,
    "zero delayed": lif_zero,
    "none delayed": lif_none,
    "subtract immediate": lif_subtract_immediate,
    "zero immediate": lif_zero_immediate,
    "subtract detached": lif_subtract_detached,
    "zero detached": lif_zero_detached,
}


def subtract(v, mem, threshold):
    """Subtract the threshold at the step after a spike."""
    return v - heaviside(mem - threshold) * threshold


def zero(v, mem, threshold):
    """Set to zero at the step after a spike."""
    return v - v * heaviside(mem - threshold)


def none(v, mem, threshold):
    """No reset."""
    return v


RESETS = {"subtract": subtract, "zero": zero, "none": none}


def subtract_now(v, spike, threshold):
    """Subtract the threshold at the spike."""
    return v - spike * threshold


def zero_now(v, spike, threshold):
    """Set to zero at the spike."""
    return v * (1.0 - spike)


def to_value(v, spike, reset):
    """Set to the value `reset` at the spike."""
    return v * (1.0 - spike) + spike * reset


RESETS_AT_ONCE = {"subtract": subtract_now, "zero": zero_now, "none": none}


def lif_cleared(current, mem, beta, threshold):
    """LIF set to zero, with its current, at the step after a spike; snnTorch's `RLeaky`."""
    v = zero(beta * mem + current, mem, threshold)
    return fire(v - threshold), v


def synaptic(reset=subtract):
    """LIF behind a decaying synaptic current; snnTorch's `Synaptic`, arXiv:2109.12894."""

    def synaptic(current, syn, mem, alpha, beta, threshold):
        syn = alpha * syn + current
        v = reset(beta * mem + syn, mem, threshold)
        return fire(v - threshold), syn, v

    return synaptic


def synaptic_at_once(reset=zero_now):
    """`synaptic` with an immediate reset, as NIR's CubaLIF; SpikingJelly's `CUBALIFNode`."""

    def synaptic_at_once(current, syn, mem, alpha, beta, threshold):
        syn = alpha * syn + current
        v = beta * mem + syn
        spike = fire(v - threshold)
        return spike, syn, reset(v, spike, threshold)

    return synaptic_at_once


def synaptic_to(current, syn, mem, alpha, beta, threshold, reset):
    """`synaptic` set to the value `reset` at once."""
    syn = alpha * syn + current
    v = beta * mem + syn
    spike = fire(v - threshold)
    return spike, syn, to_value(v, spike, reset)


def one_to_one(reset=subtract):
    """LIF fed back its own last spike; snnTorch's `RLeaky` with `all_to_all=False`."""

    def one_to_one(current, spike, mem, beta, weight, threshold):
        v = reset(beta * mem + current + weight * spike, mem, threshold)
        spike = fire(v - threshold)
        return spike, spike, v

    return one_to_one


def synaptic_one_to_one(reset=subtract):
    """`one_to_one` behind a synaptic current; snnTorch's `RSynaptic` with `all_to_all=False`."""

    def synaptic_one_to_one(current, spike, syn, mem, alpha, beta, weight, threshold):
        syn = alpha * syn + current + weight * spike
        v = reset(beta * mem + syn, mem, threshold)
        spike = fire(v - threshold)
        return spike, spike, syn, v

    return synaptic_one_to_one


def alpha(current, exc, inh, mem, alpha, beta, tau, threshold):
    """Membrane as a difference of two decaying traces; snnTorch's `Alpha`, arXiv:2109.12894."""
    rising = alpha * exc + current
    falling = beta * inh - current
    v = tau * (rising + falling)
    reset = heaviside(mem - threshold)
    v = v - v * reset
    return fire(v - threshold), rising - rising * reset, falling - falling * reset, v


def alpha_subtract(current, exc, inh, mem, alpha, beta, tau, threshold):
    """`alpha` with a reset by subtraction, as snnTorch computes it."""
    rising = alpha * exc + current
    falling = beta * inh - current
    reset = heaviside(mem - threshold)
    v = tau * (rising + falling) - -inh * reset
    return fire(v - threshold), rising - threshold * reset, falling - falling * reset, v


def alpha_none(current, exc, inh, mem, alpha, beta, tau, threshold):
    """`alpha` without a reset."""
    rising = alpha * exc + current
    falling = beta * inh - current
    v = tau * (rising + falling)
    return fire(v - threshold), rising, falling, v


def alif(current, mem, tired, beta, rho, rise, threshold):
    """LIF whose threshold rises with every spike; Bellec et al. 2018, arXiv:1803.09574, eq. 1-3."""
    bar = threshold + rise * tired
    v = beta * mem + current
    spike = fire(v - bar)
    return spike, v - spike * bar, rho * tired + (1.0 - rho) * spike


def se_adlif(current, mem, adaptation, d_u, d_w, a, b, q, threshold):
    """Adaptive LIF by symplectic Euler steps; Baronig et al. 2024, arXiv:2408.07517."""
    u = d_u * mem + (1.0 - d_u) * (current - adaptation)
    spike = fire(u - threshold)
    u = u * (1.0 - detach(spike))
    w = d_w * adaptation + (1.0 - d_w) * q * (a * u + b * spike)
    return spike, u, w


def izhikevich(current, v, u, a, b, c, d, dt):
    """Two states, many patterns of firing; Izhikevich 2003, doi:10.1109/TNN.2003.820440; mV, ms."""
    v = v + dt * (0.04 * v * v + 5.0 * v + 140.0 - u + current)
    u = u + dt * a * (b * v - u)
    spike = fire(v - 30.0)
    return spike, where(v > 30.0, c, v), u + spike * d


def qif(current, mem, rate, gain, critical, threshold):
    """Quadratic integrate-and-fire; Ermentrout 1996, doi:10.1162/neco.1996.8.5.979."""
    v = mem + rate * (gain * mem * (mem - critical) + current)
    spike = fire(v - threshold)
    return spike, v * (1.0 - detach(spike))


def eif(current, mem, rate, sharpness, critical, threshold):
    """Exponential integrate-and-fire; Fourcaud-Trocme et al. 2003, J. Neurosci. 23(37)."""
    v = mem + rate * (sharpness * exp((mem - critical) / sharpness) - mem + current)
    spike = fire(v - threshold)
    return spike, v * (1.0 - detach(spike))


def brf(current, real, imag, tired, omega, offset, gamma, threshold, dt):
    """Balanced resonate-and-fire; Higuchi et al. 2024, arXiv:2402.14603; omega in rad/s."""
    damping = (sqrt(1.0 - dt * omega * (dt * omega)) - 1.0) / dt - offset - tired
    x = real + dt * (damping * real - omega * imag + current)
    y = imag + dt * (omega * real + damping * imag)
    spike = fire(x - threshold - tired)
    return spike, x, y, gamma * tired + spike


ALPHA = {"zero": alpha, "subtract": alpha_subtract, "none": alpha_none}
