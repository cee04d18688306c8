"""The pages: a dashboard's panels on Grafana's grid, and an index of all."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from preview import look
from preview.asking import Answer, Span
from preview.drawing import inside

Json = dict[str, Any]

_TOP = 96  # pixels above the grid


class Shown(NamedTuple):
    """A dashboard with what Prometheus answered, by panel id, and its variables: (label, chosen, offered)."""

    board: Json
    answers: Mapping[int, Answer]
    variables: Sequence[tuple[str, str, Sequence[str]]]

    @property
    def panels(self) -> list[Json]:
        """All but headings."""
        return [panel for panel in self.board["panels"] if panel["type"] != "row"]

    @property
    def empty(self) -> list[str]:
        """Titles of panels for which nothing came back."""
        return [one["title"] for one in self.panels if self.answers[one["id"]].empty]

    @property
    def errors(self) -> list[str]:
        """What Prometheus had against queries, with the panel's title."""
        return [f"{one['title']}: {error}" for one in self.panels for error in self.answers[one["id"]].errors]

    @property
    def height(self) -> int:
        """Of the page, in pixels."""
        bottom = max(top + tall for _, top, _, tall in (look.box(one["gridPos"]) for one in self.board["panels"]))
        return _TOP + bottom + look.MARGIN


def dashboard(shown: Shown, source: str, span: Span) -> str:
    """A dashboard as a page; ``source`` says where its numbers are from."""
    board = shown.board
    offered = "".join(
        f"<span>{escape(label)} <b>{escape(chosen)}</b> of {escape(', '.join(values)) or 'nothing'}</span>"
        for label, chosen, values in shown.variables
    )
    head = f"<h1>{escape(board['title'])}</h1><p class=source>{escape(source)}</p><p class=variables>{offered}</p>"
    parts = [_panel(panel, shown.answers.get(panel["id"]), span) for panel in board["panels"]]
    grid = f'<div class="grid" style="height:{shown.height - _TOP}px">{"".join(parts)}</div>'
    return _page(board["title"], f'<header style="height:{_TOP - 8}px">{head}</header>{grid}')


def index(boards: Mapping[str, Shown], source: str, pictures: bool) -> str:
    """The page that leads to the others; ``boards`` by file name without ending."""
    items = []
    for name, shown in boards.items():
        without = f"; no data in: {'; '.join(shown.empty)}" if shown.empty else ""
        picture = f' <a href="{name}.png">picture</a>' if pictures else ""
        items.append(
            f'<h2><a href="{name}.html">{escape(shown.board["title"])}</a>{picture}</h2>'
            f"<p>{escape(shown.board['description'])} {len(shown.panels)} panels{escape(without)}.</p>"
            + "".join(f'<p class="error">{escape(error)}</p>' for error in shown.errors)
        )
    return _page("Dashboards", f"<h1>Dashboards</h1><p class=source>{escape(source)}</p>{''.join(items)}")


def _panel(panel: Json, answer: Answer | None, span: Span) -> str:
    left, top, width, height = look.box(panel["gridPos"])
    place = f"left:{left}px;top:{top}px;width:{width}px;height:{height}px"
    if answer is None:
        return f'<h2 style="{place}">{escape(panel["title"])}</h2>'
    title, about = escape(panel["title"]), escape(panel["description"])
    head = f'<h3 title="{about}"><span>{title}</span> <small>i</small></h3>'
    state = "error" if answer.errors else "empty" if answer.empty else "data"
    return f'<section data-state="{state}" style="{place}">{head}{inside(panel, answer, span)}</section>'


def _page(title: str, body: str) -> str:
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style><body>{body}</body></html>\n"
    )


_STYLE = f"""
body {{ width: {look.WIDTH - 2 * look.MARGIN}px; margin: 0 {look.MARGIN}px; background: {look.CANVAS};
  color: {look.TEXT}; font: 14px Inter, "Helvetica Neue", Arial, "Liberation Sans", sans-serif; }}
a {{ color: #6e9fff; }}
h1 {{ font-size: 20px; font-weight: 500; margin: 0; padding-top: 10px; }}
header p, .source {{ margin: 6px 0 0; font-size: 13px; }}
.source {{ color: #ffb357; }}
.variables span {{ margin-right: 24px; color: {look.MUTED}; }} .variables b {{ color: {look.TEXT}; }}
.grid {{ position: relative; }}
.grid > h2 {{ position: absolute; margin: 0; font-size: 16px; font-weight: 500; line-height: {look.ROW}px; }}
section {{ position: absolute; box-sizing: border-box; background: {look.PANEL}; border: 1px solid {look.LINE};
  border-radius: 2px; padding: 0 8px; overflow: hidden; }}
h3 {{ height: {look.HEAD}px; line-height: {look.HEAD}px; margin: 0; font-size: 14px; font-weight: 500; display: flex;
  gap: 6px; }}
h3 span {{ overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }} 
h3 small {{ color: {look.MUTED}; align-self: center; width: 12px; border: 1px solid; border-radius: 8px;
  font: italic 10px/12px serif; text-align: center; }}
.error {{ color: #ff5f6d; font: 12px monospace; }} .empty {{ text-align: center; color: {look.MUTED}; }}
.stat {{ display: flex; justify-content: space-around; align-items: center; height: calc(100% - {look.HEAD}px);
  white-space: nowrap; }} .stat b {{ font-weight: 500; }}
.bars {{ display: grid; grid-template-columns: max-content 1fr max-content; gap: 10px; align-items: center;
  height: calc(100% - {look.HEAD + 8}px); overflow-y: auto; align-content: start; }}
.bars span {{ font-size: 12px; text-align: right; }} .bars b {{ font-weight: 500; font-size: 14px; }}
.bar {{ background: #22252b; }} .bar i {{ display: block; height: 100%; box-sizing: border-box; }}
svg {{ display: block; }} svg text {{ font-family: inherit !important; }}
.legend {{ overflow-y: auto; font-size: 12px; }}
.legend table {{ width: 100%; border-collapse: collapse; }} .legend tr {{ height: 22px; }}
.legend th {{ white-space: nowrap; padding: 0 4px; font-weight: 500; color: #6e9fff; text-align: right; }}
.legend td {{ text-align: right; padding: 0 4px; white-space: nowrap; border-top: 1px solid {look.LINE}; }}
.legend td:first-child {{ text-align: left; width: 99%; }}
.legend i {{ display: inline-block; width: 14px; height: 4px; border-radius: 2px; margin-right: 6px;
  vertical-align: middle; }}
.legend span {{ display: inline-block; margin-right: 14px; line-height: 22px; white-space: nowrap; }}
.legend em {{ font-style: normal; color: {look.MUTED}; }}
"""
