"""A figure as SVG, PDF and the numbers in it, and the style of all figures."""

import io
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

# Okabe & Ito's colours, which the colour-blind can tell apart and that stand out on black and
# white; with another line style and marker each, for prints without colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P")
INK = "#010203"  # text and axes: black in files, replaced by the text colour in a page
NAMES = {
    "accuracy": "Accuracy", "sensitivity": "Sensitivity", "specificity": "Specificity",
    "weighted_f1": "Weighted F1", "weighted_precision": "Weighted precision",
    "weighted_recall": "Weighted recall", "auroc": "AUROC",
}  # fmt: skip


_HEAD = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '


@dataclass(frozen=True, eq=False)
class Figure:
    """A figure.

    Attributes:
        name: of its files.
        caption: what it shows, on what, and what it does not say.
        alt: what is to be seen, for who cannot see it.
        table: the numbers in it.
        draw: draws it on a canvas.
        size: width and height in inches.
    """

    name: str
    caption: str
    alt: str
    table: pd.DataFrame
    draw: Callable[[Canvas], None]
    size: tuple[float, float]


def style() -> dict[Any, Any]:
    """Matplotlib's settings for every figure."""
    return {
        "font.family": "sans-serif", "font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "",
        "pdf.fonttype": 42, "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK,
        "xtick.color": INK, "ytick.color": INK, "legend.frameon": False, "axes.titlesize": 9,
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
        "grid.color": "#808080", "grid.alpha": 0.25, "lines.linewidth": 1.5,
    }  # fmt: skip


def canvas(figure: Figure) -> Canvas:
    """The figure, drawn."""
    with mpl.rc_context(style()):
        drawn = Canvas(figsize=figure.size, layout="constrained")
        figure.draw(drawn)
    return drawn


def svg(figure: Figure, ink: str = "currentColor") -> str:
    """The figure as an SVG element without a background, the same every time.

    Args:
        ink: colour of text and axes; `currentColor` is the text colour of the page around it.
    """
    text = _svg_text(figure).replace(INK, ink)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Several figures share a page, and each counts its parts from 1.
    text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{figure.name}-", text)
    return re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1">', text, count=1)


@lru_cache(maxsize=32)
def _svg_text(figure: Figure) -> str:
    """Matplotlib's SVG element; kept, because a page and a file of its own show the same."""
    stream = io.StringIO()
    with mpl.rc_context(style()):
        canvas(figure).savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]


def svg_file(figure: Figure) -> str:
    """The figure as an SVG file, which has no page around it whose text colour it could take."""
    return svg(figure, ink="black").replace("<svg ", _HEAD, 1)


def pdf(figure: Figure) -> bytes:
    """The figure as a PDF file, black on white."""
    stream = io.BytesIO()
    with mpl.rc_context(style()):
        canvas(figure).savefig(stream, format="pdf", metadata={"CreationDate": None})
    return stream.getvalue()


def png(figure: Figure) -> bytes:
    """The figure as a PNG file, black on white, 144 pixels an inch."""
    stream = io.BytesIO()
    with mpl.rc_context(style()):
        canvas(figure).savefig(stream, format="png", dpi=144)
    return stream.getvalue()


def line(axes: Axes, x: Any, y: Any, number: int, label: str) -> None:
    """Draw a line with the colour, style and marker of its number; x are whole numbers."""
    axes.plot(
        x, y, color=choice(COLOURS, number), linestyle=choice(LINES, number),
        marker=choice(MARKERS, number), markersize=4, label=label,
    )  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def choice(choices: tuple[Any, ...], number: int) -> Any:
    """The choice with this number; after the last one follows the first."""
    return choices[number % len(choices)]


def wrapped(name: str) -> str:
    """An arm's name in short lines, which may leave out its end."""
    return textwrap.fill(name.replace(",", ", "), 26, max_lines=3, placeholder=" …")
