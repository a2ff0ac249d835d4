"""Figures by matplotlib, imported when one is made, and only here: colours, strokes, PNG files and inline SVG."""

from __future__ import annotations

import importlib.util
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours of Okabe and Ito (2008), which the colour-blind tell apart; their yellow is too pale for lines on white."""
STROKES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")


def style(number: int, many: int = 1) -> dict[str, Any]:
    """Colour, stroke and marker of a line, so that lines differ in all three.

    Args:
      number: of the line, from 0.
      many: lines of the figure. Earlier lines are wider, so that those below others are still seen.

    Returns:
      Options of `Axes.plot`.
    """
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": STROKES[number % len(STROKES)],
        "marker": MARKERS[number % len(MARKERS)],
        "markersize": 4,
        "linewidth": 1.2 + 0.6 * min(max(many - 1 - number, 0), 3),
    }


def has_matplotlib() -> bool:
    """Whether figures can be made: matplotlib is optional (the extra `plot`)."""
    return importlib.util.find_spec("matplotlib") is not None


def new_figure(rows: int = 1, columns: int = 1, width: float = 5.5, height: float = 4) -> tuple[Figure, np.ndarray]:
    """An empty figure.

    Args:
      rows, columns: of its axes.
      width, height: of each, in inches.

    Returns:
      The figure, and its axes in one dimension.

    Raises:
      ValueError: matplotlib is not installed.
    """
    if not has_matplotlib():
        raise ValueError('plots need matplotlib: pip install "scall_jax[plot]"')
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
    return figure, axes


def save_png(figure: Figure, path: Path, title: str) -> None:
    """Write a figure to a PNG file.

    Args:
      figure: to be written.
      path: of the file.
      title: above the figure.
    """
    # Matplotlib would read text between dollar signs as mathematics.
    figure.suptitle(title.replace("$", r"\$"))
    _whole_segments(figure)
    figure.savefig(path, dpi=110)
    figure.suptitle("")


def to_svg(figure: Figure, name: str, description: str) -> str:
    """A figure as an element of an HTML page, as wide as the page lets it be.

    Args:
      figure: to be drawn.
      name: distinguishes its inner ids from those of other figures of the page.
      description: what it shows, read out by screen readers.

    Returns:
      An `svg` element without references to anything outside.
    """
    import matplotlib as mpl

    _whole_segments(figure)
    text = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\b(id=")|(href="#)|(url\(#)', lambda found: f"{found[0]}{name}-", svg)
    svg = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", svg)
    svg = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", svg)
    label = description.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1).strip()


def _whole_segments(figure: Figure) -> None:
    for axis in figure.axes:
        if axis.get_xlabel() == "segment":
            axis.locator_params(axis="x", integer=True)
