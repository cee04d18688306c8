"""Colors and sizes of Grafana's dark theme, for the features that our panels use."""

import re
from collections.abc import Mapping
from typing import Any

#: In pixels. The grid has 24 columns and rows of height ROW, with GAP between panels.
WIDTH, MARGIN, ROW, GAP, HEAD = 1280, 16, 30, 8, 32

TEXT, MUTED, LINE, PANEL, CANVAS = "#ccccdc", "#9a9aa8", "#34363c", "#181b1f", "#111217"

#: Default series colors, in order.
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
    """Hex code of a color.

    Raises:
        KeyError: the name is unknown; add it to NAMED.
    """
    return name if name.startswith("#") else NAMED[name]


def box(grid_position: Mapping[str, int]) -> tuple[int, int, int, int]:
    """Left, top, width and height of a panel in pixels."""
    column = (WIDTH - 2 * MARGIN) / 24
    left, width = column * grid_position.get("x", 0), column * grid_position["w"]
    top, height = (ROW + GAP) * grid_position.get("y", 0), (ROW + GAP) * grid_position["h"]
    return round(left), top, round(width) - GAP, height - GAP


def color_of(panel: Json, name: str, index: int, value: float) -> str:
    """Color of a series: its override, the color of its threshold, or the next color of the palette."""
    defaults = panel["fieldConfig"]["defaults"]
    override = overrides(panel, name).get("color")
    if override or defaults["color"]["mode"] == "fixed":
        return color((override or defaults["color"])["fixedColor"])
    if defaults["color"]["mode"] == "thresholds":
        steps = defaults["thresholds"]["steps"]
        reached = [step["color"] for step in steps if step["value"] is None or value >= step["value"]]
        return color(reached[-1])
    return PALETTE[index % len(PALETTE)]


def overrides(panel: Json, name: str) -> Json:
    """Properties that a panel overrides for the series ``name``."""
    matching = [override for override in panel["fieldConfig"]["overrides"] if _matches(override["matcher"], name)]
    return {prop["id"]: prop["value"] for override in matching for prop in override["properties"]}


def _matches(matcher: Json, name: str) -> bool:
    if matcher["id"] == "byRegexp":
        return re.search(matcher["options"].strip("/"), name) is not None
    return bool(matcher["options"] == name)
