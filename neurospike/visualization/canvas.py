"""What all plots share: figures without a window, colours for every eye, checks of `ax=`.

matplotlib is loaded here, at the first plot, and never pyplot, which would choose a window system
and keep state for the whole process.
"""

import re
import sys
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neurospike.errors import MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours (jfly.uni-koeln.de/color, 2008), told apart under every colour blindness,
# in an order in which neighbours differ in lightness too; line styles differ for print in grey.
BLUE, RED, GREEN, YELLOW, PINK, SKY, BLACK = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#E69F00",
    "#CC79A7",
    "#56B4E9",
    "#000000",
)
COLORS = (BLUE, YELLOW, GREEN, PINK, SKY, RED, BLACK)
STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (2, 1)))
GREY = "#555555"
# Lightness falls steadily in the one and away from the middle in the other, so both survive grey,
# and nothing is white, as paper is.
SEQUENTIAL, DIVERGING = "Blues", "PuOr"


def save(figure: "Figure", path: str | Path, **options: Any) -> None:
    """Write a figure; one line on stderr names the characters that its font lacks.

    matplotlib would warn of each by itself, and quote our code. options: of `savefig`.
    """
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        figure.savefig(path, **options)
    lacking = []
    for one in told:
        sign = re.match(r"Glyph (\d+) ", str(one.message))
        if sign is None:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
        else:
            lacking.append(chr(int(sign[1])))
    if lacking:
        print(  # noqa: T201 (a warning)
            f"{path}: the font has no signs for {''.join(dict.fromkeys(lacking))}, they are drawn "
            "as boxes; font.family in a matplotlibrc names another font",
            file=sys.stderr,
        )


class Canvas:
    """Makes and checks axes; the groups of plots build on it.

    dpi: dots per inch of new figures. max_marks: most spikes drawn in a raster. max_cells: most
    rows and columns of a heat map, and most rows of a raster.
    """

    def __init__(self, *, dpi: int = 150, max_marks: int = 50_000, max_cells: int = 800) -> None:
        for name, value in (("dpi", dpi), ("max_marks", max_marks), ("max_cells", max_cells)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        self.dpi, self.max_marks, self.max_cells = dpi, max_marks, max_cells

    def _figure(self, width: float, height: float) -> "Figure":
        """Return an empty figure, in inches. Raises MissingDependencyError."""
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError as error:
            raise MissingDependencyError(
                f"pictures need matplotlib ({error}): pip install matplotlib"
            ) from error
        figure = Figure(figsize=(width, height), dpi=self.dpi, layout="constrained")
        FigureCanvasAgg(figure)
        return figure

    def _axes(
        self, ax: Any, size: tuple[float, float], /, rows: int = 1, columns: int = 1, **options: Any
    ) -> tuple["Figure", Any]:
        """Return figure and axes, new ones or those given; more than one as an array `[count]`."""
        count = rows * columns
        if ax is None:
            figure = self._figure(*size)
            axes = figure.subplots(rows, columns, squeeze=False, **options).ravel()
            return figure, (axes[0] if count == 1 else axes)
        given = list(np.ravel(np.asarray(ax, dtype=object)))
        if len(given) != count or not all(hasattr(one, "get_figure") for one in given):
            wanted = "one matplotlib Axes" if count == 1 else f"a sequence of {count} Axes"
            raise ValueError(f"ax must be {wanted} for this plot, got {ax!r}; leave it out for new")
        return given[0].get_figure(), (given[0] if count == 1 else np.array(given, dtype=object))


def entitle(axes: "Axes", title: str, fontsize: int = 10) -> None:
    """Give axes a title, in as many lines as their width asks for."""
    points = 72 * axes.bbox.width / axes.figure.dpi
    letters = max(10, int(points / (0.58 * fontsize)))  # of matplotlib's own font, on average
    axes.set_title(textwrap.fill(title, letters), fontsize=fontsize)


def tidy(axes: "Axes", title: str = "", xlabel: str = "", ylabel: str = "") -> None:
    """Label axes, and draw only the two spines that carry scales."""
    axes.set_xlabel(xlabel, fontsize=9)
    axes.set_ylabel(ylabel, fontsize=9)
    axes.tick_params(labelsize=8)
    if title:
        entitle(axes, title)
    axes.spines[["top", "right"]].set_visible(False)


def few(share: float) -> str:
    """Return a rate in three decimals, or in one significant digit where those would be zeros."""
    return f"{share:.1g}" if 0 < share < 0.0005 else f"{share:.3f}"


def reach(*values: Any) -> tuple[float, float]:
    """Return the ends of a scale for these arrays, which includes 0 and is never empty."""
    low, high = min(0.0, *map(np.min, values)), max(0.0, *map(np.max, values))
    return float(low), float(high if high > low else 1.0)


def whole_numbers(axes: "Axes", *directions: str) -> None:
    """Put ticks at whole numbers only: steps, neurons and epochs have no halves."""
    from matplotlib.ticker import MaxNLocator

    for direction in directions:
        # min_n_ticks: else a single step or neuron would have tenths after all.
        locator = MaxNLocator(nbins=7, integer=True, min_n_ticks=1)
        getattr(axes, f"{direction}axis").set_major_locator(locator)


def bare(axes: "Axes", title: str = "") -> None:
    """Leave nothing but what is drawn: for pictures, whose pixels have no scale."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    if title:
        entitle(axes, title, 9)


def style(index: int) -> dict[str, Any]:
    """Colour and line style of the n-th curve; 49 combinations before one comes again."""
    other = STYLES[(index + index // len(COLORS)) % len(STYLES)]
    return {"color": COLORS[index % len(COLORS)], "linestyle": other}


def dots(count: int) -> dict[str, Any]:
    """Return plot options that make a curve of `count` points visible: markers for a single one."""
    return {"marker": "o", "markersize": 4} if count == 1 else {}


def legend(axes: "Axes", columns: int = 1, **options: Any) -> None:
    """Add a legend without a frame, if anything drawn has a label."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8, ncols=columns, **options)


def names(count: int, given: Sequence[Any] | None) -> list[str]:
    """Return names of classes: those given, or the numbers from 0. Raises ValueError."""
    if given is not None and len(given) != count:
        raise ValueError(f"there are {count} classes, got {len(given)} names: {list(given)!r}")
    return [str(name) for name in (range(count) if given is None else given)]


def some(labels: Sequence[str], most: int) -> tuple[range, Sequence[str]]:
    """Return the places and texts of at most `most` evenly spaced labels."""
    every = max(1, -(-len(labels) // most))
    return range(0, len(labels), every), labels[::every]


def beyond(labels: Sequence[str]) -> int:
    """Return how many letters the longest label has beyond the 6 that there is room for anyway."""
    return max(0, max(map(len, labels)) - 6)
