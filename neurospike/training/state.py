"""What a run draws at random, and where it stands in its data: saved and set again."""

from typing import Any

import torch


def random_state() -> dict[str, Any]:
    """The states of torch's generators, on the CPU and on the GPUs in use."""
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Set what `random_state` gave."""
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([device.cpu() for device in state["cuda"]])


def order_of(batches: Any, done: int) -> dict[str, Any] | None:
    """The order of the training batches when `done` batches of the epoch were trained on.

    A source that keeps no account of its own, but draws its order from a `generator`, can be gone
    on with between two epochs only; None for one that has neither.
    """
    if hasattr(batches, "state_dict"):
        state: dict[str, Any] = batches.state_dict(done)
        return state
    generator = getattr(batches, "generator", None)
    return None if generator is None or done else {"generator": generator.get_state()}


def set_order(batches: Any, state: dict[str, Any] | None) -> None:
    """Set what `order_of` gave."""
    if state is None:
        return
    if hasattr(batches, "load_state_dict"):
        batches.load_state_dict(state)
    else:
        batches.generator.set_state(state["generator"])
