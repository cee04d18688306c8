"""Counts, cost, and speed and grades over time of the judge step, from the manifests of its shards."""

from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrite import tables
from pyrite.report import judging
from pyrite.report.data import ReportInputs, build
from pyrite.report.formatting import duration
from pyrite.report.judging import (
    MAX_SLICES,
    MIN_PAIRS_FOR_SHARES,
    SUMMARIZED,
    Judged,
    merge_timelines,
    summarize_judgments,
    timeline,
)
from pyrite.report.pages import report_page
from report.report_factory import make, with_timelines

LLM = {"kind": "llm", "model": "a-model", "prompt": "medical"}
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
def test_merged_timelines_contain_every_pair(shards: list[dict[str, Any]]) -> None:
    _, width, counts = merge_timelines(shards)
    expected = [sum(row[grade] for shard in shards for row in shard["grades"]) for grade in range(4)]
    assert counts.sum(axis=0) == pytest.approx(expected)
    assert counts.min() >= 0
    assert 1 <= len(counts) <= MAX_SLICES
    assert width >= max(shard["bucket_seconds"] for shard in shards) * (1 - 1e-9), (
        "slices are not finer than the recorded buckets"
    )


def shard(started: str, *rows: list[int], seconds: float) -> dict[str, Any]:
    recorded = {"started": started, "bucket_seconds": 2.0, "seconds": seconds, "grades": list(rows)}
    return {"summary": {"timeline": recorded}}


def judgments(first: int, *counts: int) -> pa.Table:
    grades = [grade for grade, count in enumerate(counts, 1) for _ in range(count)]
    rows = [{"query_id": "q", "passage_id": f"c{first + n}", "grade": grade} for n, grade in enumerate(grades)]
    return pa.Table.from_pylist(rows, SUMMARIZED)


def summarized(tables: dict[int, pa.Table]) -> dict[int, Judged]:
    """The judgments by iteration in numbers, from parts of 30 rows. There is no known answer."""
    parts = {i: [each.slice(start, 30) for start in range(0, len(each), 30)] for i, each in tables.items()}
    return summarize_judgments([parts], SUMMARIZED.empty_table())


def test_speed_and_shares_equal_values_by_hand() -> None:
    """Shard 1 starts 4 s after shard 0 on another machine and ends 1 s into its second bucket."""
    manifests = {
        "judge-1.0": shard("2026-11-22T20:00:00+00:00", [80, 0, 0, 0], [40, 40, 0, 0], [0, 0, 0, 80], seconds=6.0),
        "judge-1.1": shard("2026-11-22T20:00:04+00:00", [0, 0, 0, 80], [10, 0, 0, 30], seconds=3.0),
    }
    found = timeline(2, manifests, summarized({1: judgments(0, 130, 40, 0, 190)}))
    (row,) = found["iterations"]
    assert (row["iteration"], row["started"], row["pairs"]) == (1, "2026-11-22T20:00:00+00:00", 360)
    # 7 s in three slices. The last one starts 2/3 s into the third bucket of shard 0 and the first of shard 1.
    assert row["slice_seconds"] == 2.333
    assert [speed * 7 / 3 for speed in row["pairs_per_second"]] == pytest.approx(
        [80 + 80 / 6, 80 * 5 / 6 + 80 / 3 + 80 / 3, 80 * 2 / 3 + 80 * 2 / 3 + 40], abs=0.01
    )
    assert row["grade_shares"][0] == pytest.approx(
        [(80 + 40 / 6) / (80 + 80 / 6), (40 / 6) / (80 + 80 / 6), 0, 0], abs=1e-4
    )
    assert (row["previous_shares"], found["largest_change"]) == (None, None)


def test_previous_shares_count_only_new_pairs() -> None:
    """Iteration 2 has the 100 pairs of iteration 1 and 50 others."""
    first, second = judgments(0, 60, 0, 0, 40), judgments(100, 20, 0, 0, 30)
    tables = {1: first, 2: pa.concat_tables([first, second]), 3: judgments(500, *[MIN_PAIRS_FOR_SHARES // 4] * 4)}
    manifests = {f"judge-{i}.0": shard("2026-11-22T20:00:00+00:00", [50, 0, 0, 50], seconds=2.0) for i in (1, 2, 3)}
    found = timeline(3, manifests, summarized(tables))
    assert [row["previous_shares"] for row in found["iterations"]] == [None, [0.6, 0, 0, 0.4], [0.4, 0, 0, 0.6]]
    assert found["largest_change"] == {"grade": 4, "iteration": 3, "before": 0.6, "after": 0.25}
    few = judgments(100, 0, 0, 0, MIN_PAIRS_FOR_SHARES - 1)
    assert timeline(2, manifests, summarized({1: first, 2: few}))["largest_change"] is None, "too few pairs"


def test_a_slice_with_few_pairs_has_a_speed_but_no_shares() -> None:
    rows = [[100, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 2], [100, 0, 0, 0]]
    (row,) = timeline(1, {"judge-1.0": shard("2026-11-22T20:00:00+00:00", *rows, seconds=8.0)}, {})["iterations"]
    assert row["pairs_per_second"] == [50, 0, 1, 50]
    assert row["grade_shares"] == [[1, 0, 0, 0], None, None, [1, 0, 0, 0]]


def without_timelines(inputs: ReportInputs) -> ReportInputs:
    summaries = {name: {**(each.get("summary") or {})} for name, each in inputs.manifests.items()}
    for each in summaries.values():
        each.pop("timeline", None)
    return replace(inputs, manifests={n: {**each, "summary": summaries[n]} for n, each in inputs.manifests.items()})


def test_missing_and_empty_timelines_are_skipped() -> None:
    inputs = with_timelines(make(judge=LLM, iterations=1), pairs=60)
    assert build(inputs)["judging_timeline"]["iterations"][0]["pairs"] == 120
    assert build(without_timelines(inputs))["judging_timeline"] == {"iterations": [], "largest_change": None}
    for name in ("judge-1.0", "judge-1.1"):
        inputs.manifests[name]["summary"]["timeline"] |= {"grades": [], "seconds": 0.0}
    assert build(inputs)["judging_timeline"]["iterations"] == []


def test_llm_judging_has_tokens_speed_and_cost() -> None:
    """Two consecutive shards per iteration, 1.5 s each, of 178 pairs of which 20 are cached."""
    inputs = make(judge=LLM)
    inputs.manifests["judge-1.1"]["summary"]["decoding_mode"] = None  # all pairs of the shard are cached
    judging = build(inputs)["judging"]
    assert [row["iteration"] for row in judging["iterations"]] == [1, 2]
    row = judging["iterations"][0]
    counts = {"judged": 356, "cached": 40, "skipped": 60, "not_selected": 80, "missing": 4, "truncated": 6}
    counts["requested"] = 316
    assert {name: row[name] for name in counts} == counts
    assert (row["prompt_tokens"], row["cached_share"], row["decoding_modes"]) == (200_000, 0.6, ["choice"])
    assert row["seconds"] == pytest.approx(2.5, abs=0.51)  # start times have a resolution of one second
    assert row["pairs_per_second"] == pytest.approx(316 / row["seconds"])
    assert row["dollars"] == pytest.approx(row["seconds"] / 3600 * 5.672)
    assert judging["dollars"] == pytest.approx(sum(row["dollars"] for row in judging["iterations"]))
    assert (judging["model"], judging["prompt"], judging["requested"]) == ("a-model", "medical", 632)
    assert judging["price"]["machine"] == "g5.12xlarge"


def test_concurrent_shards_count_once_and_pauses_do_not() -> None:
    inputs = make(judge=LLM, iterations=1)
    first, second = (inputs.manifests[f"judge-1.{shard}"] for shard in (0, 1))
    first |= {"started": "2026-11-22T20:00:00+00:00", "seconds": 100.0}
    second |= {"started": "2026-11-22T20:00:40+00:00", "seconds": 100.0}
    assert build(inputs)["judging"]["seconds"] == 140
    steps = build(inputs)["steps"]
    assert steps["taken"] == pytest.approx(steps["seconds"] - 60)
    assert f"<dt>Time taken</dt><dd>{duration(steps['taken'])}</dd>" in report_page(build(inputs))
    second |= {"started": "2026-11-22T20:00:40+00:00", "seconds": 10.0}
    assert build(inputs)["judging"]["seconds"] == 100
    second |= {"started": "2026-11-23T08:00:00+00:00", "seconds": 10.0}
    assert build(inputs)["judging"]["seconds"] == 110


def test_cached_pairs_cost_nothing_and_labels_have_no_cost() -> None:
    inputs = make(judge=LLM, iterations=1)
    for shard in (0, 1):
        inputs.manifests[f"judge-1.{shard}"]["summary"] |= {"cached": 178, "decoding_mode": None}
    judging = build(inputs)["judging"]
    assert (judging["requested"], judging["dollars"]) == (0, 0)
    assert judging["iterations"][0]["pairs_per_second"] is None
    labels = build(make())["judging"]
    assert labels["kind"] == "labels"
    assert set(labels) == {"kind", "judges", "iterations"}
    counts = {"iteration": 1, "judged": 360, "cached": 0, "skipped": 60, "not_selected": 80, "missing": 0}
    assert labels["iterations"][0] == counts


def test_known_answers_equal_counts_by_hand() -> None:
    def judged(*rows: tuple[str, str, int, float]) -> list[pa.Table]:
        names = ("query_id", "passage_id", "grade", "expected")
        return [pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows], SUMMARIZED)]

    queries = pa.Table.from_pylist(
        [{"query_id": q, "split": "test" if q == "t" else "train"} for q in "abt"], tables.QUERIES
    )
    labels = [("a", "p"), ("a", "q"), ("b", "p"), ("b", "never judged"), ("t", "p")]
    qrels = pa.Table.from_pylist([{"query_id": q, "passage_id": p, "grade": 1} for q, p in labels], tables.QRELS)
    known = judging.known_answers_of_training(queries, qrels)
    other = {1: judged(("a", "other", 4, 4.0))}
    shards = [
        {1: judged(("a", "p", 1, 1.5), ("a", "q", 4, 3.5)), 2: judged(("a", "p", 3, 2.5))},
        {1: judged(("t", "p", 4, 4.0)), 2: judged(("b", "p", 2, 2.1))},
        other,
    ]
    judgments = summarize_judgments(shards, known)
    assert [each.grades.tolist() for each in judgments.values()] == [[1, 0, 0, 3], [0, 1, 1, 0]]
    assert judgments[2].new.tolist() == [0, 1, 0, 0]
    spec = make(judge={"noise": {"kappa": 0.5}}).spec
    found = judging.known_answers(spec, judgments, queries, qrels)
    assert found is not None
    assert (found["known"], found["judged"], found["queries"]) == (4, 3, 2)
    assert found["grades"] == {"1": 0, "2": 1, "3": 1, "4": 1}
    assert found["relevant"]["mean"] == pytest.approx(2 / 3)
    assert found["expected"]["mean"] == pytest.approx(2.7)
    for value in (found["relevant"], found["expected"]):
        assert value["low"] < value["mean"] < value["high"]
    assert judging.known_answers(spec, summarize_judgments([other], known), queries, qrels) is None
    assert judging.known_answers(make().spec, judgments, queries, qrels) is None
    cascade = {"kind": "cascade", "first": {"kind": "labels", "noise": {"kappa": 0.5}}, "second": {"kind": "labels"}}
    assert judging.known_answers(make(judge=cascade).spec, judgments, queries, qrels) is None
