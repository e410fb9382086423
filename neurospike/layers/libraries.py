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


def overridden(module: object, base: type) -> list[str]:
    """Return the methods of a library's class that a subclass, or the object itself, replaces."""
    library = base.__module__.partition(".")[0]
    theirs = {
        name
        for kind in base.__mro__
        if kind.__module__.partition(".")[0] == library
        for name in vars(kind)
        if not name.startswith("__") and name != "extra_repr"
    }
    kinds = type(module).__mro__
    found = {name for kind in kinds[: kinds.index(base)] for name in vars(kind)}
    found |= {name for name, value in vars(module).items() if callable(value)}
    return sorted(found & theirs)
