"""Bridge to the top-level folder `kernels/`, which is no package of its own.

A top-level importable `kernels` would shadow Hugging Face's package of that name. So this module
makes itself the package `neurospike.kernels`: the installed copy, or the checkout's folder.
"""

from pathlib import Path

_here = Path(__file__).parent
__path__ = [str(p) for p in (_here / "kernels", _here.parent / "kernels") if p.is_dir()][:1]
