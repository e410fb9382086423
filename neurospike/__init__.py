"""NeuroSpike: fused layers of spiking neurons for PyTorch, and a digit recogniser built on them."""

from . import data, old_paths, training
from .backend.dispatch import backends, use_backend
from .coding import decoding, encoding
from .coding.rates import spike_rates
from .interchange.graphs import to_onnx, to_pt2
from .interchange.nir_reading import from_nir
from .interchange.nir_writing import to_nir
from .layers.conversion import convert
from .layers.delay import Delay
from .layers.lif import LI, LIF, lif
from .layers.recording import record, recording
from .layers.recurrent import Recurrent
from .layers.sequential import Sequential
from .layers.spike_layer import spike_layer
from .layers.spike_linear import SpikeLinear, spike_linear
from .layers.spiking import Spiking
from .layers.states import detach, move, reset, truncate
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
    "data",
    "decoding",
    "detach",
    "encoding",
    "from_nir",
    "graphed",
    "lif",
    "load_model",
    "move",
    "record",
    "recording",
    "reset",
    "spike_layer",
    "spike_linear",
    "spike_rates",
    "surrogate",
    "to_nir",
    "to_onnx",
    "to_pt2",
    "training",
    "truncate",
    "use_backend",
]
