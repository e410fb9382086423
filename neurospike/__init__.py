"""NeuroSpike: fused spiking-neuron layers for PyTorch, and a digit recogniser around them."""

from . import decoding, encoding, surrogate
from .conversion import convert
from .dispatch import backends, use_backend
from .layers import LI, LIF, lif
from .learned_encoding import ConvEncoder
from .loading import load_model
from .models import ConvSNN, ResidualSNN, SNNModel
from .neurons.rule import Neuron
from .sequential import Sequential
from .spike_layer import spike_layer
from .spike_linear import SpikeLinear, spike_linear
from .spiking import (
    ALIF,
    BRF,
    EIF,
    PLIF,
    QIF,
    Alpha,
    Izhikevich,
    OneToOne,
    SEAdLIF,
    Spiking,
    Synaptic,
)
from .training import SNNTrainer
from .visualization import SpikeVisualizer

__version__ = "0.1.0"

__all__ = [
    "ALIF",
    "BRF",
    "EIF",
    "LI",
    "LIF",
    "PLIF",
    "QIF",
    "Alpha",
    "ConvEncoder",
    "ConvSNN",
    "Izhikevich",
    "Neuron",
    "OneToOne",
    "ResidualSNN",
    "SEAdLIF",
    "SNNModel",
    "SNNTrainer",
    "Sequential",
    "SpikeLinear",
    "SpikeVisualizer",
    "Spiking",
    "Synaptic",
    "backends",
    "convert",
    "decoding",
    "encoding",
    "lif",
    "load_model",
    "spike_layer",
    "spike_linear",
    "surrogate",
    "use_backend",
]
