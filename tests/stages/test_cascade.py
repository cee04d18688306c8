"""The judge stage with fewer judgments: judge.stop, and a cascade of two judges."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pyrite import judges, tables
from pyrite.config import load
from pyrite.errors import PyriteError, UserError
from pyrite.executors.step import open_run, run_step
from pyrite.judges import Judgment, Missing, Pair
from pyrite.plan import Step
from pyrite.progress import NullProgress
from pyrite.report.judging import judging
from pyrite.stages.cascade import with_decided
from pyrite.store import open_store

FIRST = "first: {kind: labels, noise: {kappa: 0.5, seed: 1}}"
SECOND = "second: {kind: labels, noise: {kappa: 0.8, seed: 2}}"


def run_to_mine(run_file: Path, *overrides: str, store: str = "store") -> tuple[dict[str, Any], Path]:
    """Run the steps up to mine. Returns the summaries by stage, and the folder of iteration 1."""
    spec = load(run_file, [*overrides, "judge.shards=1"])
    run = open_run(spec, open_store(str(run_file.parent / store)))
    steps = (Step("prepare"), Step("embed", 0, 0), Step("retrieve", 1), Step("judge", 1, 0), Step("mine", 1))
    return (
        {step.stage: run_step(run, step, NullProgress())["summary"] for step in steps},
        run_file.parent / store / "runs/small/iterations/1",
    )


@pytest.mark.parametrize("known_first", ["true", "false"])
def test_stopping_early_gives_the_same_examples(run_file: Path, known_first: str) -> None:
    mined = []
    for stop in ("null", "example"):
        noise = "judge.noise={kappa: 0.7}"
        found, folder = run_to_mine(
            run_file, noise, f"mine.known_first={known_first}", f"judge.stop={stop}", store=stop
        )
        summary = found["judge"]
        assert summary["pairs"] == sum(summary[name] for name in ("judged", "skipped", "not_selected", "missing"))
        mined.append((summary["judged"], pq.read_table(folder / "examples.parquet").to_pylist()))
    (every, all_examples), (fewer, examples) = mined
    assert fewer < every
    names = ("query_id", "positive_id", "negative_ids", "kind")
    assert [[row[name] for name in names] for row in examples] == [
        [row[name] for name in names] for row in all_examples
    ]
    assert examples


def test_a_cascade_asks_the_second_judge_about_few_pairs(run_file: Path) -> None:
    cascade = f"judge={{kind: cascade, {FIRST}, {SECOND}, pilot: 12, tolerance: 0.3, audit: 0.3, max_drift: 1}}"
    found, folder = run_to_mine(run_file, cascade)
    summary = found["judge"]
    rows = pq.read_table(folder / "judgments/shard-00000.parquet").to_pylist()
    by_judge = Counter(row["judge"] for row in rows)
    spec = load(run_file, [cascade])
    first, second = judges.fingerprint(spec.first_judge), judges.fingerprint(spec.main_judge)
    assert by_judge == {first: summary["by_first"], second: summary["judged"]}
    assert len({(row["query_id"], row["passage_id"]) for row in rows}) == len(rows)
    names = ("judged", "by_first", "skipped", "not_selected", "missing")
    assert summary["pairs"] == sum(summary[name] for name in names)
    assert summary["by_first"] > summary["judged"] > summary["pilot"]["pairs"] > 0
    assert summary["audit"]["pairs"] > 0
    assert all(max(row["p1"] + row["p2"], row["p3"] + row["p4"]) > 0.69 for row in rows if row["judge"] == first)
    assert found["mine"]["examples"] > 0
    reported = judging(spec, {"judge-1.0": {"summary": summary}})["iterations"][0]
    assert reported["by_first"] == summary["by_first"]
    assert reported["audit"] == pytest.approx(summary["audit"], abs=1e-4)


@pytest.mark.parametrize(
    ("first", "error"),
    [
        ("noise: {kappa: 0.99, bias: 3}", r"^judge\.first\.noise\.kappa: 0\.99 cannot be reached"),
        ("confusion: no-json.txt", r"^judge\.first\.confusion: .*no-json\.txt:1: not JSON"),
    ],
)
def test_errors_about_simulated_errors_name_the_judge(run_file: Path, first: str, error: str) -> None:
    (run_file.parent / "no-json.txt").write_text("{")
    first = first.replace("no-json.txt", str(run_file.parent / "no-json.txt"))
    with pytest.raises(UserError, match=error):
        run_to_mine(run_file, f"judge={{kind: cascade, first: {{kind: labels, {first}}}, {SECOND}}}")


def test_a_cascade_stops_if_the_first_judge_drifts(run_file: Path) -> None:
    first = "first: {kind: labels, noise: {kappa: 0.1, seed: 1}}"
    cascade = f"judge={{kind: cascade, {first}, {SECOND}, pilot: 12, tolerance: 0.49, audit: 1, max_drift: 0}}"
    contradicts = r"judge.second contradicts judge.first in \d+ of \d+ .*judge.max_drift \(0%\)"
    with pytest.raises(PyriteError, match=contradicts):
        run_to_mine(run_file, cascade)


def test_a_missing_pair_of_the_audit_has_no_grade() -> None:
    first = [Judgment(Pair("q", id), 1, None) for id in ("a", "b", "c")]
    second = [Judgment(Pair("q", "b"), 4, None).row("second")]
    table = with_decided(
        pa.Table.from_pylist(second, tables.JUDGMENTS),
        [Missing(Pair("q", "a"), "no", 1, "window")],
        first,
        "first",
        [("q", ["a", "b", "c"])],
    )
    rows = [(row["passage_id"], row["judge"], row["grade"]) for row in table.to_pylist()]
    assert rows == [("b", "second", 4), ("c", "first", 1)]


def test_a_run_continues_after_a_judge_lost_its_file(run_file: Path, tmp_path: Path) -> None:
    """Regression: without judge.confusion, the key still had the digest in the older manifest."""
    (tmp_path / "confusion.json").write_text(json.dumps({"confusion": [[1, 0, 0, 0]] * 4}))
    run_to_mine(run_file, f"judge.confusion={tmp_path}/confusion.json", "judge.shards=1", "mine.known_first=true")
    found, _ = run_to_mine(run_file, "judge.shards=1")
    assert found["judge"]["grades"]["4"] > 0
