"""HTML pages: each dashboard on Grafana's grid, and an index."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from preview import theme
from preview.panels import render_panel
from preview.queries import PanelData, Span

Json = dict[str, Any]

_TOP = 96  # height of the header in pixels


class DashboardData(NamedTuple):
    """A dashboard, its data by panel id, and its variables as (label, selected value, all values)."""

    board: Json
    data: Mapping[int, PanelData]
    variables: Sequence[tuple[str, str, Sequence[str]]]

    @property
    def panels(self) -> list[Json]:
        """All panels, without row headings."""
        return [panel for panel in self.board["panels"] if panel["type"] != "row"]

    @property
    def empty(self) -> list[str]:
        """Titles of panels without data."""
        return [panel["title"] for panel in self.panels if self.data[panel["id"]].empty]

    @property
    def errors(self) -> list[str]:
        """Query errors, with the panel's title."""
        return [f"{panel['title']}: {error}" for panel in self.panels for error in self.data[panel["id"]].errors]

    @property
    def height(self) -> int:
        """Height of the page in pixels."""
        bottom = max(top + tall for _, top, _, tall in (theme.box(panel["gridPos"]) for panel in self.board["panels"]))
        return _TOP + bottom + theme.MARGIN


def dashboard_page(shown: DashboardData, source: str, span: Span) -> str:
    """Render a dashboard; ``source`` describes the origin of the data."""
    board = shown.board
    variables = "".join(
        f"<span>{escape(label)} <b>{escape(selected)}</b> of {escape(', '.join(values)) or 'nothing'}</span>"
        for label, selected, values in shown.variables
    )
    head = f"<h1>{escape(board['title'])}</h1><p class=source>{escape(source)}</p><p class=variables>{variables}</p>"
    parts = [_panel(panel, shown.data.get(panel["id"]), span) for panel in board["panels"]]
    grid = f'<div class="grid" style="height:{shown.height - _TOP}px">{"".join(parts)}</div>'
    return _page(board["title"], f'<header style="height:{_TOP - 8}px">{head}</header>{grid}')


def index_page(boards: Mapping[str, DashboardData], source: str, screenshots: bool) -> str:
    """Render the index of ``boards``, which are keyed by file name without suffix."""
    items = []
    for name, shown in boards.items():
        no_data = f"; no data in: {'; '.join(shown.empty)}" if shown.empty else ""
        picture = f' <a href="{name}.png">picture</a>' if screenshots else ""
        items.append(
            f'<h2><a href="{name}.html">{escape(shown.board["title"])}</a>{picture}</h2>'
            f"<p>{escape(shown.board['description'])} {len(shown.panels)} panels{escape(no_data)}.</p>"
            + "".join(f'<p class="error">{escape(error)}</p>' for error in shown.errors)
        )
    return _page("Dashboards", f"<h1>Dashboards</h1><p class=source>{escape(source)}</p>{''.join(items)}")


def _panel(panel: Json, data: PanelData | None, span: Span) -> str:
    left, top, width, height = theme.box(panel["gridPos"])
    position = f"left:{left}px;top:{top}px;width:{width}px;height:{height}px"
    if data is None:
        return f'<h2 style="{position}">{escape(panel["title"])}</h2>'
    title, description = escape(panel["title"]), escape(panel["description"])
    head = f'<h3 title="{description}"><span>{title}</span> <small>i</small></h3>'
    state = "error" if data.errors else "empty" if data.empty else "data"
    return f'<section data-state="{state}" style="{position}">{head}{render_panel(panel, data, span)}</section>'


def _page(title: str, body: str) -> str:
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style><body>{body}</body></html>\n"
    )


_STYLE = f"""
body {{ width: {theme.WIDTH - 2 * theme.MARGIN}px; margin: 0 {theme.MARGIN}px; background: {theme.CANVAS};
  color: {theme.TEXT}; font: 14px Inter, "Helvetica Neue", Arial, "Liberation Sans", sans-serif; }}
a {{ color: #6e9fff; }}
h1 {{ font-size: 20px; font-weight: 500; margin: 0; padding-top: 10px; }}
header p, .source {{ margin: 6px 0 0; font-size: 13px; }}
.source {{ color: #ffb357; }}
.variables span {{ margin-right: 24px; color: {theme.MUTED}; }} .variables b {{ color: {theme.TEXT}; }}
.grid {{ position: relative; }}
.grid > h2 {{ position: absolute; margin: 0; font-size: 16px; font-weight: 500; line-height: {theme.ROW}px; }}
section {{ position: absolute; box-sizing: border-box; background: {theme.PANEL}; border: 1px solid {theme.LINE};
  border-radius: 2px; padding: 0 8px; overflow: hidden; }}
h3 {{ height: {theme.HEAD}px; line-height: {theme.HEAD}px; margin: 0; font-size: 14px; font-weight: 500; display: flex;
  gap: 6px; }}
h3 span {{ overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }}
h3 small {{ color: {theme.MUTED}; align-self: center; width: 12px; border: 1px solid; border-radius: 8px;
  font: italic 10px/12px serif; text-align: center; }}
.error {{ color: #ff5f6d; font: 12px monospace; }} .empty {{ text-align: center; color: {theme.MUTED}; }}
.stat {{ display: flex; justify-content: space-around; align-items: center; height: calc(100% - {theme.HEAD}px);
  white-space: nowrap; }} .stat b {{ font-weight: 500; }}
.bars {{ display: grid; grid-template-columns: max-content 1fr max-content; gap: 10px; align-items: center;
  height: calc(100% - {theme.HEAD + 8}px); overflow-y: auto; align-content: start; }}
.bars span {{ font-size: 12px; text-align: right; }} .bars b {{ font-weight: 500; font-size: 14px; }}
.bar {{ background: #22252b; }} .bar i {{ display: block; height: 100%; box-sizing: border-box; }}
svg {{ display: block; }} svg text {{ font-family: inherit !important; }}
.legend {{ overflow-y: auto; font-size: 12px; }}
.legend table {{ width: 100%; border-collapse: collapse; }} .legend tr {{ height: 22px; }}
.legend th {{ white-space: nowrap; padding: 0 4px; font-weight: 500; color: #6e9fff; text-align: right; }}
.legend td {{ text-align: right; padding: 0 4px; white-space: nowrap; border-top: 1px solid {theme.LINE}; }}
.legend td:first-child {{ text-align: left; width: 99%; }}
.legend i {{ display: inline-block; width: 14px; height: 4px; border-radius: 2px; margin-right: 6px;
  vertical-align: middle; }}
.legend span {{ display: inline-block; margin-right: 14px; line-height: 22px; white-space: nowrap; }}
.legend em {{ font-style: normal; color: {theme.MUTED}; }}
"""
