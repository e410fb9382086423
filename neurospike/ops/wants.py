"""What a call of a fused operator is asked for, as bits of one number."""

from collections.abc import Iterable

# Forward: spikes, the states at every step, and what the backward pass will need.
SPIKES, TRACES, SAVED = 1, 2, 4
# Backward, beside the gradient of the current: of the states, and from here on of each parameter.
STATES, FIRST_PARAMETER = 1, 2
# Both: sequences lie in memory by sample, as `[B, T, *F]` does.
BY_SAMPLE = 1 << 30
# Backward: a recurrent layer may write over the sums that it saved.
OVERWRITE = 1 << 31


def mask_of(flags: Iterable[object]) -> int:
    """Return which of some flags are set, as the bits of a number."""
    found = 0
    for k, flag in enumerate(flags):
        if flag:
            found |= 1 << k
    return found
