"""The benchmarks of several domains: accuracy of the selection and rejected queries; routing, average and union."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pyrite.store import open_store
from registry.finished import write_finished_run

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import bench_common  # noqa: E402
import bench_multitask  # noqa: E402
import bench_select  # noqa: E402

WORDS = {"law": "court fee of the lawsuit", "garden": "water for roses and tulips"}


def write_beir(folder: Path, words: str) -> None:
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text(json.dumps({"_id": "d", "title": "", "text": words}) + "\n")
    splits = {f"{split}{i}": split for split in ("train", "dev", "test") for i in range(6)}
    lines = (json.dumps({"_id": key, "text": f"{words} {key}"}) for key in splits)
    (folder / "queries.jsonl").write_text("\n".join(lines))
    for split in ("train", "dev", "test"):
        rows = [f"{key}\td\t1" for key, each in splits.items() if each == split]
        (folder / f"qrels/{split}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *rows]))


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return result


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name, words in WORDS.items():
        write_beir(tmp_path / "data" / name, words)
    return tmp_path / "data"


def test_selection_is_measured(data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_select", str(data), "--foreign", "builtin:general"])
    assert bench_select.main() == 0
    result = last_line(capsys)
    assert result["accuracy"]["4"]["all"] == 1
    assert result["rejected"]["general"]["median"] < result["rejected"]["test"]["median"]


def test_every_model_is_scored_on_every_domain(
    data: Path, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    for name in WORDS:
        write_finished_run(open_store(str(store / name)), f"{name}-0", tiny_model)
    union = store / "union/data"

    def train(run_file: Path, store: Path, name: str, overrides: Sequence[str]) -> bench_common.Run:
        """In place of a training run: checks the written data, and returns a finished run."""
        assert run_file.name == "beir.yaml"
        assert f"source.path={union}" in overrides
        passages = [json.loads(line)["_id"] for line in (union / "corpus.jsonl").read_text().splitlines()]
        queries = [json.loads(line)["_id"] for line in (union / "queries.jsonl").read_text().splitlines()]
        assert {each.partition("/")[0] for each in passages} == {each.partition("/")[0] for each in queries} == {*WORDS}
        for split in ("train", "dev", "test"):
            _, *rows = (line.split("\t") for line in (union / f"qrels/{split}.tsv").read_text().splitlines())
            assert rows
            assert all(query in queries and passage in passages for query, passage, _ in rows)
        return bench_common.Run(store, write_finished_run(open_store(str(store)), name, tiny_model), None)

    monkeypatch.setattr(bench_common, "train", train)
    monkeypatch.setattr(sys, "argv", ["bench_multitask", str(data), "--store", str(store)])
    assert bench_multitask.main() == 0
    result = last_line(capsys)
    assert result.pop("accuracy") == 0.5, "all queries of the runs have the same texts"
    assert result.keys() == {"base", *WORDS, "average", "union", "routed", "oracle"}
    assert len({result[model]["all"]["mrr@5"]["value"] for model in result}) == 1, "all have the base model's weights"
    assert result["routed"]["all"]["mrr@5"]["change"]["mean"] == 0
    assert result["routed"].keys() == {*WORDS, "all"}

    (store / "law/runs/law-0/report/report.json").unlink()
    assert bench_multitask.main() == 2
    assert "is not finished" in capsys.readouterr().err


def test_a_routed_query_has_the_value_of_its_selected_domain() -> None:
    by_model = {
        domain: {metric: dict.fromkeys("ab", value) for metric in bench_common.METRICS}
        for domain, value in (("law", 0.2), ("garden", 0.8))
    }
    queries = bench_multitask.MixedQueries(*[None] * 6)._replace(ids=["a", "b"])  # type: ignore[arg-type]
    assert bench_multitask.routed(by_model, queries, ["garden", "law"])["mrr@5"] == {"a": 0.8, "b": 0.2}
