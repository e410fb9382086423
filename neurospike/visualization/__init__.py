"""Pictures of spikes, membranes, weights and training: `SpikeVisualizer`.

Each group of plots is a class in its own file; the visualiser is all of them. matplotlib is an
import of the first plot, so that `import neurospike` stays quick.
"""

from .animation import Animation
from .spikes import SpikePlots
from .training import TrainingPlots

__all__ = ["SpikeVisualizer"]


class SpikeVisualizer(SpikePlots, TrainingPlots, Animation):
    """Draws what a spiking network does and learns.

        visualizer = SpikeVisualizer()
        figure, axes = visualizer.plot_spike_train(spikes)        # [T], [T, N] or [T, B, *F]
        figure.savefig("raster.png")

    Every plot takes torch tensors, on any device, or numpy arrays; returns the figure and axes it
    drew on; draws into axes of yours given as `ax=`; and needs no screen. Colours are told apart by
    colour-blind readers and, by markers, line styles and lightness, in grey.

    Args:
        dpi: dots per inch of the figures it makes.
        max_marks: most spikes drawn in a raster, about; of more, fewer neurons are drawn.
        max_cells: most rows of a raster, and most rows and columns of a heat map.

    Raises:
        ValueError: a limit below 1.
        MissingDependencyError: at the first plot, if matplotlib is not installed.
    """
