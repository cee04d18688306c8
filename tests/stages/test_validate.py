"""A run with retention sets: one that takes part in the choice, one that is only reported."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pyrite.evaluation.selection import model_name, parse_model_name
from pyrite.plan import Step
from pyrite.progress import NullProgress
from pyrite.spec import RunSpec
from pyrite.stages import validate
from pyrite.stages.context import StepContext

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
    report = json.loads((run / "report/report.json").read_text())
    shown = {row["name"]: row for row in report["blends_not_scored"]}
    assert shown.keys() == bounds.keys() - set(scored)
    assert all(("rejected" in row["reason"]) == (bounds[name] < -0.1) for name, row in shown.items())
    assert any("rejected: exceeds the limit" in row["reason"] for row in shown.values())
    page = (run / "report/report.html").read_text(encoding="utf-8")
    assert page.count("tried by the search") == len(shown)
    assert "a search replaces them" in page
    assert "The run file sets the weights" not in page


class _Bounds:
    """Retention values of 9 queries by model name, in place of scores: the loss is proportional to the tuned weight."""

    def __init__(self, loss: float):
        self._loss = loss

    def add_retention(self, name: str, encoder: object) -> None: ...

    def blend(self, weight: float) -> None: ...

    def retention_values(self, name: str) -> np.ndarray:
        return np.full(9, 1 - self._loss * parse_model_name(name)[1])


@pytest.mark.parametrize(
    ("loss", "weights", "tried"),
    [(0.019, [0.3, 0.6, 0.8], 1), (0.039, [0.5], 5), (0.05, [0.375], 5), (0.9, [], 5)],
)
def test_search_depends_on_the_loss(
    loss: float, weights: list[float], tried: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validate, "encoder", lambda *_: None)
    spec = RunSpec.model_validate(
        {"name": "r", "source": {"kind": "sample"}, "evaluate": {"retention": "builtin:general", "resamples": 100}}
    )
    ctx = StepContext(spec, Step("validate", 1), None, "runs/r", {}, "scratch", NullProgress())  # type: ignore[arg-type]
    bounds: dict[str, float] = {}
    assert list(validate._search(ctx, _Bounds(loss), bounds)) == weights  # type: ignore[arg-type]
    assert len(bounds) == tried


@pytest.mark.parametrize(("judge", "size"), [(None, 1), ({"model": "m"}, 3)])
def test_a_second_judge_ranks_blends_in_the_complete_corpus(
    judge: dict[str, str] | None, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise, evaluate would rank passages that assess has not graded, and the chosen blend would lose by them."""
    corpus = pa.table({"passage_id": ["a", "b", "c"]})
    queries = pa.table({"query_id": ["q"], "split": ["val"]})
    for name, table in (("read_queries", queries), ("read_passage_ids", corpus), ("passage_texts", None)):
        monkeypatch.setattr(validate, name, lambda _, table=table: table)
    monkeypatch.setattr(validate, "read_qrels", lambda _: None)
    monkeypatch.setattr(validate, "read_found", lambda *_: (None, np.array([[1]])))
    monkeypatch.setattr(validate, "read_passages_at", lambda _, positions: corpus.take(positions))
    content = {"name": "r", "source": {"kind": "sample"}, "evaluate": {"judge": judge}}
    spec = RunSpec.model_validate({**content, "resources": {"evaluate_judge_urls": ["http://judge"] if judge else []}})
    ctx = StepContext(spec, Step("validate", 1), None, "runs/r", {}, "scratch", NullProgress())  # type: ignore[arg-type]
    assert len(validate._Scores(ctx)._pool.ids) == size
