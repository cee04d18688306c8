"""Render a panel's contents as HTML."""

import math
from html import escape
from typing import Any

from preview import plots, theme
from preview.queries import PanelData, Series, Span, step_for
from preview.units import format_value

Json = dict[str, Any]

_LEGEND_LINE, _LEGEND_SHARE = 22, 0.35  # Grafana's legend takes at most a third of the panel, and scrolls
_CALCS = {"lastNotNull": "Last *", "max": "Max"}


def render_panel(panel: Json, data: PanelData, span: Span) -> str:
    """Render the contents of a panel.

    Raises:
        ValueError: the panel type or unit is not supported.
    """
    if data.errors:
        return "".join(f'<p class="error">{escape(error)}</p>' for error in data.errors)
    if data.empty:
        return f'<p class="empty">{escape(panel["fieldConfig"]["defaults"].get("noValue", "")) or "no data"}</p>'
    draw = {"stat": _stat, "bargauge": _bars, "timeseries": _lines, "barchart": _columns}.get(panel["type"])
    if not draw:
        raise ValueError(f"Unsupported panel type {panel['type']!r}; implement it in scripts/preview/panels.py.")
    return draw(panel, data.series, span)


def content_size(panel: Json) -> tuple[int, int]:
    """Width and height of a panel's contents in pixels."""
    _, _, width, height = theme.box(panel["gridPos"])
    return width - 16, height - theme.HEAD - 8


def _format(panel: Json, value: float, span: Span) -> str:
    defaults = panel["fieldConfig"]["defaults"]
    return format_value(value, defaults["unit"], defaults.get("decimals"), span.end)


def _axis(panel: Json, span: Span) -> plots.Axis:
    defaults = panel["fieldConfig"]["defaults"]
    thresholds = []
    if defaults.get("custom", {}).get("thresholdsStyle", {}).get("mode") == "dashed":
        steps = defaults["thresholds"]["steps"]
        thresholds = [(step["value"], theme.color(step["color"])) for step in steps if step["value"] is not None]
    return plots.Axis(
        lambda value: _tick(_format(panel, value, span)), defaults.get("min"), defaults.get("max"), thresholds
    )


def _tick(text: str) -> str:
    """Remove trailing zeros from an axis label."""
    digits = text.lstrip("$-").split(" ")[0].rstrip("%KMBT")
    return text.replace(digits, digits.rstrip("0").rstrip("."), 1) if "." in digits else text


def _stat(panel: Json, series: list[Series], span: Span) -> str:
    width, height = content_size(panel)
    cells = []
    for index, one in enumerate(series):
        value = one.points[-1][1]
        text = one.name if panel["options"]["textMode"] == "name" else _format(panel, value, span)
        pixels = min(height * 0.5, width / len(series) / len(text) / 0.58)
        color = theme.color_of(panel, one.name, index, value)
        cells.append(f'<b style="font-size:{pixels:.0f}px;color:{color}">{escape(text)}</b>')
    return f'<div class="stat">{"".join(cells)}</div>'


def _bars(panel: Json, series: list[Series], span: Span) -> str:
    _, height = content_size(panel)
    maximum = panel["fieldConfig"]["defaults"].get("max") or max(one.points[-1][1] for one in series) or 1.0
    bar_height = max(panel["options"]["minVizHeight"], (height - 10 * (len(series) - 1)) / len(series))
    rows = []
    for index, one in enumerate(series):
        value = one.points[-1][1]
        color = theme.color_of(panel, one.name, index, value)
        share = min(100.0, 100 * value / maximum)
        rows.append(
            f'<span>{escape(one.name)}</span><div class="bar" style="height:{bar_height:.0f}px">'
            f'<i style="width:{share:.1f}%;background:{color}40;border-right:2px solid {color}"></i></div>'
            f'<b style="color:{color}">{escape(_format(panel, value, span))}</b>'
        )
    return f'<div class="bars">{"".join(rows)}</div>'


def _lines(panel: Json, series: list[Series], span: Span) -> str:
    width, height = content_size(panel)
    custom = panel["fieldConfig"]["defaults"].get("custom", {})
    step = step_for(span, width)
    plotted = []
    for index, one in enumerate(series):
        overrides = theme.overrides(panel, one.name)
        color = theme.color_of(panel, one.name, index, one.points[-1][1])
        dashed = overrides.get("custom.lineStyle", {}).get("fill") == "dash"
        plotted.append(plots.PlotSeries(one.name, color, one.points, dashed))
    stacked = custom.get("stacking", {}).get("mode") == "normal"
    legend, height = _legend(panel, plotted, width, height, span)
    opaque = custom.get("fillOpacity", 0) / 100
    id_ = f"p{panel['id']}"
    plot = plots.lines(id_, plotted, _axis(panel, span), span, step, stacked, opaque, (width, height))
    return plot + legend


def _columns(panel: Json, series: list[Series], span: Span) -> str:
    """Stacked bars, with the sorting and `grouping to matrix` transformation of our dashboards."""
    [matrix] = [one["options"] for one in panel["transformations"] if one["id"] == "groupingToMatrix"]
    row, column = matrix["rowField"], matrix["columnField"]
    names = sorted({one.labels.get(row, "") for one in series}, key=lambda name: name.zfill(20))
    segments = sorted({one.labels.get(column, "") for one in series})
    plotted = []
    for index, segment in enumerate(segments):
        points = [
            (names.index(s.labels.get(row, "")), s.points[-1][1]) for s in series if s.labels.get(column) == segment
        ]
        name = theme.overrides(panel, segment).get("displayName", segment)
        plotted.append(plots.PlotSeries(name, theme.color_of(panel, segment, index, points[-1][1]), points))
    width, height = content_size(panel)
    legend, height = _legend(panel, plotted, width, height, span)
    plot = plots.bars(f"p{panel['id']}", names, plotted, _axis(panel, span), (width, height))
    return plot + legend


def _legend(panel: Json, plotted: list[plots.PlotSeries], width: int, height: int, span: Span) -> tuple[str, int]:
    """The legend, and the remaining height for the plot."""
    options = panel["options"]["legend"]
    heads = [_CALCS[calc] for calc in options["calcs"]]
    rows = [(_legend_name(one), _calculations(panel, one, span)) for one in plotted]
    if options["displayMode"] == "list":
        lines = _legend_lines(plotted, len(heads), width)
        entries = (
            (name, " ".join(f"<em>{head}: {cell}</em>" for head, cell in zip(heads, cells, strict=False)))
            for name, cells in rows
        )
        contents = "".join(f"<span>{name} {numbers}</span>" for name, numbers in entries)
    else:
        lines = 1 + len(rows)
        top = "".join(f"<th>{head}</th>" for head in heads)
        body = "".join(
            f"<tr><td>{name}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for name, cells in rows
        )
        contents = f"<table><tr><th></th>{top}</tr>{body}</table>"
    legend_height = min(_LEGEND_LINE * lines, round(_LEGEND_SHARE * height))
    return f'<div class="legend" style="max-height:{legend_height}px">{contents}</div>', height - legend_height


def _legend_name(one: plots.PlotSeries) -> str:
    return f'<i style="background:{one.color}"></i>{escape(one.name)}'


def _calculations(panel: Json, one: plots.PlotSeries, span: Span) -> list[str]:
    finite = [y for _, y in one.values if math.isfinite(y)]
    if not finite:
        return []
    values = {"lastNotNull": finite[-1], "max": max(finite)}
    return [_format(panel, values[calc], span) for calc in panel["options"]["legend"]["calcs"]]


def _legend_lines(plotted: list[plots.PlotSeries], numbers: int, width: int) -> int:
    """Number of lines that a legend list needs."""
    needed = sum(7 * len(one.name) + 36 + 90 * numbers for one in plotted)
    return 1 + needed // width
