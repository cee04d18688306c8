"""The report's main table for a terminal of 80 columns; the verdict is the page's."""

from typing import Any

from rich import box
from rich.table import Table

from pyrite.evaluation.scoring import METRICS
from pyrite.evaluation.selection import BASE, label
from pyrite.report import formatting
from pyrite.report.formatting import verdict

__all__ = ["table", "verdict"]

#: More tuned models than this do not fit 80 columns.
_TUNED = 3


def table(report: dict[str, Any]) -> Table:
    """Every metric on test under the base model, iterations and the chosen model, with 95% intervals."""
    shown, left_out = _models(report)
    wide = Table(
        title=f"Means over {formatting.plural(report['test']['queries'], 'test query', 'test queries')}",
        caption=_caption(left_out),
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    wide.add_column("", no_wrap=True)
    for model in shown:
        name = label(model).replace(" at ", "\nat ") + (", chosen" if model == report["chosen"] else "")
        wide.add_column(name, justify="right", no_wrap=True)
    for metric in METRICS.values():
        cells = [_cell(report, model, metric.name) for model in shown]
        wide.add_row(metric.label, *cells)
    return wide


def _models(report: dict[str, Any]) -> tuple[list[str], int]:
    """The models that fit: base, the first and the last iterations, and the chosen one always."""
    tuned: list[str] = [model for model in report["models"] if model != BASE]
    if len(tuned) <= _TUNED:
        return [BASE, *tuned], 0
    whole = [model for model in tuned if "@" not in model]
    wanted = [whole[0], whole[-1], report["chosen"], report["compared"], *reversed(whole)]
    kept = set([model for model in dict.fromkeys(wanted) if model != BASE][:_TUNED])
    return [BASE, *(model for model in tuned if model in kept)], len(tuned) - len(kept)


def _caption(left_out: int) -> str:
    said = "Change from the base model, and its 95% interval."
    return f"{said} {formatting.plural(left_out, 'more model')} in the report." if left_out else said


def _cell(report: dict[str, Any], model: str, metric: str) -> str:
    if model == BASE:
        return formatting.number(report["means"]["test"][BASE][metric])
    row = report["comparisons"][model][metric]
    change = formatting.percent(row["relative"])
    colour = {"up": "green", "down": "red"}.get(formatting.direction(row))
    change = f"[{colour}]{change}[/]" if colour else change
    return f"{formatting.number(row['other'])} {change}\n[dim]{formatting.interval(row['relative_interval'])}[/]"
