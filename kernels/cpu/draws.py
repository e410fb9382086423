"""Random spikes on the CPU from the same random numbers as torch's, compared as they are drawn.

`torch.rand` makes [T, B, *F] floats one after another on one thread, which costs as much as an
event-driven layer. Its generator is the Mersenne Twister (Matsumoto and Nishimura 1998,
doi:10.1145/272991.272995), whose next 624 numbers are made from the last 624 in three loops without
dependencies, which vectorise. A number's lowest 24 bits are the digits of the float in [0, 1).

The generator's state is torch's, read before and written after, so that the stream continues as if
torch had drawn. `usable` returns whether this torch's state and stream are those known here. Torch
has no lock on a generator, so another thread may draw from it meanwhile: then the draws made here
are dropped, and torch draws. The check and the writing of the state are microseconds apart: numbers
that another thread draws from the same generator in between are drawn here too.
"""

import array
import functools
import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neurospike.backend import parallel
from neurospike.kernels.cpu._compile import compiled
from neurospike.kernels.cpu._intrinsics import array_at

SIZE, SHIFT = 624, 397  # numbers of the generator's state, and the distance of those combined
# Bytes of the seed, with which the state begins. Then follow `left` (32 bits, at byte 8), the place
# of the next number (64 bits, at byte 16) and the numbers (64 bits each, from byte 24).
HEADER = 8
DIGITS = float(1 << 24)  # a float32 in [0, 1) is a whole number below this, divided by it

# Names for the compiled code.
uint8, uint32, uint64, int32, float32 = np.uint8, np.uint32, np.uint64, np.int32, np.float32
BYTE, WORD, LONG, NUMBER = uint8(0), uint32(0), uint64(0), float32(0)

_lock = threading.Lock()


def _mix(out, combined, old, following):
    """Fill `out` with new numbers of the state: `combined ^ twist(old, following)`."""
    for i in range(out.size):
        y = (old[i] & uint32(0x80000000)) | (following[i] & uint32(0x7FFFFFFF))
        odd = uint32(0) - (following[i] & uint32(1))
        out[i] = combined[i] ^ (y >> uint32(1)) ^ (odd & uint32(0x9908B0DF))


def _twist(new, old):
    """Fill `new` with the next 624 numbers of the state, made from the last 624."""
    far = SIZE - SHIFT  # 227
    _mix(new[:far], old[SHIFT:SIZE], old[:far], old[1 : far + 1])
    _mix(new[far : 2 * far], new[:far], old[far : 2 * far], old[far + 1 : 2 * far + 1])
    last = SIZE - 1
    _mix(
        new[2 * far : last],
        new[far : last - far],
        old[2 * far : last],
        old[2 * far + 1 : SIZE],
    )
    _mix(new[last:SIZE], new[last - far : last - far + 1], old[last:SIZE], new[:1])


def _fire(out, state, limit):
    """Write 1 where the number drawn is below `limit`, in units of 1 / `DIGITS`, else 0."""
    for i in range(out.size):
        y = state[i]
        y ^= y >> uint32(11)
        y ^= (y << uint32(7)) & uint32(0x9D2C5680)
        y ^= (y << uint32(15)) & uint32(0xEFC60000)
        y ^= y >> uint32(18)
        draw = float32(int32(y & uint32(0xFFFFFF)))
        out[i] = uint8(1) if draw < limit[i] else uint8(0)


def _draw(job_at):
    """Fill `out` `[T, N]` from the generator's state and limits `[N]`, and update the state."""
    job = array_at(job_at, 10, 0)
    place = job[0]
    out = array_at(job[2], job[3], BYTE)
    limit = array_at(job[4], job[5], NUMBER)
    long = array_at(job[6], job[7], LONG)
    scratch = array_at(job[8], job[9], WORD)
    old, new = scratch[:SIZE], scratch[SIZE : 2 * SIZE]
    for i in range(SIZE):
        old[i] = uint32(long[i])
    at, n = 0, 0
    while at < out.size:
        if place == SIZE:
            _twist(new, old)
            old, new = new, old
            place = 0
        count = min(SIZE - place, out.size - at, limit.size - n)
        _fire(out[at : at + count], old[place : place + count], limit[n : n + count])
        at += count
        place += count
        n += count
        if n == limit.size:
            n = 0
    for i in range(SIZE):
        long[i] = uint64(old[i])
    job[0] = place


@functools.cache
def _compiled() -> Any:
    names: dict[str, Any] = {"BYTE": BYTE, "WORD": WORD, "LONG": LONG}
    names |= {"uint8": uint8, "uint32": uint32, "uint64": uint64}
    names |= {"int32": int32, "float32": float32}
    return compiled(_draw, names, np.float32)


def spikes(probability: Tensor, num_steps: int, generator: torch.Generator | None) -> Tensor | None:
    """Return uint8 `[T, *N]`: 1 where a draw of `torch.rand` is below the float32 `probability`.

    If another thread has drawn from the generator meanwhile, return None and do not change it.
    """
    generator = torch.default_generator if generator is None else generator
    out = torch.empty((num_steps, *probability.shape), dtype=torch.uint8, device="cpu")
    if out.numel() == 0:
        return out
    limit = (probability * DIGITS).contiguous()
    scratch = torch.empty(2 * SIZE, dtype=torch.int32, device="cpu")
    with _lock:
        state = generator.get_state()
        before = state.clone()
        numbers = state.numpy()
        left = numbers[HEADER : HEADER + 4].view(np.int32)
        at = numbers[HEADER + 8 : HEADER + 16].view(np.uint64)
        places = (out, limit, state[HEADER + 16 :], scratch)
        # `left` is one more than the numbers that are left: at 1 the next draw makes new ones.
        place = SIZE if left[0] == 1 else int(at[0])
        job = array.array("q", [place, 0])
        for one, count in zip(places, (out.numel(), limit.numel(), SIZE, 2 * SIZE)):
            job.extend((one.data_ptr(), count))
        parallel.run(_compiled(), job, 1)
        place = job[0]
        left[0], at[0] = SIZE - place + 1, place
        if not torch.equal(generator.get_state(), before):
            return None
        generator.set_state(state)
    return out


def usable(probability: Tensor) -> bool:
    """Whether spikes can be drawn here: of plain float32, by a torch whose stream is known here."""
    return type(probability) is Tensor and probability.dtype == torch.float32 and _known()


@functools.cache
def _known() -> bool:
    """Whether this torch's generator is the one above: two streams agree over many states."""
    ours, theirs = (torch.Generator().manual_seed(2147483647) for _ in range(2))
    probability = torch.linspace(0, 1, 331)
    for steps in (1, 3, 7):
        found = spikes(probability, steps, ours)
        wanted = torch.rand((steps, 331), generator=theirs) < probability
        if found is None or not torch.equal(found, wanted.to(torch.uint8)):
            return False
    return torch.equal(ours.get_state(), theirs.get_state())
