"""`convert`: turn networks of snnTorch, SpikingJelly and Norse into networks of fused layers.

`networks.py` walks through a network; what it has to know about a library is one `Library`, in the
file of that name. None of these libraries is imported here: whoever has a network of one has
imported it.
"""

from .networks import convert as convert
from .snntorch import TracedLIF as _TracedLIF  # noqa: F401 (layers pickled by 0.1 look for it)
