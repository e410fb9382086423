"""`convert`: networks of snnTorch, SpikingJelly and Norse as fused layers.

`networks.py` walks through a network; what it has to know of a library is one `Library`, in the
file of that name. None of them is imported here: who has a network of theirs has imported it.
"""

from .networks import convert as convert
from .snntorch import TracedLIF as _TracedLIF  # noqa: F401 (layers pickled by 0.1 look for it)
