"""Terminal tables: complete, and at most 80 columns wide."""

import io
import re

import pytest
from rich.console import Console

from pyrite.evaluation.scoring import METRICS
from pyrite.report import formatting, terminal
from pyrite.report.compare import compare_reports
from pyrite.report.data import build
from report.report_factory import make
from report.test_data import with_base_chosen


def printed(renderable: object) -> str:
    out = io.StringIO()
    Console(file=out, width=80, color_system=None).print(renderable)
    return out.getvalue()


@pytest.mark.parametrize("iterations", [1, 2, 12])
def test_results_fit_into_80_columns(iterations: int) -> None:
    text = printed(terminal.results(build(make(iterations=iterations, gain=2.0))))
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert all(metric.label in text for metric in METRICS.values())
    assert "chosen" in text


def test_references_fit_into_80_columns() -> None:
    text = printed(terminal.references(build(make(queries=4, gain=3.0, bm25=0.02))))
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert text.count("without context") == 2
    assert "BM25" in text
    assert text.count("+4900% to +4900%") == 2


def test_smaller_embeddings_fit_into_80_columns() -> None:
    report = build(make())
    (table,) = [each for each in terminal.outcome(report, None) if "Smaller" in printed(each)]
    text = printed(table)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert re.search(r"float32, +256 +\S+ -10% +\S+ -10%\s+64 dimensions", text)
    assert re.search(r"binary, +48 +\S+ -3\.0% +\S+ -3\.0%\s+first 40 rescored +\+ 1,536 on disk ", text)
    assert terminal.smaller({**report, "smaller": None}) is None


def test_results_show_value_change_and_interval() -> None:
    report = build(make())
    row = report["comparisons"]["iteration-2"]["mrr@5"]
    text = printed(terminal.results(report))
    assert f"{formatting.number(row['other'])} {formatting.percent(row['relative'])}" in text
    assert formatting.interval(row["relative_interval"]) in text
    assert "One split and one training seed" in " ".join(text.split())


def test_results_mark_a_chosen_base_model() -> None:
    assert re.search(r"base model, chosen", printed(terminal.results(build(with_base_chosen(make())))))


def test_comparison_is_paired_and_fits_into_80_columns() -> None:
    small, large = build(make(gain=0.4)), build(make(gain=2.5))
    found = compare_reports(small, large)
    assert found.rows["mrr@5"].difference_interval.low > 0
    text = printed(terminal.comparison(found))
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "+" in text
    assert all(name in text for name in ("MRR@5, validation", "DCG@5, validation", "MRR@5, test"))
    assert "To choose between runs, use validation" in text


def test_a_judge_that_can_err_has_its_known_answers_shown() -> None:
    report = build(make(judge={"noise": {"kappa": 0.5}}))
    text = " ".join("".join(map(printed, terminal.outcome(report, None))).split())
    assert re.search(r"Known answers: the judge gave grade 3 or 4 to [\d.]+% \([\d.]+% to [\d.]+%\) of", text)
    assert "Known answers" not in "".join(map(printed, terminal.outcome(build(make()), None)))


def test_verdict_is_printable_on_every_terminal() -> None:
    assert build(make())["verdict"].isascii()
