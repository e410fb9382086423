"""A step recorded once as a CUDA graph and replayed, so that the host launches one graph per step.

A small network's step is hundreds of kernels of a few microseconds each, which Python takes longer
to launch than a GPU to run. A graph launches them all at once. It reads and writes the memory that
it was recorded with, so what changes from call to call is copied into static inputs.

`SNNTrainer` and loops of one's own (`graphed`) share `Graphed`. What only a CUDA device can do is
in `Cuda`, which tests replace.
"""

import atexit
import contextlib
import random
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from neurospike.backend.garbage import uncollected
from neurospike.errors import GraphError

T = TypeVar("T")
Kind = tuple[Any, ...]  # shape, number format and device of each input
WARM_UP = 3  # calls before a step is recorded: libraries and optimisers make what they keep


def graphed(step: Callable[..., Any], *examples: Tensor) -> "Graphed":
    """Return a callable that runs a step as one CUDA graph, for training loops of one's own.

        def step(images, labels):
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.detach()

        fast = ns.graphed(step, images, labels)  # nothing is run yet
        for images, labels in batches:
            loss = fast(images, labels)

    The first 3 calls run the step as it is, on a stream of their own, and count as any other. The
    fourth records it, which runs nothing, and replays what was recorded; so do all that follow.
    No step is wasted, and what torch draws at random on the device is drawn anew at every replay,
    as without a graph. Arguments of another shape, such as a last smaller batch, run as they are.

    A graph repeats operations, not Python. So a step may not look at what tensors hold (`.item()`,
    a branch on a tensor, printing one), draw random numbers on the CPU, or count in Python; hooks
    are called while it is recorded only, and numbers that Python computes stay what they were then.
    Encoders look at pictures for NaN outside a graph only. An optimiser has to be one that may be
    recorded, with a rate that it reads on the device: `torch.optim.Adam(parameters,
    lr=torch.tensor(1e-3, device="cuda"), fused=True, capturable=True)`; set the rate by `fill_`.
    Gradients must be None where the step begins, as `zero_grad(set_to_none=True)` leaves them. Of a
    model or an optimiser that loads a state or moves, make a new one.

    Args:
        step: takes tensors on a CUDA device; returns anything.
        examples: tensors of the shapes, number formats and device of the step's arguments. Their
            values are not used.

    Returns:
        A callable with the step's arguments. A replay returns the same tensors each time, filled
        anew: read or `clone` them before the next call. No gradients flow to its arguments.

    Raises:
        TypeError: examples that are no tensors.
        GraphError: examples that are not on one CUDA device; by the fourth call, a step that
            cannot be recorded. The weights are then those after the third; set the gradients to
            None before going on without a graph.
    """
    if not examples or not all(isinstance(example, Tensor) for example in examples):
        got = ", ".join(type(example).__name__ for example in examples) or "none"
        raise TypeError(
            f"graphed needs the step's arguments as examples, which are tensors; got {got}: use "
            "graphed(step, images, labels)"
        )
    devices = {example.device for example in examples}
    cuda = cuda_of(examples[0].device) if len(devices) == 1 else None
    if cuda is None:
        where = " and ".join(sorted(map(str, devices)))
        raise GraphError(
            f"graphed: the examples are on {where}, and a graph is replayed by one CUDA device: "
            "move them and the model there, or call the step itself",
            f"the examples are on {where}",
        )
    return Graphed(step, cuda, _kind_of(examples))


class Graphed:
    """A step that is replayed as a CUDA graph from its fourth call on; see `graphed`."""

    def __init__(self, step: Callable[..., Any], cuda: "Cuda", kind: Kind | None = None) -> None:
        """kind: of the inputs to record; None: those that come first three times."""
        self.step, self.cuda = step, cuda
        self.replays = 0  # calls that were replayed
        self._kind = kind
        self._seen: Counter[Kind] = Counter()
        self._inputs: list[Tensor] = []
        self._replay: Callable[[], Any] | None = None

    def __call__(self, *inputs: Tensor) -> Any:
        """Run the step, or replay it. Raises GraphError if it cannot be recorded."""
        kind = _kind_of(inputs)
        if self._kind is not None and kind != self._kind:
            return self.step(*inputs)
        if self._replay is None:
            if self._seen[kind] < WARM_UP:
                self._seen[kind] += 1
                return self.cuda.on_another_stream(lambda: self.step(*inputs))
            self._inputs = [given.detach().clone() for given in inputs]
            self._kind, self._replay = kind, self._record()
        for static, given in zip(self._inputs, inputs):
            static.copy_(given.detach() if given.requires_grad else given, non_blocking=True)
        self.replays += 1
        return self._replay()

    def _record(self) -> Callable[[], Any]:
        before = torch.get_rng_state(), random.getstate()
        try:
            replay = self.cuda.capture(lambda: self.step(*self._inputs))
            drew = not torch.equal(torch.get_rng_state(), before[0])
            drew = drew or random.getstate() != before[1]
        except Exception as error:  # torch, backends and models raise errors of any type
            raise _cannot(str(error).partition("\n")[0].rstrip(".") or repr(error)) from error
        finally:
            torch.set_rng_state(before[0])
            random.setstate(before[1])
        if drew:
            raise _cannot("it draws random numbers on the CPU, which no replay would draw anew")
        return replay


class Cuda:
    """What only a CUDA device can do."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream: torch.cuda.Stream | None = None

    def on_another_stream(self, run: Callable[[], T]) -> T:
        """Run something on a second stream, after what the current one was given so far."""
        if self._stream is None:
            self._stream = torch.cuda.Stream(self.device)
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                return run()
        finally:
            current.wait_stream(self._stream)

    def capture(self, step: Callable[[], T]) -> Callable[[], T]:
        """Record a step without running it; return a function that replays it for its result.

        After an error the device, its memory and its random numbers are as before.
        """
        random_state = torch.cuda.get_rng_state(self.device)
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()  # a graph has memory of its own, and cannot take what is cached
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        # A stream of its own: a library's workspace for it then belongs to the graph's memory.
        stream = torch.cuda.Stream(self.device)
        try:
            with torch.cuda.stream(stream), uncollected():
                # Other threads, such as one that draws curves, may use the device meanwhile.
                graph.capture_begin(pool=pool, capture_error_mode="thread_local")
                found = step()
                graph.capture_end()
        except BaseException:
            with torch.cuda.stream(stream):
                _abandon(graph, pool)
            with torch.cuda.device(self.device):
                _mend(random_state)
            raise

        def replay() -> T:
            graph.replay()
            return found

        return replay


def _abandon(graph: torch.cuda.CUDAGraph, pool: Any) -> None:
    """End a recording that failed."""
    with contextlib.suppress(RuntimeError):
        graph.capture_end()
    # A forbidden operation has ended the recording already. Before 2.12, torch's `capture_end` then
    # fails before it has notified the allocator, which would never free memory again. Where the
    # allocator has been notified, it refuses to be notified again.
    with contextlib.suppress(RuntimeError, AttributeError):
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
    graph.reset()
    atexit.register(id, graph)  # keeps it alive: the allocator may use it until the process ends


def _mend(random_state: Tensor) -> None:
    """Restore the device's random numbers.

    A generator that still believes itself in a recording, and would fail from now on with "Offset
    increment outside graph capture", is replaced first.
    """
    index = torch.cuda.current_device()
    generator = torch.cuda.default_generators[index]
    try:
        torch.rand((), device=f"cuda:{index}")
    except RuntimeError:
        generator.graphsafe_set_state(torch.Generator(f"cuda:{index}"))
    generator.set_state(random_state)


def cuda_of(device: torch.device) -> Cuda | None:
    """Return what a CUDA device can do; None for a device of another kind."""
    return Cuda(device) if device.type == "cuda" else None


def _kind_of(inputs: tuple[Tensor, ...]) -> Kind:
    return tuple([(given.shape, given.dtype, given.device) for given in inputs])


def _cannot(reason: str) -> GraphError:
    return GraphError(
        f"the step cannot be recorded as a CUDA graph: {reason}. Keep out of it what looks at "
        "tensors or happens in Python, give it an optimiser made with capturable=True, or call "
        "the step itself",
        reason,
    )
