"""The results that a call of a fused operator is to compute, as bits of one number."""

from collections.abc import Iterable

# Forward: spikes, the states at every step, and what the backward pass will need.
SPIKES, TRACES, SAVED = 1, 2, 4
# Backward, besides the gradient of the current: those of the states, and from this bit on one bit
# for each parameter.
STATES, FIRST_PARAMETER = 1, 2
# Both: sequences lie in memory as `[B, T, *F]` does.
BY_SAMPLE = 1 << 30
# Backward: a recurrent layer may overwrite the sums of currents that it saved.
OVERWRITE = 1 << 31


def mask_of(flags: Iterable[object]) -> int:
    """Return flags as the bits of a number, the first one as the lowest bit."""
    found = 0
    for k, flag in enumerate(flags):
        if flag:
            found |= 1 << k
    return found
