"""How layers of other libraries of spiking neurons are recognised, and refused."""

from collections.abc import Iterable, Mapping

from torch import nn

_OTHER_LIBRARIES = ("snntorch", "spikingjelly", "norse")


def library_of(module: nn.Module) -> str | None:
    """Return the library of spiking neurons that a module's class comes from; None if none."""
    for kind in type(module).__mro__:
        library = kind.__module__.partition(".")[0]
        if library in _OTHER_LIBRARIES:
            return library
    return None


def overridden(module: object, base: type) -> list[str]:
    """Return the methods of a library's class that a subclass or the object itself overrides."""
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


def refusal_of(
    module: object,
    base: type | None,
    inside: str,
    *,
    library: str,
    kinds: Iterable[str],
    missing: Mapping[str, str],
    own: str,
    container: str = "an nn.Sequential",
) -> str:
    """Return the end of an error: why neurons cannot be converted, and what to do.

    Args:
        module: the neurons.
        base: their base class that has a fused layer; None if there is none.
        inside: where they are, as text to append, or "".
        library: name of their library, as its authors write it.
        kinds: names of all classes with a fused layer.
        missing: what to do about some of the other classes, by their names.
        own: what to do about any other.
        container: the container, with its article, in which neurons are converted.
    """
    name = type(module).__name__
    if base is None:
        return (
            f"a {name} of {library}{inside}: what has a fused layer of its neurons is "
            f"{', '.join(kinds)}. For {name}, {missing.get(name, own)}"
        )
    changed = overridden(module, base)
    if changed:
        return (
            f"{name}, a {base.__name__} of {library} that overrides {', '.join(changed)}{inside}: "
            f"its equations may be others; use {base.__name__} itself, or {own}"
        )
    return (
        f"a {name} of {library}{inside}; convert takes neurons in {container}: write the network "
        "as one, or make fused layers of its neurons, each by ns.convert, and hand whole sequences "
        "[T, B, *F] on in its forward"
    )
