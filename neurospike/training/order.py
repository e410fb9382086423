"""The order of the batches, so that a resumed run continues with the one that would have come next.

`neurospike.data.Batches` keep account of it themselves. With any other source, a `DataLoader` or a
list, an epoch under way is begun again with the random numbers that it began with, and the batches
that were trained on already are skipped.
"""

import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from .randomness import random_state, set_random_state

OWNERS = ("sampler", "batch_sampler", "dataset")  # of a DataLoader, that may have a generator


class Order:
    """The order of a trainer's batches, in process `rank` of `world`."""

    def __init__(self, device: torch.device, rank: int = 0, world: int = 1) -> None:
        self.device, self.rank, self.world = device, rank, world
        self._begun: dict[str, Any] | None = None  # what the epoch under way began with
        self._done = 0  # batches to pass over in the next iteration

    def begin(self, batches: Iterable[Any], epoch: int) -> Iterator[Any]:
        """Begin an epoch, or continue the one under way.

        Raises ValueError if there are fewer batches than are to be skipped.
        """
        if keeps_account(batches):
            return iter(batches)
        for owner in owners_of(batches):
            if hasattr(owner, "set_epoch"):  # a DistributedSampler draws by it
                owner.set_epoch(epoch)
        start_workers(batches, self.device)
        done, self._done = self._done, 0
        if not done or self._begun is None:
            self._begun = self._now(batches, within=True)
            return iter(batches)
        now = random_state(self.device)
        _set_generators(batches, self._begun["generators"])
        set_random_state(self._begun["random"], self.device)
        found = iter(batches)
        for passed in range(done):
            if next(found, None) is None:
                raise ValueError(
                    f"the batches ended after {passed}, and {done} of this epoch were trained on "
                    "already: go on with the data that the run was started with"
                )
        set_random_state(now, self.device)
        return found

    def state(self, batches: Any, done: int) -> dict[str, Any] | None:
        """Return the order after `done` batches of an epoch, to be saved; None without batches."""
        if batches is None:
            return None
        if keeps_account(batches):
            state: dict[str, Any] = batches.state_dict(done)
            return state
        return self._begun if done else self._now(batches, within=False)

    def restore(self, batches: Any, states: Sequence[dict[str, Any] | None], done: int) -> None:
        """Set what `state` returned in each process. Raises ValueError if these batches cannot."""
        state = states[self.rank] if len(states) == self.world else states[0]
        self._done = 0
        if done and state is None:
            raise ValueError(
                f"this state was saved after {done} batches of an epoch, and their order is not in "
                "it; go on from one that was saved after a whole epoch, or hand the batches to "
                "state_dict"
            )
        if state is None or batches is None:
            return
        if state.keys() == {"generator"}:  # of version 0.1, which kept it between two epochs only
            batches.generator.set_state(state["generator"])
            return
        own = keeps_account(batches)
        if own == ("generators" in state):
            raise ValueError(
                "this state was saved with batches of another kind; go on with the batches that "
                "the run was started with"
            )
        if own:
            batches.load_state_dict(state)
            return
        if done and len(states) != self.world:
            raise ValueError(
                f"this state was saved within an epoch by {len(states)} processes, and this is one "
                f"of {self.world}: go on in as many, or from a state after a whole epoch"
            )
        self._begun, self._done = state, done
        _set_generators(batches, state["generators"])

    def go_on(self, batches: Any, done: int) -> None:
        """Let the next iteration continue after `done` batches of the epoch under way."""
        if keeps_account(batches):
            batches.load_state_dict(batches.state_dict(done))
        else:
            self._done = done

    def _now(self, batches: Any, *, within: bool) -> dict[str, Any]:
        generators = [generator.get_state() for generator in _generators(batches)]
        return {
            "generators": generators,
            "random": random_state(self.device) if within else None,
        }


def keeps_account(batches: Any) -> bool:
    """True for batches with `state_dict(done)` and `load_state_dict`, as `Batches` have them."""
    if not hasattr(batches, "load_state_dict") or not hasattr(batches, "state_dict"):
        return False
    try:
        inspect.signature(batches.state_dict).bind(0)
    except TypeError:
        return False
    return True


def start_workers(batches: Any, device: torch.device) -> None:
    """Start a DataLoader's persistent workers before an epoch; random numbers stay as they were.

    A DataLoader draws a number when it starts them. A resumed run starts them in a later epoch than
    the run before did, so that number must not be one of the epoch's.
    """
    stay = getattr(batches, "persistent_workers", False) and getattr(batches, "num_workers", 0)
    if not stay or getattr(batches, "_iterator", None) is not None:
        return
    generators = [generator.get_state() for generator in _generators(batches)]
    random = random_state(device)
    iter(batches)  # which the next one begins anew
    _set_generators(batches, generators)
    set_random_state(random, device)


def owners_of(batches: Any) -> list[Any]:
    """Return the batches and the parts of a DataLoader that may draw or keep their order."""
    parts = [batches, *(getattr(batches, name, None) for name in OWNERS)]
    parts.append(getattr(getattr(batches, "batch_sampler", None), "sampler", None))
    return list({id(one): one for one in parts if one is not None}.values())


def _generators(batches: Any) -> list[torch.Generator]:
    """Return the generators that an order is drawn from, each once."""
    found: list[torch.Generator] = []
    for owner in owners_of(batches):
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator) and generator not in found:
            found.append(generator)
    return found


def _set_generators(batches: Any, states: Sequence[torch.Tensor]) -> None:
    generators = _generators(batches)
    if len(generators) != len(states):
        raise ValueError(
            f"the batches have {len(generators)} random generators, and {len(states)} were saved: "
            "go on with a DataLoader made as that of the run was"
        )
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state.cpu())
