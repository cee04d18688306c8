"""Draws inline SVG with matplotlib. The same numbers give the same bytes.

Colours are CSS variables of the page, so one SVG works in light mode, in dark mode and in print. Text is SVG text in
the page's font.
"""

import io
import re
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pyrite.report import formatting

# matplotlib does not support CSS variables: each name is drawn in a unique colour, which is replaced afterwards.
_NAMES = ["ink", "mute", "line", "paper", "gold", "up", "down", "s1", "s2", "s3", "s4", "g1", "g2", "g3", "g4"]
C = {name: f"#0102{number:02x}" for number, name in enumerate(_NAMES)}

_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": C["ink"],
    "axes.edgecolor": C["line"],
    "axes.labelcolor": C["mute"],
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": C["line"],
    "ytick.color": C["line"],
    "xtick.labelcolor": C["mute"],
    "ytick.labelcolor": C["mute"],
    "grid.color": C["line"],
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
}


def series(iteration: int) -> str:
    """Colour of an iteration."""
    return C[f"s{(iteration - 1) % 4 + 1}"]


def draw(name: str, description: str, paint: Any, height: float = 3.1, panels: int = 1) -> str:
    """The SVG that ``paint`` draws, with ``description`` as its text alternative.

    ``paint`` is called with ``panels`` axes, one below the other, which share the y-axis.
    """
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(4.8, height), layout="constrained")
        FigureCanvasSVG(figure)
        paint(*figure.subplots(panels, sharey=True, squeeze=False)[:, 0])
        buffer = io.StringIO()
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    return _inline(buffer.getvalue(), name, description)


def _inline(svg: str, name: str, description: str) -> str:
    """Convert an SVG file to an element of the page, with unique ids, CSS variables and a text alternative."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: var(--sans)", svg)
    for key, colour in C.items():
        svg = svg.replace(colour, f"var(--{key})")
    box = re.search(r'viewBox="([^"]*)"', svg)
    assert box is not None
    head = f'<svg class="plot" viewBox="{box[1]}" role="img" aria-label="{escape(description)}"'
    return re.sub(r"<svg[^>]*", f'{head} xmlns:xlink="http://www.w3.org/1999/xlink"', svg, count=1)


def annotate(
    axes: Axes,
    text: str,
    point: tuple[float, float],
    offset: tuple[float, float],
    coordinates: Any = "data",
    **style: Any,
) -> None:
    """Write ``text`` at ``offset`` (in points) from ``point``."""
    axes.annotate(text, point, xycoords=coordinates, xytext=offset, textcoords="offset points", **style)


def percent_axis(axis: Any) -> None:
    """Ticks as signed percentages."""
    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: formatting.minus(_percent_tick(value))))


def share_axis(axis: Any) -> None:
    """Ticks as percentages without a sign."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: formatting.percent(value, sign=False)))


def value_axis(axis: Any) -> None:
    """Ticks with two decimals."""
    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: formatting.number(value, 2)))


def _percent_tick(share: float) -> str:
    percent = round(100 * share, 6)
    return f"{percent:+g}%" if percent else "0%"
