"""Networks that recognise digits. They encode their pictures themselves and know no backend.

A network is one file and one row of `MODELS`, which is what `model.kind` of a configuration names,
and one of `neurospike.config.KINDS`, which keys of a configuration are its own.
"""

from neurospike import config

from .conv import ConvSNN
from .mlp import SNNModel
from .network import SpikingNetwork
from .recording import Recording
from .resnet import ResidualSNN

MODELS: dict[str, type[SpikingNetwork]] = {
    "mlp": SNNModel,
    "conv": ConvSNN,
    "resnet": ResidualSNN,
}


def register(name: str, network: type[SpikingNetwork], keys: tuple[str, ...] = ()) -> None:
    """Make a network of one's own a `model.kind` for this process.

    Args:
        name: the kind's name in a configuration.
        network: its class, whose arguments are keys of the section `model`.
        keys: the keys it takes beside those that every network takes, such as `("hidden_size",)`.

    Raises:
        ValueError: a name that is taken, or keys that no configuration has.
    """
    if name in MODELS:
        raise ValueError(f"the kind {name!r} is taken by {MODELS[name].__name__}; choose another")
    known = {key for own in config.KINDS.values() for key in own}
    if unknown := sorted(set(keys) - known):
        raise ValueError(f"keys must be of {', '.join(sorted(known))}, got {', '.join(unknown)}")
    MODELS[name], config.KINDS[name] = network, tuple(keys)


__all__ = [
    "MODELS",
    "ConvSNN",
    "Recording",
    "ResidualSNN",
    "SNNModel",
    "SpikingNetwork",
    "register",
]
