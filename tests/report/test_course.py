"""Speed and grades over the time of judging, from the timelines of the shards."""

from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrite.report.course import ENOUGH_PAIRS, MOST_SLICES, course, lay
from pyrite.report.data import ReportInputs, build
from pyrite.tables import JUDGMENTS
from report.report_factory import make, with_timelines

LLM = {"kind": "llm", "model": "a-model"}
COUNTS = st.lists(st.integers(0, 400), min_size=4, max_size=4)


@st.composite
def timelines(draw: st.DrawFn) -> dict[str, Any]:
    width, rows = 2.0 ** draw(st.integers(0, 9)), draw(st.lists(COUNTS, min_size=1, max_size=60))
    return {
        "started": f"2026-11-{draw(st.integers(21, 23))}T20:{draw(st.integers(0, 59)):02d}:00.250+00:00",
        "bucket_seconds": width,
        "seconds": width * (len(rows) - draw(st.floats(0, 1))),
        "grades": rows,
    }


@given(st.lists(timelines(), min_size=1, max_size=5))
def test_laid_beside_each_other_no_pair_is_lost(shards: list[dict[str, Any]]) -> None:
    _, width, counts = lay(shards)
    wanted = [sum(row[grade] for shard in shards for row in shard["grades"]) for grade in range(4)]
    assert counts.sum(axis=0) == pytest.approx(wanted)
    assert counts.min() >= 0
    assert 1 <= len(counts) <= MOST_SLICES
    assert width >= max(shard["bucket_seconds"] for shard in shards) * (1 - 1e-9), "no finer than what was kept"


def shard(started: str, *rows: list[int], seconds: float) -> dict[str, Any]:
    timeline = {"started": started, "bucket_seconds": 2.0, "seconds": seconds, "grades": list(rows)}
    return {"summary": {"timeline": timeline}}


def judgments(first: int, *counts: int) -> pa.Table:
    grades = [grade for grade, count in enumerate(counts, 1) for _ in range(count)]
    rows = [{"query_id": "q", "passage_id": f"c{first + n}", "grade": grade} for n, grade in enumerate(grades)]
    return pa.Table.from_pylist(rows, JUDGMENTS)


def test_speed_and_shares_by_hand() -> None:
    """Shard 1 begins 4 s after shard 0 on another machine, and is done 1 s into its second bucket."""
    manifests = {
        "judge-1.0": shard("2026-11-22T20:00:00+00:00", [80, 0, 0, 0], [40, 40, 0, 0], [0, 0, 0, 80], seconds=6.0),
        "judge-1.1": shard("2026-11-22T20:00:04+00:00", [0, 0, 0, 80], [10, 0, 0, 30], seconds=3.0),
    }
    found = course(2, manifests, {1: judgments(0, 130, 40, 0, 190)})
    (row,) = found["iterations"]
    assert (row["iteration"], row["started"], row["pairs"]) == (1, "2026-11-22T20:00:00+00:00", 360)
    # 7 s in three slices. The last one begins 2/3 s into the third bucket of shard 0 and the first of shard 1.
    assert row["slice_seconds"] == 2.333
    assert [speed * 7 / 3 for speed in row["pairs_per_second"]] == pytest.approx(
        [80 + 80 / 6, 80 * 5 / 6 + 80 / 3 + 80 / 3, 80 * 2 / 3 + 80 * 2 / 3 + 40], abs=0.01
    )
    assert row["shares"][0] == pytest.approx([(80 + 40 / 6) / (80 + 80 / 6), (40 / 6) / (80 + 80 / 6), 0, 0], abs=1e-4)
    assert (row["before"], found["largest_change"]) == (None, None)


def test_the_iteration_before_is_told_by_its_new_pairs_alone() -> None:
    """Iteration 2 meets the 100 pairs of iteration 1 again, and 50 others."""
    first, second = judgments(0, 60, 0, 0, 40), judgments(100, 20, 0, 0, 30)
    tables = {1: first, 2: pa.concat_tables([first, second]), 3: judgments(500, *[ENOUGH_PAIRS // 4] * 4)}
    manifests = {f"judge-{i}.0": shard("2026-11-22T20:00:00+00:00", [50, 0, 0, 50], seconds=2.0) for i in (1, 2, 3)}
    found = course(3, manifests, tables)
    assert [row["before"] for row in found["iterations"]] == [None, [0.6, 0, 0, 0.4], [0.4, 0, 0, 0.6]]
    assert found["largest_change"] == {"grade": 4, "iteration": 3, "before": 0.6, "after": 0.25}
    few = judgments(100, 0, 0, 0, ENOUGH_PAIRS - 1)
    assert course(2, manifests, {1: first, 2: few})["largest_change"] is None, "so few say nothing"


def test_a_slice_in_which_next_to_nothing_was_judged_has_a_speed_but_no_shares() -> None:
    rows = [[100, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 2], [100, 0, 0, 0]]
    (row,) = course(1, {"judge-1.0": shard("2026-11-22T20:00:00+00:00", *rows, seconds=8.0)}, {})["iterations"]
    assert row["pairs_per_second"] == [50, 0, 1, 50]
    assert row["shares"] == [[1, 0, 0, 0], None, None, [1, 0, 0, 0]]


def without_timelines(inputs: ReportInputs) -> ReportInputs:
    summaries = {name: {**(each.get("summary") or {})} for name, each in inputs.manifests.items()}
    for each in summaries.values():
        each.pop("timeline", None)
    return replace(inputs, manifests={n: {**each, "summary": summaries[n]} for n, each in inputs.manifests.items()})


def test_a_run_from_before_timelines_and_one_that_asked_nobody_have_no_course() -> None:
    inputs = with_timelines(make(judge=LLM, iterations=1), pairs=60)
    assert build(inputs)["course"]["iterations"][0]["pairs"] == 120
    assert build(without_timelines(inputs))["course"] == {"iterations": [], "largest_change": None}
    for name in ("judge-1.0", "judge-1.1"):
        inputs.manifests[name]["summary"]["timeline"] |= {"grades": [], "seconds": 0.0}
    assert build(inputs)["course"]["iterations"] == []
