"""The HTML pages of a report, of a probe and for grading. Each is a single file that loads no other file.

Only the page for grading has a script.
"""

from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from pyrite.evaluation.scoring import METRICS
from pyrite.evaluation.selection import BASE, DEFAULT_BLENDS, label
from pyrite.report import formatting, plots, queries

_PLOTS = {
    draw.__name__: draw
    for draw in (
        plots.changes,
        plots.learning,
        plots.tradeoff,
        plots.rank_changes,
        plots.grades,
        plots.loss,
        plots.judging_speed,
        plots.judging_grades,
    )
}
#: Labels of the pairs that the answer key (``judge.kind: labels``) did not grade.
_NOT_JUDGED = {"skipped": "skipped", "not_selected": "not selected", "missing": "missing"}
#: Headings of the groups of sample judgments.
_PROBE_HEADINGS = {
    "known, graded low": "Known relevant passages with grade 1 or 2",
    "similar, graded high": "Similar passages with grade 3 or 4: unlabelled answers, or errors of the judge",
    "random, graded high": "Random passages with grade 3 or 4",
    "4": "Grade 4: full answer",
    "3": "Grade 3: partial answer",
    "2": "Grade 2: on the topic, no answer",
    "1": "Grade 1: not relevant",
}


def report_page(report: dict[str, Any]) -> str:
    """The page of ``report``, as returned by ``data.build``. The same report gives the same bytes."""
    filters: dict[str, Callable[..., str]] = {
        "signed": _with_minus(formatting.signed),
        "percent": _with_minus(formatting.percent),
        "interval": _with_minus(formatting.interval),
        "p": _with_minus(formatting.p_value),
        "minus": formatting.minus,
        "direction": formatting.direction,
        "dollars": formatting.dollars,
        "decoding": formatting.decoding,
        "labels_caveat": formatting.labels_caveat,
        "grade_share_change": formatting.grade_share_change,
        "duration": formatting.duration,
        "bytes": formatting.size,
        "small_bytes": formatting.small_bytes,
        "label": label,
        "rank": lambda rank: ">10" if rank is None else str(rank),
    }
    drawings = {name: draw(report) for name, draw in _PLOTS.items()}
    return _template("report.html.j2", filters).render(
        report=report,
        css=Markup(_resource("page.css")),
        metrics=METRICS,
        BASE=BASE,
        default_blends=DEFAULT_BLENDS,
        headline=formatting.headline(report),
        chooses_by_judge=formatting.chooses_by_judge(report),
        judged_columns=formatting.JUDGED_METRICS,
        key_name=formatting.key_name(report),
        one_run=formatting.ONE_RUN,
        min_queries=queries.MIN_QUERIES_FOR_INTERVAL,
        plots={name: Markup(svg) if svg else None for name, svg in drawings.items()},
        mining_rows=_mining_rows(report["mining"]),
        not_judged_rows=_not_judged_rows(report["judging"]),
    )


def probe_page(content: dict[str, Any]) -> str:
    """The page of a probe, as returned by ``pyrite.judge_eval.probe.probe``. The same content gives the same bytes."""
    filters: dict[str, Callable[..., str]] = {
        "sentence": lambda text: text[0].upper() + text[1:] + ".",
        "plural": formatting.plural,
    }
    return _template("probe.html.j2", filters).render(
        probe=content,
        css=Markup(_resource("page.css")),
        headings=_PROBE_HEADINGS,
        failed=[check for check in content["checks"] if not check["passed"]],
    )


def grade_page(run: str, nonce: str) -> str:
    """The page to grade pairs of a run on. It works only with its server, ``pyrite.people.server``.

    Args:
        nonce: allows the page's style and script in its content security policy.
    """
    names = {grade: _PROBE_HEADINGS[str(grade)].partition(": ")[2] for grade in (1, 2, 3, 4)}
    return _template("grade.html.j2", {}).render(run=run, nonce=nonce, css=Markup(_resource("page.css")), grades=names)


def _mining_rows(mining: list[dict[str, Any]]) -> list[tuple[str, list[float | None]]]:
    """The numbers of the mine step as rows: a label and one value per iteration."""
    keys = dict.fromkeys(key for row in mining for key in row["mined"])
    return [(formatting.humanise(key), [row["mined"].get(key) for row in mining]) for key in keys]


def _not_judged_rows(judging: dict[str, Any]) -> list[tuple[str, list[int]]]:
    """Numbers of pairs that the answer key did not grade, without rows of zeros. LLM judges have another table."""
    if judging["kind"] != "labels":
        return []
    rows = [(name, [row[key] for row in judging["iterations"]]) for key, name in _NOT_JUDGED.items()]
    return [row for row in rows if any(row[1])]


def _with_minus(formatter: Callable[..., str]) -> Callable[..., str]:
    return lambda *values: formatting.minus(formatter(*values))


def _resource(name: str) -> str:
    return (files("pyrite.report") / name).read_text(encoding="utf-8")


def _template(name: str, filters: Mapping[str, Callable[..., str]]) -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "number": _with_minus(formatting.number),
        "share": lambda share: formatting.percent(share, sign=False),
        "rate": formatting.rate,
        "count": lambda value: formatting.NONE if value is None else f"{value:,.0f}",
        "when": formatting.when,
        **filters,
    }
    return environment.from_string(_resource(name))
