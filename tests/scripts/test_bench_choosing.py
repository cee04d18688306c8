"""The benchmarks of judging fewer pairs: the frontier without training, and the settings of the training comparison."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from pyrite import tables
from pyrite.config import load
from pyrite.executors.step import open_run, run_step
from pyrite.plan import Step
from pyrite.progress import NullProgress
from pyrite.store import open_store

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import bench_cascade  # noqa: E402
import bench_choosing  # noqa: E402
from bench_common import Row  # noqa: E402


def test_the_frontier_counts_calls_and_examples(
    run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    spec = load(run_file)
    run = open_run(spec, open_store(str(store)))
    for step in (Step("prepare"), Step("embed", 0, 0), Step("retrieve", 1)):
        run_step(run, step, NullProgress())
    (store / "runs/small/run.yaml").write_text(run_file.read_text())
    plot = tmp_path / "frontier.svg"
    monkeypatch.setattr(sys, "argv", ["bench_choosing", str(store), "small", "--seeds", "2", "--plot", str(plot)])
    assert bench_choosing.main() == 0
    results = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(results) == 6
    for rows in results.values():
        assert rows.keys() == bench_choosing.WAYS.keys()
        every, stop = rows[bench_choosing.ALL], rows["stop"]
        assert stop["examples"] == every["examples"], "the same examples"
        assert stop["useful"] == every["useful"]
        assert 0 < stop["calls"] < every["calls"] < 21
        assert stop["fewer_calls"] == pytest.approx(every["calls"] / stop["calls"], rel=1e-3)
        assert stop["fewer_calls_low"] <= stop["fewer_calls"] <= stop["fewer_calls_high"]
    assert plot.read_text().count("LLM calls per query") == 3


def test_a_run_without_candidates_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_choosing", str(tmp_path), "none"])
    assert bench_choosing.main() == 2
    assert "Give a finished run" in capsys.readouterr().err


@pytest.mark.parametrize("condition", [bench_cascade.ALL, bench_cascade.STOP, bench_cascade.CASCADE])
def test_training_conditions_have_valid_and_distinct_errors(condition: str, run_file: Path) -> None:
    options = Namespace(kappa=0.7, first_kappa=0.5, similarity=0.5)
    specs = [
        load(run_file, [f"judge={json.dumps(bench_cascade.judge_of(condition, options, *n))}"])
        for n in ((0, 0), (1, 0))
    ]
    assert specs[0].judge != specs[1].judge
    assert all((spec.judge.stop is None) == (condition == bench_cascade.ALL) for spec in specs)


@pytest.mark.slow
def test_training_with_fewer_calls_is_compared_in_pairs(
    run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    options = ["--splits", "1", "--seeds", "1", "--only", "cascade", "--kappa", "0.6", "--set", "evaluate.blends=[]"]
    options += ["--store", str(tmp_path / "store"), "--results", str(tmp_path / "results.jsonl")]
    monkeypatch.setattr(sys, "argv", ["bench_cascade", str(run_file), *options])
    assert bench_cascade.main() == 0
    output = capfd.readouterr().out
    result = json.loads(output.splitlines()[-1])
    assert result.keys() == {"all", "cascade"}
    assert "run 2 of 2: split 0, seed 0, cascade; " in output
    folder = tmp_path / "store/split-0/runs/hidden-all-0"
    first, second = (
        {
            (row["query_id"], row["passage_id"])
            for path in folder.glob(f"iterations/{iteration}/judgments/shard-*.parquet")
            for row in tables.read(path, tables.JUDGMENTS).to_pylist()
        }
        for iteration in (1, 2)
    )
    queries = len({query for query, _ in first})
    assert len(first) < len(first | second) < len(first) + len(second), "the iterations share some pairs"
    assert result["all"]["calls"] == pytest.approx(len(first | second) / queries, abs=1e-4)
    assert 0 < result["cascade"]["calls"] < result["all"]["calls"]
    assert bench_cascade.main() == 0
    resumed = capfd.readouterr().out
    assert "run " not in resumed
    assert json.loads(resumed.splitlines()[-1]) == result


def test_the_interval_of_one_split_is_over_its_seeds() -> None:
    def rows(*values: float, splits: int = 1) -> dict[tuple[int, int], Row]:
        more = {"dcg@5": 1.0, "calls": 2.0, "chosen": "iteration-1"}
        return {divmod(n, len(values) // splits): {"mrr@5": value, **more} for n, value in enumerate(values)}

    one = bench_cascade.summarize(rows(0.5, 0.5), rows(0.51, 0.5), 0.2)
    assert one["interval_over"] == "seeds"
    # t(.975, 1 degree of freedom) = 12.706, standard error .01.
    assert one["change"]["mrr@5"]["low"] == pytest.approx(0.01 - 12.706 * 0.01, abs=2e-4)
    two = bench_cascade.summarize(rows(0.5, 0.5, splits=2), rows(0.51, 0.5, splits=2), 0.2)
    assert two["interval_over"] == "splits"
    assert two["change"]["mrr@5"]["low"] < one["change"]["mrr@5"]["low"]


def test_fewer_calls_is_a_ratio_of_means_with_the_range_over_seeds() -> None:
    every = [{"calls": 10.0, "useful": 100}, {"calls": 10.0, "useful": 80}]
    rows = [{"calls": 1.0, "useful": 90}, {"calls": 4.0, "useful": 80}]
    found = bench_choosing.summary(rows, every, queries=100)
    assert (found["fewer_calls"], found["fewer_calls_low"], found["fewer_calls_high"]) == (4.0, 2.5, 10.0)
    assert (found["useful_share"], found["useful_share_low"], found["useful_share_high"]) == (0.9444, 0.9, 1.0)
    assert found["calls_per_useful"] == pytest.approx(500 / 170, abs=1e-4)
