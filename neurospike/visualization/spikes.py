"""Plots of what neurons do over time: rasters, membranes, rates, and the input they are given."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .arrays import (
    are_spikes,
    binned,
    chosen,
    evenly,
    layers_of,
    mean_over_samples,
    over_time,
    spikes_over_time,
    to_numpy,
)
from .canvas import (
    BLUE,
    GREY,
    RED,
    SEQUENTIAL,
    Canvas,
    bare,
    dots,
    entitle,
    few,
    legend,
    reach,
    style,
    tidy,
    whole_numbers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

    from .arrays import Array


class SpikePlots(Canvas):
    """Plots over time steps, which are counted from 0."""

    def plot_spike_train(
        self,
        spikes: Any,
        *,
        sample: int = 0,
        rate: bool | None = None,
        title: str = "",
        ax: Any = None,
    ) -> tuple["Figure", Any]:
        """Draw a raster, a mark per spike, and below it the share of neurons that fire by step.

        Of many neurons evenly spaced ones are drawn, each with all its spikes, and the axis says
        so; the rate is always that of all neurons.

        Args:
            spikes: `[T]`, `[T, N]` or `[T, B, *F]`: 0 or 1 in any number format, or -1 (delta
                coding), which has marks of its own.
            sample: which of the batch is drawn.
            rate: draw the rate too; None does so unless `ax` is a single one.
            title: of the figure.
            ax: one Axes, or a pair of them with the rate.

        Returns:
            `(figure, axes)`, axes being the raster's, or `[raster, rate]`.

        Raises:
            ValueError: other numbers, which are no spikes.
        """
        train = spikes_over_time("spikes", spikes, sample)
        if rate is None:
            rate = ax is None or np.size(np.asarray(ax, dtype=object)) > 1
        figure, axes = self._axes(
            ax,
            (7, 4),
            rows=2 if rate else 1,
            sharex=True,
            height_ratios=[3, 1] if rate else None,
        )
        raster = axes[0] if rate else axes
        self._raster(raster, train)
        if title:
            entitle(raster, title)
        if rate:
            shares = np.count_nonzero(train, axis=1) / train.shape[1]
            # A stair to each step, from half a step before it to half a step after.
            edges = np.arange(len(shares) + 1) - 0.5
            axes[1].stairs(shares, edges, baseline=None, color=BLUE, linewidth=1.2)
            axes[1].axhline(shares.mean(), color=GREY, linestyle=":", linewidth=1.2)
            axes[1].set_ylim(bottom=0)
            tidy(axes[1], "", "time step", f"rate\n(mean {few(shares.mean())})")
            raster.set_xlabel("")
        return figure, axes

    def plot_membrane_potential(
        self,
        trace: Any,
        *,
        spikes: Any = None,
        threshold: Any = 1.0,
        neurons: Sequence[int] | None = None,
        sample: int = 0,
        title: str = "",
        ax: Any = None,
    ) -> tuple["Figure", Any]:
        """Draw membranes over time, with the threshold, and a mark wherever a neuron fires.

        Args:
            trace: `[T]`, `[T, N]` or `[T, B, *F]`, as `lif(..., return_trace=True)` returns it.
            spikes: of the same shape; None marks where the membrane is above the threshold, which
                is where neurons with the delayed reset fire (with the immediate one the trace is
                taken after the reset, so hand the spikes in).
            threshold: number, `[N]`, or None for neurons that never fire.
            neurons: which to draw; None takes up to four, evenly spaced.
            sample: which of the batch is drawn.
            title: of the figure.
            ax: one Axes for all of them, or one per neuron.

        Returns:
            `(figure, axes)`, axes being an array if there is more than one neuron.
        """
        mem = over_time("trace", trace, sample)
        shown = chosen("neurons", neurons, mem.shape[1], 4)
        levels = None
        if threshold is not None:
            levels = to_numpy("threshold", threshold).reshape(-1)
            if levels.size not in (1, mem.shape[1]):
                raise ValueError(
                    f"threshold must be one number or one per neuron ({mem.shape[1]}), got "
                    f"{levels.size} of them"
                )
            levels = np.broadcast_to(levels, mem.shape[1])
        if spikes is not None:
            fired = spikes_over_time("spikes", spikes, sample) != 0
            if fired.shape != mem.shape:
                raise ValueError(
                    f"spikes must have the trace's steps and neurons {mem.shape}, got {fired.shape}"
                )
        else:
            fired = mem > levels if levels is not None else np.zeros(mem.shape, dtype=bool)
        rows = 1 if ax is not None and np.size(np.asarray(ax, dtype=object)) == 1 else len(shown)
        figure, axes = self._axes(ax, (7, 1.6 + 1.4 * rows), rows=rows, sharex=True, sharey=True)
        panels = np.ravel(axes)
        for order, neuron in enumerate(shown):
            panel = panels[order % rows]
            look = style(order if rows == 1 else 0)
            values = mem[:, neuron]
            look |= dots(len(values))
            panel.plot(values, linewidth=1.4, label=f"neuron {neuron}", **look)
            if levels is not None:
                panel.axhline(levels[neuron], color=GREY, linestyle=(0, (1, 1)), linewidth=1.2)
            steps = np.flatnonzero(fired[:, neuron])
            panel.plot(steps, values[steps], "v", markersize=5, color=RED)
            tidy(panel, "", "time step" if order % rows == rows - 1 else "", "membrane")
            whole_numbers(panel, "x")
            legend(panel, loc="center left", bbox_to_anchor=(1, 0.5))
        if title:
            entitle(panels[0], title)
        return figure, axes

    def plot_firing_rates(
        self, activity: Any, *, title: str = "", ax: Any = None
    ) -> tuple["Figure", Any]:
        """Draw a heat map per layer: how often each neuron fires at each step, over the batch.

        Where there are more neurons or steps than cells, neighbours are averaged, and the axis says
        so. A negative spike counts as one. Of other numbers, as currents, it is their mean.

        Args:
            activity: `{layer: spikes}` as `model(images, return_activity=True)` gives it, or the
                spikes of one layer: `[T]`, `[T, N]`, or `[T, B, *F]`, averaged over B.
            title: of the figure.
            ax: one Axes per layer.

        Returns:
            `(figure, axes)`, axes being an array if there is more than one layer.
        """
        layers = layers_of(activity)
        rates = [
            mean_over_samples(f"activity {name}".rstrip(), data) for name, data in layers.items()
        ]
        figure, axes = self._axes(ax, (7, 1 + 1.8 * len(layers)), rows=len(layers))
        every = np.ravel(axes)
        counted = all(are_spikes(to_numpy("activity", data)) for data in layers.values())
        low, high = reach(*rates)
        for panel, name, mean in zip(every, layers, rates):
            image = self._heat_map(panel, mean, "neuron", vmin=low, vmax=high)
            about = f"mean {'rate ' if counted else ''}{few(mean.mean())}"
            heading = _joined(title if panel is every[0] else "", name, about)
            entitle(panel, heading)
            if panel is not every[-1]:
                panel.set_xlabel("")
        label = "spikes per neuron and step" if counted else "mean of neuron and step"
        bar = figure.colorbar(image, ax=list(every), label=label)
        bar.ax.tick_params(labelsize=8)
        return figure, axes

    def plot_input_encoding(
        self, image: Any, encoded: Any, *, sample: int = 0, title: str = "", ax: Any = None
    ) -> tuple["Figure", Any]:
        """Draw a picture, what the encoder makes of it over time, and the sum the network gets.

        Args:
            image: `[H, W]`, or a batch `[B, H, W]`, `[B, 1, H, W]` or, of coloured pictures in [0,
                1], `[B, 3, H, W]`.
            encoded: `[T, H*W]` or `[T, B, *F]`; spikes are drawn as a raster, other currents as a
                heat map, pixels in rows; their sum without colour. Of a picture that is read part
                by part, `[T, N]` with `T * N` pixels (`ns.encoding.rows` and `pixels`), the third
                panel is what was read, in the order of reading.
            sample: which of the batch is drawn.
            title: of the figure.
            ax: three Axes.

        Returns:
            `(figure, axes)` with axes `[picture, over time, sum]`.
        """
        picture = to_numpy("image", image)
        if picture.ndim > 2:
            picture = to_numpy("image", image[sample])
            picture = picture[0] if picture.ndim == 3 and len(picture) == 1 else picture
        train = over_time("encoded", encoded, sample)
        read = picture.ndim == 2 and train.shape[1] < picture.size == train.size
        coloured = picture.ndim == 3 and len(picture) == 3
        if (picture.ndim != 2 and not coloured) or (picture.size != train.shape[1] and not read):
            raise ValueError(
                f"image must be [H, W] with the {train.shape[1]} values the code has per step, got "
                f"{picture.shape}"
            )
        figure, axes = self._axes(ax, (9, 3), columns=3, width_ratios=[1, 2, 1])
        drawn = picture.transpose(1, 2, 0).clip(0, 1) if coloured else picture
        low, high = reach(picture)
        axes[0].imshow(drawn, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        bare(axes[0], title or "picture")
        if are_spikes(train) and not read:
            self._raster(axes[1], train)
            axes[1].set_ylabel(axes[1].get_ylabel().replace("neuron", "pixel"), fontsize=9)
        else:
            self._heat_map(axes[1], train, "pixel")
        entitle(axes[1], "input over time", 9)
        shown = (train if read else train.sum(0)).reshape(picture.shape)
        shown = shown.mean(0) if coloured else shown
        low, high = reach(shown)
        total = axes[2].imshow(shown, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        bare(axes[2], "as it is read" if read else "sum over time")
        figure.colorbar(total, ax=axes[2], shrink=0.8).ax.tick_params(labelsize=8)
        return figure, axes

    def _heat_map(self, axes: "Axes", values: "Array", row: str, **options: Any) -> "AxesImage":
        """Draw `[T, N]`; where there are more steps or rows than cells, means of neighbours."""
        cells, a_row = binned(values, 1, self.max_cells)
        cells, a_column = binned(cells, 0, self.max_cells)
        image = axes.imshow(
            cells.T,
            aspect="auto",
            origin="lower",
            interpolation="nearest",
            cmap=SEQUENTIAL,
            extent=_edges(cells.shape[0], a_column, cells.shape[1], a_row),
            **options,
        )
        tidy(axes, "", _mean_of("time step", a_column), _mean_of(row, a_row))
        whole_numbers(axes, "x", "y")
        return image

    def _raster(self, axes: "Axes", train: "Array") -> None:
        """Draw the spikes of `[T, N]`, of as many evenly spaced neurons as the limits allow."""
        steps, count = train.shape
        rows = min(self.max_cells, count)
        fired = np.count_nonzero(train)
        if fired * rows > self.max_marks * count:
            rows = max(1, self.max_marks * count // fired)
        shown = evenly(count, rows)
        some = train[:, shown]
        # In points: a mark fills its row, and a quarter of its step, where that can be seen.
        height = float(np.clip(200 / len(shown), 1.5, 8))
        width = float(np.clip(100 / steps, 0.5, 3))
        for sign, look in (
            (some > 0, {"marker": "|", "color": BLUE, "label": "up", "markeredgewidth": width}),
            (some < 0, {"marker": "x", "color": RED, "label": "down"}),
        ):
            when, which = np.nonzero(sign)
            if len(when) or look["label"] == "up":
                axes.plot(when, shown[which], linestyle="none", markersize=height, **look)
        if (some < 0).any():
            place = {"loc": "lower right", "bbox_to_anchor": (1, 1), "markerscale": 1.5}
            legend(axes, 2, borderaxespad=0, **place)
        axes.set(xlim=(-0.5, steps - 0.5), ylim=(-0.5, count - 0.5))
        every = "" if len(shown) == count else f" ({len(shown):,} of {count:,} drawn)"
        tidy(axes, "", "time step", f"neuron{every}")
        whole_numbers(axes, "x", "y")


def _mean_of(name: str, count: int) -> str:
    return name if count == 1 else f"{name} (mean of {count})"


def _joined(*parts: str) -> str:
    """Return the parts of a title that are not empty, with commas between them."""
    return ", ".join(part for part in parts if part)


def _edges(columns: int, a_column: int, rows: int, a_row: int) -> tuple[float, float, float, float]:
    """Return the sides of a heat map, so that a cell's middle is at its step and neuron."""
    return -0.5, columns * a_column - 0.5, -0.5, rows * a_row - 0.5
