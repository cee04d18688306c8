"""Colours and measures of Grafana's dark theme, as far as our panels use them."""

import re
from collections.abc import Mapping
from typing import Any

#: Pixels. A dashboard's grid is 24 columns wide; a row of the grid is ROW high, with GAP between panels.
WIDTH, MARGIN, ROW, GAP, HEAD = 1280, 16, 30, 8, 32

TEXT, MUTED, LINE, PANEL, CANVAS = "#ccccdc", "#9a9aa8", "#34363c", "#181b1f", "#111217"

#: Colours of series that have none of their own, in order.
PALETTE = (
    *("#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#705da0"),
    *("#37872d", "#fade2a", "#447ebc", "#c15c17", "#890f02", "#0a437c", "#6d1f62", "#584477"),
)

NAMED = {
    "green": "#73bf69",
    "yellow": "#fade2a",
    "orange": "#ff9830",
    "red": "#f2495c",
    "blue": "#5794f2",
    "light-blue": "#8ab8ff",
    "light-green": "#96d98d",
    "purple": "#b877d9",
    "text": TEXT,
}

Json = dict[str, Any]


def color(name: str) -> str:
    """A colour's code.

    Raises:
        KeyError: no panel had this name before; add it to NAMED.
    """
    return name if name.startswith("#") else NAMED[name]


def box(place: Mapping[str, int]) -> tuple[int, int, int, int]:
    """Left, top, width and height in pixels of a panel's place on the grid."""
    column = (WIDTH - 2 * MARGIN) / 24
    left, width = column * place.get("x", 0), column * place["w"]
    top, height = (ROW + GAP) * place.get("y", 0), (ROW + GAP) * place["h"]
    return round(left), top, round(width) - GAP, height - GAP


def color_of(panel: Json, name: str, index: int, value: float) -> str:
    """A series' colour: its own, or by its value, or the palette's next."""
    defaults = panel["fieldConfig"]["defaults"]
    own = overridden(panel, name).get("color")
    if own or defaults["color"]["mode"] == "fixed":
        return color((own or defaults["color"])["fixedColor"])
    if defaults["color"]["mode"] == "thresholds":
        steps = defaults["thresholds"]["steps"]
        reached = [step["color"] for step in steps if step["value"] is None or value >= step["value"]]
        return color(reached[-1])
    return PALETTE[index % len(PALETTE)]


def overridden(panel: Json, name: str) -> Json:
    """What a panel sets for the series ``name`` alone, by property."""
    found = [one for one in panel["fieldConfig"]["overrides"] if _matches(one["matcher"], name)]
    return {prop["id"]: prop["value"] for one in found for prop in one["properties"]}


def _matches(matcher: Json, name: str) -> bool:
    if matcher["id"] == "byRegexp":
        return re.search(matcher["options"].strip("/"), name) is not None
    return bool(matcher["options"] == name)
