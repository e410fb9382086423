"""Networks that recognise digits. They encode their pictures themselves and know no backend.

A network is one file and one row of `MODELS`, which is what `model.kind` of a configuration names.
"""

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

__all__ = ["MODELS", "ConvSNN", "Recording", "ResidualSNN", "SNNModel", "SpikingNetwork"]
