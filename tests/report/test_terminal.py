import io
import re

import pytest
from rich.console import Console

from pyrite.errors import UserError
from pyrite.evaluation.scoring import METRICS
from pyrite.report import compare as comparing
from pyrite.report import formatting, terminal
from pyrite.report.compare import compare_reports
from pyrite.report.data import build
from report.report_factory import make
from report.test_data import keeping_base


def printed(renderable: object) -> str:
    out = io.StringIO()
    Console(file=out, width=80, color_system=None).print(renderable)
    return out.getvalue()


@pytest.mark.parametrize("iterations", [1, 2, 12])
def test_table_fits_80_columns_whole(iterations: int) -> None:
    text = printed(terminal.table(build(make(iterations=iterations, gain=2.0))))
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert all(metric.label in text for metric in METRICS.values())
    assert "chosen" in text


def test_table_shows_value_change_and_interval() -> None:
    report = build(make())
    row = report["comparisons"]["iteration-2"]["mrr@5"]
    text = printed(terminal.table(report))
    assert f"{formatting.number(row['other'])} {formatting.percent(row['relative'])}" in text
    assert formatting.interval(row["relative_interval"]) in text


def test_table_when_the_base_is_kept_marks_the_base() -> None:
    assert re.search(r"base model, chosen", printed(terminal.table(build(keeping_base(make())))))


def test_page_and_terminal_say_the_same_verdict() -> None:
    report = build(make())
    assert terminal.verdict(report) == report["verdict"]
    assert report["verdict"].isascii()


def test_comparing_a_run_with_itself_finds_nothing() -> None:
    report = build(make())
    found = compare_reports(report, report)
    assert found.queries == 60
    assert found.notes == []
    assert all(row.difference == 0 and row.p_value == 1 for row in found.rows.values())


def test_comparing_two_runs_is_paired_and_fits_80_columns() -> None:
    small, large = build(make(gain=0.4)), build(make(gain=2.5))
    found = compare_reports(small, large)
    assert found.rows["mrr@5"].difference_interval.low > 0
    text = printed(comparing.table(found))
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "+" in text


def test_runs_without_a_common_test_query_are_refused_with_the_reason() -> None:
    one, other = build(make()), build(make())
    for metrics in other["per_query"].values():
        for metric, values in metrics.items():
            metrics[metric] = {f"other-{query}": value for query, value in values.items()}
    with pytest.raises(UserError, match=r"no test query in common.*same source, seed"):
        compare_reports(one, other)


def test_runs_that_share_a_part_are_compared_on_it_and_say_so() -> None:
    one, other = build(make()), build(make(queries=40))
    found = compare_reports(one, other)
    assert (found.queries, found.left_out) == (40, 20)
    assert "20 left out" in found.notes[0]


def test_another_corpus_or_another_base_is_said() -> None:
    one, other = build(make()), build(make())
    other["test"] = {**other["test"], "corpus_sha256": "another"}
    other["base_model"] = "another"
    notes = compare_reports(one, other).notes
    assert "different passages" in notes[0]
    assert "base models differ" in notes[1]
