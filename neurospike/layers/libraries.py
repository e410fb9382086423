"""Other libraries of spiking neurons, as far as their layers are told from ours."""

from torch import nn

_OTHER_LIBRARIES = ("snntorch", "spikingjelly", "norse")


def library_of(module: nn.Module) -> str | None:
    """Return the other library of spiking neurons that a module's class comes from, if one."""
    for kind in type(module).__mro__:
        library = kind.__module__.partition(".")[0]
        if library in _OTHER_LIBRARIES:
            return library
    return None
