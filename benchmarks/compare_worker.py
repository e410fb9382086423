"""One side of `benchmarks.compare`: runs a case whenever a line asks for it.

Started as a file, with the checkout to measure first on the path: so both sides are measured by the
same code, and it uses nothing but what `neurospike` promises to everybody.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Case = Callable[[Any, Any, str], Callable[[], object]]


def _layer(
    shape: tuple[int, ...],
    train: bool = True,
    learned: dict[str, float] | None = None,
    **options: Any,
) -> Case:
    def case(torch: Any, ns: Any, backend: str) -> Callable[[], object]:
        current = (0.5 * torch.randn(shape)).requires_grad_(train)
        grad = torch.randn(shape)
        leaves = {
            name: torch.full((shape[-1],), value, requires_grad=True)
            for name, value in (learned or {}).items()
        }
        given = {"beta": 0.95, "backend": backend, **options, **leaves}

        def call() -> None:
            if not train:
                with torch.no_grad():
                    ns.lif(current, **given)
                return
            ns.lif(current, **given)[0].backward(grad)
            for leaf in (current, *leaves.values()):
                leaf.grad = None

        return call

    return case


def _network(torch: Any, ns: Any, backend: str) -> Callable[[], object]:
    model = ns.SNNModel(input_size=784, hidden_size=1000)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    images, labels = torch.rand(128, 784), torch.randint(0, 10, (128,))

    def call() -> None:
        with ns.use_backend(backend):
            torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return call


CASES: dict[str, Case] = {
    "small": _layer((5, 2, 10)),
    "training": _layer((25, 32, 256)),
    "inference": _layer((25, 32, 256), train=False),
    "large": _layer((100, 128, 1000)),
    "immediate": _layer((25, 32, 256), reset="zero", reset_delay=False),
    "learned": _layer((25, 32, 256), learned={"beta": 0.9, "threshold": 1.0}),
    "network": _network,
}


def main() -> None:
    """Answer each line of the input: "where", or "CASE REPEATS" with the seconds a call took."""
    import torch

    import neurospike as ns

    backend, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    calls: dict[str, Callable[[], object]] = {}
    for line in sys.stdin:
        name, *repeats = line.split()
        if name == "where":
            print(Path(ns.__file__).parent, flush=True)
            continue
        if name not in calls:
            calls[name] = CASES[name](torch, ns, backend)
        start = time.perf_counter()
        for _ in range(int(repeats[0])):
            calls[name]()
        print((time.perf_counter() - start) / int(repeats[0]), flush=True)


if __name__ == "__main__":
    main()
