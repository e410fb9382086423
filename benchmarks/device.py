"""What only a CUDA device can do, in one place: the tests put another in its place."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True)
class Recorded:
    """A step that runs again without Python: call it for what the step returned, filled anew.

    A CUDA graph reads and writes the memory of the tensors it was recorded with and does not keep
    them, so `step`, which does, is kept beside it.
    """

    step: Callable[[], Any]
    found: Any
    replay: Callable[[], object]

    def __call__(self) -> Any:
        """Run the step again."""
        self.replay()
        return self.found


@dataclass(frozen=True)
class Device:
    """The current CUDA device.

    Attributes:
        type: as torch calls it.
        long: steps and neurons of a sequence with more numbers than 32 bits count.
    """

    type: str = "cuda"
    long: tuple[int, int] = (3, 1 << 30)

    def last(self) -> str:
        """Return the last device's name, which is not the current one where there are several."""
        return f"cuda:{torch.cuda.device_count() - 1}"

    def free_bytes(self) -> int:
        """Return how much of its memory is free."""
        return torch.cuda.mem_get_info()[0]

    def on_another_stream(self, run: Callable[[], T]) -> T:
        """Run something on a stream that is not the current one."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            found = run()
        torch.cuda.current_stream().wait_stream(stream)
        return found

    def record(self, step: Callable[[], Any]) -> Recorded:
        """Record a step as a CUDA graph."""
        for _ in range(3):
            self.on_another_stream(step)
        return Recorded(step, *self.capture(step))

    def capture(self, step: Callable[[], Any]) -> tuple[Any, Callable[[], object]]:
        """Return what a step returned while it was captured, and what replays it."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = step()
        return found, graph.replay

    def kernel_seconds(self, prepare: Callable[[], Callable[[], object]]) -> float:
        """Return the seconds that a step's kernels take, without the host that asks for them.

        The step is replayed as a CUDA graph between two events, with nothing of it in the device's
        cache; the median of many times.

        Args:
            prepare: returns the step. It is called on the stream on which the step is captured,
                because autograd goes back on the stream on which it went forward.
        """
        from triton.testing import do_bench

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step = prepare()
            for _ in range(3):
                step()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        return 1e-3 * do_bench(graph.replay, warmup=5, rep=40, return_mode="median")

    def copy_seconds(self, copy: Callable[[], object]) -> float:
        """Return the seconds of a copy on the device, which is one launch.

        Not as a graph: copies of some sizes were seen to take half as long again in one.
        """
        from triton.testing import do_bench

        return 1e-3 * do_bench(copy, warmup=10, rep=60, return_mode="median")

    def peak_mb(self, step: Callable[[], object]) -> float:
        """Return by how many MB a step raises what is allocated on the device."""
        step()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
