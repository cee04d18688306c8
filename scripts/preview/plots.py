"""Line and bar charts as SVG, drawn with matplotlib."""

import io
import math
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from preview import theme
from preview.queries import Span

_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": theme.MUTED,
    "axes.edgecolor": theme.LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.xmargin": 0,
    "xtick.color": theme.LINE,
    "ytick.color": theme.LINE,
    "xtick.labelcolor": theme.MUTED,
    "ytick.labelcolor": theme.MUTED,
    "ytick.major.size": 0,
    "grid.color": theme.LINE,
    "grid.linewidth": 0.5,
}
_TICKS = (300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)

Points = Sequence[tuple[float, float]]


class PlotSeries(NamedTuple):
    """A series and its style; ``values`` are (x, y)."""

    name: str
    color: str
    values: Points
    dashed: bool = False


class Axis(NamedTuple):
    """The y axis: number format, limits (None: from the data), and threshold lines."""

    format: Callable[[float], str]
    minimum: float | None
    maximum: float | None
    thresholds: Sequence[tuple[float, str]] = ()


def lines(
    id_: str,
    series: Sequence[PlotSeries],
    axis: Axis,
    span: Span,
    step: int,
    stacked: bool,
    fill: float,
    size: tuple[int, int],
) -> str:
    """Draw series over time on ``size`` pixels; ``fill`` is the opacity of areas, 0 to 1."""

    def paint(axes: Axes) -> None:
        if stacked:
            _stack(axes, series, span, step, fill)
        else:
            for one in series:
                for part in _split_at_gaps(one.values, step):
                    x, y = zip(*part, strict=True)
                    axes.plot(x, y, color=one.color, linewidth=1.2, linestyle="--" if one.dashed else "-")
                    axes.fill_between(x, 0, y, color=one.color, alpha=fill, linewidth=0)
                    if len(part) == 1:
                        axes.plot(x, y, "o", color=one.color, markersize=3)
        axes.set_xlim(*span)
        _format_time_axis(axes, span, size[0])
        _format_value_axis(axes, axis, size[1])

    return _draw(id_, paint, size)


def bars(id_: str, names: Sequence[str], series: Sequence[PlotSeries], axis: Axis, size: tuple[int, int]) -> str:
    """Draw stacked bars, one for each of ``names``; the x of a value is an index into ``names``."""

    def paint(axes: Axes) -> None:
        below = [0.0] * len(names)
        for one in series:
            for x, y in one.values:
                axes.bar(x, y, 0.7, below[int(x)], color=one.color, alpha=0.8, linewidth=0)
                below[int(x)] += y
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.xaxis.set_major_locator(FixedLocator(range(len(names))))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: names[int(value)]))
        _format_value_axis(axes, axis, size[1])
        # Like Grafana, show a value if it fits.
        minimum_height = (axes.get_ylim()[1] - axes.get_ylim()[0]) * 15 / size[1]
        below = [0.0] * len(names)
        for one in series:
            for x, y in one.values:
                if y > minimum_height:
                    axes.text(x, below[int(x)] + y / 2, axis.format(y), ha="center", va="center", color=theme.CANVAS)
                below[int(x)] += y

    return _draw(id_, paint, size)


def _stack(axes: Axes, series: Sequence[PlotSeries], span: Span, step: int, fill: float) -> None:
    """Draw stacked areas; missing values count as 0."""
    first = span.start // step * step
    grid = [first + step * i for i in range(int((span.end - first) // step) + 1)]
    below = [0.0] * len(grid)
    for one in series:
        finite = {round(x): y for x, y in one.values if math.isfinite(y)}
        above = [low + finite.get(round(x), 0.0) for x, low in zip(grid, below, strict=True)]
        axes.fill_between(grid, below, above, color=one.color, alpha=fill, linewidth=0)
        edge = [high if round(x) in finite else float("nan") for x, high in zip(grid, above, strict=True)]
        axes.plot(grid, edge, color=one.color, linewidth=1.2)
        below = above


def _split_at_gaps(points: Points, step: int) -> list[list[tuple[float, float]]]:
    """Split points at missing values."""
    pieces: list[list[tuple[float, float]]] = []
    last = float("-inf")
    for x, y in points:
        if math.isfinite(y):
            if x - last > 1.5 * step:
                pieces.append([])
            pieces[-1].append((x, y))
            last = x
    return pieces


def _format_time_axis(axes: Axes, span: Span, width: int) -> None:
    length = span.end - span.start
    step = next((tick for tick in _TICKS if length / tick <= width / 70), _TICKS[-1])
    utc_offset = datetime.fromtimestamp(span.start).astimezone().utcoffset()
    offset = utc_offset.total_seconds() if utc_offset else 0.0
    first = (span.start + offset) // step * step - offset
    ticks = [first + step * i for i in range(1, int(length // step) + 2)]
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if tick <= span.end]))
    time_format = "%m/%d %H:%M" if length > 86400 else "%H:%M"
    axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: datetime.fromtimestamp(at).strftime(time_format)))


def _format_value_axis(axes: Axes, axis: Axis, height: int) -> None:
    low, high = axes.get_ylim()
    low = low if axis.minimum is None else axis.minimum
    high = high if axis.maximum is None else axis.maximum
    axes.set_ylim(low, high if high > low else low + 1)
    axes.yaxis.set_major_locator(MaxNLocator(max(2, height // 40), steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: axis.format(value)))
    axes.grid(axis="both")
    for value, color in axis.thresholds:
        if low <= value <= high:
            axes.axhline(value, color=color, linewidth=1, linestyle=(0, (6, 4)))


def _draw(id_: str, paint: Callable[[Axes], None], size: tuple[int, int]) -> str:
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": id_}):
        # A point is a pixel of the page.
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure.add_subplot())
        buffer = io.StringIO()
        empty = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", transparent=True, metadata=empty)
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{id_}-", svg)
    return re.sub(r'width="[\d.]+pt"|height="[\d.]+pt"', lambda match: match[0].replace("pt", "px"), svg, count=2)
