"""What is known of spikes already: where they are, by whoever made or first read them.

Kept beside the tensor for as long as it lives and, as for autograd, until it is changed in place.
"""

from typing import Any

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

_known = WeakIdKeyDictionary()


def remember(spikes: Tensor, found: Tensor, events: Any) -> None:
    """Keep what is known of spikes `[..., K]`, as `neurospike.spike_linear` lays it out."""
    if not spikes.is_inference():  # those do not tell whether they were changed
        _known[spikes] = spikes._version, found, events


def recall(spikes: Tensor) -> tuple[Tensor, Any] | None:
    """Return what `remember` was given for this very tensor, if it is still so."""
    entry = _known.get(spikes)
    if entry is None or spikes._version != entry[0]:
        return None
    return entry[1:]
