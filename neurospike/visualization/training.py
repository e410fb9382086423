"""Plots of what training leaves behind: curves, mistakes, weights; and the surrogates it used."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from neurospike.neurons.surrogate import BUILT_IN, resolve

from .arrays import spread, to_numpy
from .canvas import (
    BLUE,
    DIVERGING,
    GREY,
    RED,
    SEQUENTIAL,
    Canvas,
    bare,
    beyond,
    legend,
    names,
    some,
    style,
    tidy,
    whole_numbers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .arrays import Array

WRITTEN = 40  # classes of a confusion matrix up to which its counts can be read
TRAINING = {"color": BLUE, "marker": "o", "label": "training"}
VALIDATION = {"color": RED, "marker": "s", "linestyle": "--", "label": "validation"}


class TrainingPlots(Canvas):
    """Plots of a training run and of the weights it found."""

    def plot_training_history(
        self,
        history: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]],
        *,
        test: Mapping[str, float] | None = None,
        loss: str = "loss",
        title: str = "",
        ax: Any = None,
    ) -> tuple["Figure", Any]:
        """Draw loss and accuracy by epoch, of training and of validation.

        Args:
            history: the records that `SNNTrainer.fit` returns, or `{name: values by epoch}`, with
                the names `train_loss`, `train_accuracy`, `validation_loss`, `validation_accuracy`
                and, if the epochs are not 1, 2, ..., `epoch`; any may be missing, and values may be
                None. Accuracies are shares, 0 to 1, drawn in percent.
            test: `{"accuracy": ..., "loss": ...}` of the test, drawn as lines.
            loss: what the loss is, such as "cross_entropy", on its axis.
            title: of the figure.
            ax: two Axes; or one where there is only loss or only accuracy.

        Returns:
            `(figure, axes)` with axes `[loss, accuracy]`, or with the one of which there are
            values: no panel stays empty.
        """
        rows = _rows(history)
        both = [("loss", loss, 1), ("accuracy", "accuracy (%)", 100)]
        found = [one for one in both if _recorded(one[0], rows, test)] or both
        if ax is not None and np.size(np.asarray(ax, dtype=object)) == 2:
            found = both
        figure, axes = self._axes(ax, (0.4 + 4.3 * len(found), 3.6), columns=len(found))
        for panel, (name, unit, scale) in zip(np.ravel(axes), found, strict=True):
            for part, look in (("train", TRAINING), ("validation", VALIDATION)):
                key = f"{part}_{name}"
                points = [
                    (row["epoch"], scale * row[key]) for row in rows if row.get(key) is not None
                ]
                if points:
                    every = -(-len(points) // 50)  # more marks would run into each other
                    line = panel.plot(
                        *zip(*points, strict=True), markersize=4, linewidth=1.6, **look
                    )
                    line[0].set_markevery(every)
            value = (test or {}).get(name)
            if value is not None:
                label = f"test {value:.2%}" if name == "accuracy" else f"test {value:.4f}"
                panel.axhline(scale * value, color=GREY, linestyle=":", label=label)
            tidy(panel, name.capitalize(), "epoch", unit)
            whole_numbers(panel, "x")
            panel.grid(True, color="#dddddd", linewidth=0.8)
            panel.set_axisbelow(True)
            legend(panel)
        if title:
            figure.suptitle(title, fontsize=10)
        return figure, axes

    def plot_confusion_matrix(
        self,
        labels: Any,
        predictions: Any = None,
        *,
        classes: Sequence[Any] | None = None,
        title: str = "",
        ax: Any = None,
    ) -> tuple["Figure", "Axes"]:
        """Draw how often each class (row) was taken for each (column): counts as numbers.

        Colour is the share of the row, on a scale on which single mistakes can be seen; of more
        than 40 classes colours stand alone, and some of the names.

        Args:
            labels: classes `[N]`; or without predictions a matrix `[C, C]` of counts, rows the true
                classes.
            predictions: `[N]` of classes, or `[N, C]` of scores.
            classes: their names.
            title: of the figure.
            ax: one Axes.

        Returns:
            `(figure, axes)`.

        Raises:
            ValueError: classes and counts that are no whole numbers, and scores that are NaN.
        """
        matrix = _confusion(labels, predictions)
        count = len(matrix)
        labelled, many = names(count, classes), count > WRITTEN
        cells, more = WRITTEN // 2 if many else count, beyond(labelled)
        figure, axes = self._axes(
            ax, (1.5 + 0.45 * cells + 0.08 * more, 1.2 + 0.42 * cells + 0.06 * more)
        )
        shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
        # The square root spreads small shares: 1 % of mistakes is a tenth of the scale.
        image = axes.imshow(
            np.sqrt(shares), cmap=SEQUENTIAL, vmin=0, vmax=1, interpolation="nearest"
        )
        if many:
            ticks = np.array([0, 0.01, 0.1, 0.25, 0.5, 1])
            bar = figure.colorbar(image, ax=axes, shrink=0.8, label="share of the row")
            bar.set_ticks(np.sqrt(ticks), labels=[f"{tick:.0%}" for tick in ticks])
            bar.ax.tick_params(labelsize=8)
        for row, column in () if many else np.argwhere(matrix):
            dark = shares[row, column] > 0.3
            axes.text(
                column,
                row,
                f"{matrix[row, column]:,}",
                ha="center",
                va="center",
                fontsize=7 if matrix.max() > 999 else 8,
                color="white" if dark else "black",
            )
        # Names that would run into each other stand aslant.
        words = {"rotation": 45, "ha": "right"} if more else {}
        axes.set_xticks(*some(labelled, WRITTEN), **words)
        axes.set_yticks(*some(labelled, WRITTEN))
        right = matrix.trace() / max(1, matrix.sum())
        tidy(axes, title or f"accuracy {right:.2%}", "answered", "true class")
        return figure, axes

    def plot_weights(
        self,
        weights: Any,
        *,
        shape: tuple[int, int] | None = None,
        max_fields: int = 64,
        title: str = "",
        ax: Any = None,
    ) -> tuple["Figure", "Axes"]:
        """Draw receptive fields: what input each neuron likes (dark orange minus, purple plus).

        Args:
            weights: a linear or convolutional layer, or its weights: `[N, H*W]`, or `[O, I, h, w]`,
                of which every kernel is a field.
            shape: `(H, W)` of the input; None for square ones.
            max_fields: of more, so many are drawn, spread evenly from the first to the last.
            title: of the figure.
            ax: one Axes, the fields side by side.

        Returns:
            `(figure, axes)`.
        """
        fields = _fields(getattr(weights, "weight", weights), shape)
        shown = spread(len(fields), max_fields)
        height, width = fields.shape[1:]
        gap = max(1, min(height, width) // 14)
        # As many side by side as make all of them about a square.
        side = np.sqrt(len(shown) * (height + gap) / (width + gap))
        columns = min(len(shown), int(np.ceil(side)))
        rows = -(-len(shown) // columns)
        # NaN between the fields is drawn as nothing, and so is what is left of the last row.
        mosaic = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap), np.nan)
        for place, field in enumerate(fields[shown]):
            top = (place // columns) * (height + gap)
            left = (place % columns) * (width + gap)
            mosaic[top : top + height, left : left + width] = field
        ratio = mosaic.shape[0] / mosaic.shape[1]
        figure, axes = self._axes(ax, (6, 5.5 * float(np.clip(ratio, 0.4, 2)) + 0.3))
        limit = float(np.nanmax(np.abs(mosaic), initial=0)) or 1.0
        image = axes.imshow(
            mosaic,
            cmap=DIVERGING,
            vmin=-limit,
            vmax=limit,
            interpolation="nearest",
            aspect="equal" if 0.2 < ratio < 4 else "auto",
        )
        some = "" if len(shown) == len(fields) else f" ({len(shown)} of {len(fields)})"
        bare(axes, (title or "receptive fields") + some)
        figure.colorbar(image, ax=axes, shrink=0.8, label="weight").ax.tick_params(labelsize=8)
        return figure, axes

    def plot_surrogates(
        self,
        surrogates: Iterable[Any] | None = None,
        *,
        reach: float = 2.0,
        title: str = "",
        ax: Any = None,
    ) -> tuple["Figure", "Axes"]:
        """Draw surrogate derivatives by the distance `u` of the membrane from the threshold.

        The scale is logarithmic above 0.1 and linear below, so that peaks of 1 and of 6, the tails,
        and 0 can all be read.

        Args:
            surrogates: names, `ns.surrogate` objects or functions of u; None draws all built-in
                ones with their defaults.
            reach: the distances drawn are from -reach to reach.
            title: of the figure.
            ax: one Axes.

        Returns:
            `(figure, axes)`.
        """
        if not reach > 0:
            raise ValueError(f"reach must be above 0, got {reach!r}: it is the largest |u| drawn")
        u = torch.linspace(-reach, reach, 801, dtype=torch.float64)
        chosen = list(BUILT_IN if surrogates is None else surrogates)
        figure, axes = self._axes(ax, (7, 4))
        for order, one in enumerate(chosen):
            surrogate = resolve(one)
            # A constant function of the user's need not return a tensor.
            values = torch.as_tensor(surrogate(u), dtype=u.dtype).expand(u.shape)
            axes.plot(u, values, linewidth=1.8, label=str(surrogate), **style(order))
        axes.set_yscale("symlog", linthresh=0.1, linscale=0.6)
        ticks = [
            0,
            0.05,
            0.1,
            0.2,
            0.5,
            1,
            2,
            5,
            10,
            20,
            50,
            *(10.0**power for power in range(2, 39)),
        ]
        highest = max([5.0, *(float(np.max(line.get_ydata())) for line in axes.lines)])
        axes.set_yticks([tick for tick in ticks if tick <= highest], minor=False)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.grid(True, color="#e5e5e5", linewidth=0.8)
        axes.set_axisbelow(True)
        tidy(axes, title, "u = membrane - threshold", "derivative (log above 0.1)")
        legend(axes, loc="center left", bbox_to_anchor=(1, 0.5), handlelength=3.5)
        return figure, axes


def _recorded(name: str, rows: list[dict[str, Any]], test: Mapping[str, float] | None) -> bool:
    """True if there is a number to draw of `loss` or `accuracy`."""
    keys = (f"train_{name}", f"validation_{name}")
    values = [row.get(key) for row in rows for key in keys]
    return any(value is not None for value in [*values, (test or {}).get(name)])


def _rows(history: Any) -> list[dict[str, Any]]:
    """Return one record per epoch, with its number."""
    if isinstance(history, Mapping):
        lengths = {name: len(values) for name, values in history.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"history must have one value per epoch under every name: {lengths}")
        count = max(lengths.values(), default=0)
        history = [{name: history[name][k] for name in history} for k in range(count)]
    if not isinstance(history, Sequence) or isinstance(history, str):
        raise TypeError(
            "history must be the records that fit returns, or values by name, got "
            f"{type(history).__name__}"
        )
    return [{"epoch": number, **record} for number, record in enumerate(history, start=1)]


def _confusion(labels: Any, predictions: Any) -> "Array":
    """Return counts `[C, C]`."""
    truth = to_numpy("labels", labels)
    if predictions is None:
        if truth.ndim != 2 or truth.shape[0] != truth.shape[1] or not truth.size:
            raise ValueError(
                f"labels alone must be a matrix [C, C] of counts, got shape {truth.shape}; with "
                "labels [N] hand in predictions"
            )
        return _whole("counts", truth)
    answers = to_numpy("predictions", predictions)
    if answers.ndim == 2:
        if np.isnan(answers).any():
            raise ValueError(
                f"predictions [N, C] have NaN in {np.isnan(answers).any(1).sum()} of "
                f"{len(answers)} rows, of which no class is the highest: leave these samples out"
            )
        count, answers = answers.shape[1], answers.argmax(1)
    else:
        count = 0
    if truth.ndim != 1 or truth.shape != answers.shape or not len(truth):
        raise ValueError(
            f"labels must be [N] and predictions [N] or [N, C], got {truth.shape} and "
            f"{tuple(np.shape(predictions))}"
        )
    truth, answers = _whole("labels", truth), _whole("predictions", answers)
    if min(truth.min(), answers.min()) < 0:
        raise ValueError("classes must be 0 or more, got a negative one")
    count = max(count, int(truth.max()) + 1, int(answers.max()) + 1)
    return np.bincount(truth * count + answers, minlength=count * count).reshape(count, count)


def _whole(name: str, values: "Array") -> "Array":
    """Return whole numbers, in whatever format they are, as int64. Raises ValueError for others."""
    others = values[~np.isfinite(values) | (values != np.trunc(values))]
    if others.size:
        hint = "; of shares draw the counts" if name == "counts" else ", each the number of a class"
        raise ValueError(f"{name} must be whole numbers{hint}, got {others[0]:g}")
    return values.astype(np.int64)


def _fields(weights: Any, shape: tuple[int, int] | None) -> "Array":
    """Return `[fields, H, W]` of weights `[N, P]` or `[O, I, h, w]`."""
    values = to_numpy("weights", weights)
    if values.ndim == 4 and values.size:
        return values.reshape(-1, *values.shape[2:])
    if values.ndim != 2 or not values.size:
        raise ValueError(f"weights must be [N, H*W] or [O, I, h, w], got shape {values.shape}")
    side = round(values.shape[1] ** 0.5)
    height, width = shape or (side, side)
    if height * width != values.shape[1]:
        raise ValueError(
            f"weights have {values.shape[1]} inputs per neuron, which is not {height} x {width}: "
            "give their shape=(H, W)"
        )
    return values.reshape(-1, height, width)
