"""A run with retention sets: one that takes part in the choice, one that is only reported."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pyrite.evaluation.selection import model_name, parse_model_name

Pyrite = Callable[..., subprocess.CompletedProcess[str]]


def _beir(folder: Path) -> Path:
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text('{"_id": "d1", "text": "Ships"}\n{"_id": "d2", "text": "Trains"}\n')
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "What floats?"}\n')
    (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n")
    return folder


@pytest.mark.slow
def test_reported_sets_are_scored_only_by_evaluate(pyrite: Pyrite, run_file: Path, tmp_path: Path) -> None:
    setting = f"evaluate.retention={{path: builtin:general, report: [{_beir(tmp_path / 'other')}]}}"
    result = pyrite("train", run_file, "iterations=1", setting)
    assert result.returncode == 0, result.stderr
    run = tmp_path / "store/runs/small"
    validated = pq.read_table(run / "iterations/1/metrics/retention.parquet")
    assert set(validated["set"].to_pylist()) == {"builtin:general"}
    assert validated.num_rows == 2 * 144
    table = pq.read_table(run / "report/retention.parquet")
    rows = {(row["set"], row["model"]) for row in table.select(["set", "model"]).to_pylist()}
    assert rows >= {("builtin:general", "iteration-1@0.5"), ("other", "base"), ("other", "iteration-1")}
    report = json.loads((run / "report/report.json").read_text())
    assert [(row["set"], row["queries"]) for row in report["retention_sets"]] == [
        ("builtin:general", 144),
        ("other", 1),
    ]
    page = (run / "report/report.html").read_text(encoding="utf-8")
    assert "only reported" in page
    assert "One split and one training seed" in page


def test_default_blend_is_the_largest_weight_within_the_limit(pyrite: Pyrite, run_file: Path, tmp_path: Path) -> None:
    limit = "evaluate.retention={path: builtin:general, max_loss: 0.1}"
    settings = ("iterations=1", "evaluate.blends=null", limit, "finetune.learning_rate=0.02", "finetune.rehearsal=0")
    result = pyrite("train", run_file, *settings)
    assert result.returncode == 0, result.stderr
    run = tmp_path / "store/runs/small"
    bounds = json.loads((run / "steps/validate-1.json").read_text())["summary"]["retention_bounds"]
    assert bounds["iteration-1"] < -0.1
    within = [parse_model_name(name)[1] for name, bound in bounds.items() if bound >= -0.1]
    scored = pq.read_table(run / "iterations/1/metrics/val.parquet")["model"].unique().to_pylist()
    assert scored == ["iteration-1", model_name(1, max(within))]
    assert pq.read_table(run / "iterations/1/metrics/retention.parquet")["model"].unique().to_pylist() == scored
