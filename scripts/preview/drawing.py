"""A panel's inside: its JSON and its answers in, an element of a page out."""

import math
from html import escape
from typing import Any

from preview import look, plots
from preview.asking import Answer, Series, Span, step_for
from preview.units import shown

Json = dict[str, Any]

_LEGEND_LINE, _LEGEND_SHARE = 22, 0.35  # Grafana's legend below a plot takes a third of it at most, and scrolls
_CALCS = {"lastNotNull": "Last *", "max": "Max"}


def inside(panel: Json, answer: Answer, span: Span) -> str:
    """What a panel shows.

    Raises:
        ValueError: the panel is of a kind, or has a unit, that the preview does not know.
    """
    if answer.errors:
        return "".join(f'<p class="error">{escape(error)}</p>' for error in answer.errors)
    if answer.empty:
        return f'<p class="empty">{escape(panel["fieldConfig"]["defaults"].get("noValue", "")) or "no data"}</p>'
    draw = {"stat": _stat, "bargauge": _bars, "timeseries": _lines, "barchart": _columns}.get(panel["type"])
    if not draw:
        raise ValueError(f"the preview does not draw panels of type {panel['type']!r}")
    return draw(panel, answer.series, span)


def size(panel: Json) -> tuple[int, int]:
    """Width and height in pixels of what is inside a panel."""
    _, _, width, height = look.box(panel["gridPos"])
    return width - 16, height - look.HEAD - 8


def _said(panel: Json, value: float, span: Span) -> str:
    defaults = panel["fieldConfig"]["defaults"]
    return shown(value, defaults["unit"], defaults.get("decimals"), span.end)


def _axis(panel: Json, span: Span) -> plots.Axis:
    defaults = panel["fieldConfig"]["defaults"]
    marks = []
    if defaults.get("custom", {}).get("thresholdsStyle", {}).get("mode") == "dashed":
        steps = defaults["thresholds"]["steps"]
        marks = [(step["value"], look.color(step["color"])) for step in steps if step["value"] is not None]
    return plots.Axis(lambda value: _tick(_said(panel, value, span)), defaults.get("min"), defaults.get("max"), marks)


def _tick(text: str) -> str:
    """A number on an axis has no zeros at its end."""
    digits = text.lstrip("$-").split(" ")[0].rstrip("%KMBT")
    return text.replace(digits, digits.rstrip("0").rstrip("."), 1) if "." in digits else text


def _stat(panel: Json, series: list[Series], span: Span) -> str:
    width, height = size(panel)
    cells = []
    for index, one in enumerate(series):
        value = one.points[-1][1]
        text = one.name if panel["options"]["textMode"] == "name" else _said(panel, value, span)
        pixels = min(height * 0.5, width / len(series) / len(text) / 0.58)
        color = look.color_of(panel, one.name, index, value)
        cells.append(f'<b style="font-size:{pixels:.0f}px;color:{color}">{escape(text)}</b>')
    return f'<div class="stat">{"".join(cells)}</div>'


def _bars(panel: Json, series: list[Series], span: Span) -> str:
    _, height = size(panel)
    most = panel["fieldConfig"]["defaults"].get("max") or max(one.points[-1][1] for one in series) or 1.0
    tall = max(panel["options"]["minVizHeight"], (height - 10 * (len(series) - 1)) / len(series))
    rows = []
    for index, one in enumerate(series):
        value = one.points[-1][1]
        color = look.color_of(panel, one.name, index, value)
        filled = min(100.0, 100 * value / most)
        rows.append(
            f'<span>{escape(one.name)}</span><div class="bar" style="height:{tall:.0f}px">'
            f'<i style="width:{filled:.1f}%;background:{color}40;border-right:2px solid {color}"></i></div>'
            f'<b style="color:{color}">{escape(_said(panel, value, span))}</b>'
        )
    return f'<div class="bars">{"".join(rows)}</div>'


def _lines(panel: Json, series: list[Series], span: Span) -> str:
    width, height = size(panel)
    custom = panel["fieldConfig"]["defaults"].get("custom", {})
    step = step_for(span, width)
    drawn = []
    for index, one in enumerate(series):
        own = look.overridden(panel, one.name)
        color = look.color_of(panel, one.name, index, one.points[-1][1])
        dashed = own.get("custom.lineStyle", {}).get("fill") == "dash"
        drawn.append(plots.Drawn(one.name, color, one.points, dashed))
    stacked = custom.get("stacking", {}).get("mode") == "normal"
    legend, height = _legend(panel, drawn, width, height, span)
    opaque = custom.get("fillOpacity", 0) / 100
    id_ = f"p{panel['id']}"
    plot = plots.lines(id_, drawn, _axis(panel, span), span, step, stacked, opaque, (width, height))
    return plot + legend


def _columns(panel: Json, series: list[Series], span: Span) -> str:
    """A column for each value of one label, stacked by another: sorted, and Grafana's `grouping to matrix`."""
    [matrix] = [one["options"] for one in panel["transformations"] if one["id"] == "groupingToMatrix"]
    row, column = matrix["rowField"], matrix["columnField"]
    names = sorted({one.labels.get(row, "") for one in series}, key=lambda name: name.zfill(20))
    kinds = sorted({one.labels.get(column, "") for one in series})
    drawn = []
    for index, kind in enumerate(kinds):
        points = [(names.index(s.labels.get(row, "")), s.points[-1][1]) for s in series if s.labels.get(column) == kind]
        name = look.overridden(panel, kind).get("displayName", kind)
        drawn.append(plots.Drawn(name, look.color_of(panel, kind, index, points[-1][1]), points))
    width, height = size(panel)
    legend, height = _legend(panel, drawn, width, height, span)
    plot = plots.columns(f"p{panel['id']}", names, drawn, _axis(panel, span), (width, height))
    return plot + legend


def _legend(panel: Json, drawn: list[plots.Drawn], width: int, height: int, span: Span) -> tuple[str, int]:
    """The legend, and the height that it leaves to the plot."""
    options = panel["options"]["legend"]
    heads = [_CALCS[calc] for calc in options["calcs"]]
    rows = [(_named(one), _calculated(panel, one, span)) for one in drawn]
    if options["displayMode"] == "list":
        lines = _lines_of(drawn, len(heads), width)
        said = (
            (name, " ".join(f"<em>{head}: {cell}</em>" for head, cell in zip(heads, cells, strict=False)))
            for name, cells in rows
        )
        inside = "".join(f"<span>{name} {numbers}</span>" for name, numbers in said)
    else:
        lines = 1 + len(rows)
        top = "".join(f"<th>{head}</th>" for head in heads)
        body = "".join(
            f"<tr><td>{name}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for name, cells in rows
        )
        inside = f"<table><tr><th></th>{top}</tr>{body}</table>"
    taken = min(_LEGEND_LINE * lines, round(_LEGEND_SHARE * height))
    return f'<div class="legend" style="max-height:{taken}px">{inside}</div>', height - taken


def _named(one: plots.Drawn) -> str:
    return f'<i style="background:{one.color}"></i>{escape(one.name)}'


def _calculated(panel: Json, one: plots.Drawn, span: Span) -> list[str]:
    there = [y for _, y in one.values if math.isfinite(y)]
    if not there:
        return []
    values = {"lastNotNull": there[-1], "max": max(there)}
    return [_said(panel, values[calc], span) for calc in panel["options"]["legend"]["calcs"]]


def _lines_of(drawn: list[plots.Drawn], numbers: int, width: int) -> int:
    """How many lines a list of names takes."""
    needed = sum(7 * len(one.name) + 36 + 90 * numbers for one in drawn)
    return 1 + needed // width
