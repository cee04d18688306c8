"""The report as one HTML page that needs nothing else: no network, no script, no file beside it."""

from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from pyrite.evaluation.scoring import METRICS
from pyrite.evaluation.selection import BASE, label
from pyrite.report import formatting, judging_plots, plots

_LEFT_ASIDE = {"skipped": "skipped", "not_selected": "not chosen", "missing": "missing"}


def render(report: dict[str, Any]) -> str:
    """The page for ``report`` (as ``data.build`` makes it): the same bytes for the same report."""
    return _template().render(
        report=report,
        css=Markup(_resource("page.css")),
        metrics=METRICS,
        BASE=BASE,
        plots={
            name: Markup(svg) if svg else None
            for name, svg in (
                ("changes", plots.changes(report)),
                ("learning", plots.learning(report)),
                ("tradeoff", plots.tradeoff(report)),
                ("shifts", plots.shifts(report)),
                ("grades", judging_plots.grades(report)),
                ("loss", plots.loss(report)),
                ("pace", judging_plots.pace(report)),
                ("drift", judging_plots.drift(report)),
            )
        },
        mined=_mined(report["mining"]),
        left_aside=_left_aside(report["judging"]),
    )


def _mined(mining: list[dict[str, Any]]) -> list[tuple[str, list[float | None]]]:
    """Counts of mining as rows: a label and one value per iteration, in their own order."""
    keys = dict.fromkeys(key for row in mining for key in row["mined"])
    return [(formatting.humanise(key), [row["mined"].get(key) for row in mining]) for key in keys]


def _left_aside(judging: dict[str, Any]) -> list[tuple[str, list[int]]]:
    """Candidates that the answer key was not asked about, as rows; only what there is. A language model has a table."""
    if judging["kind"] != "labels":
        return []
    rows = [(label, [row[key] for row in judging["iterations"]]) for key, label in _LEFT_ASIDE.items()]
    return [row for row in rows if any(row[1])]


def _resource(name: str) -> str:
    return (files("pyrite.report") / name).read_text(encoding="utf-8")


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "number": lambda value, digits=3: formatting.minus(formatting.number(value, digits)),
        "signed": lambda value, digits=3: formatting.minus(formatting.signed(value, digits)),
        "percent": lambda share: formatting.minus(formatting.percent(share)),
        "direction": formatting.direction,
        "interval": lambda of: formatting.minus(formatting.interval(of)),
        "p": lambda value: formatting.minus(formatting.p_value(value)),
        "share": lambda share: formatting.percent(share, sign=False),
        "rate": formatting.rate,
        "dollars": formatting.dollars,
        "decoding_modes": formatting.decoding_modes,
        "change_of_grades": formatting.change_of_grades,
        "minus": formatting.minus,
        "duration": formatting.duration,
        "bytes": formatting.size,
        "when": formatting.when,
        "label": label,
        "count": lambda value: formatting.NONE if value is None else f"{value:,.0f}",
        "rank": lambda rank: ">10" if rank is None else str(rank),
    }
    return environment.from_string(_resource("page.html.j2"))
