"""NeuroSpike: fused spiking-neuron layers for PyTorch, and a digit recogniser around them."""

from . import old_paths
from .backend.dispatch import backends, use_backend
from .coding import decoding, encoding
from .layers.conversion import convert
from .layers.delay import Delay
from .layers.lif import LI, LIF, lif
from .layers.recurrent import Recurrent
from .layers.sequential import Sequential
from .layers.spike_layer import spike_layer
from .layers.spike_linear import SpikeLinear, spike_linear
from .layers.spiking import Spiking
from .layers.zoo import ALIF, BRF, EIF, PLIF, QIF, Alpha, Izhikevich, OneToOne, SEAdLIF, Synaptic
from .models import ConvSNN, ResidualSNN, SNNModel
from .models.conv_encoder import ConvEncoder
from .neurons import surrogate
from .neurons.rule import Neuron
from .training import SNNTrainer
from .training.graph import graphed
from .training.loading import load_model
from .visualization import SpikeVisualizer

__version__ = "0.2.0"

old_paths.keep()

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
    "Delay",
    "Izhikevich",
    "Neuron",
    "OneToOne",
    "Recurrent",
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
    "graphed",
    "lif",
    "load_model",
    "spike_layer",
    "spike_linear",
    "surrogate",
    "use_backend",
]
