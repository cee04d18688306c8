"""The benchmark of selection: accuracy, rejected queries, and routing over finished runs."""

import json
import sys
from pathlib import Path

import pytest

from pyrite.store import open_store
from registry.finished import write_finished_run

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

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


def test_selection_is_measured_and_routed(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, store = tmp_path / "data", tmp_path / "store"
    for name, words in WORDS.items():
        write_beir(data / name, words)
        write_finished_run(open_store(str(store / name)), f"{name}-0", tiny_model)
    options = ["--foreign", "builtin:general", "--store", str(store), "--model", f"again={tiny_model}"]
    monkeypatch.setattr(sys, "argv", ["bench_select", str(data), *options])
    assert bench_select.main() == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["accuracy"]["4"]["all"] == 1
    assert result["rejected"]["general"]["median"] < result["rejected"]["test"]["median"]
    routing = result["routing"]
    assert routing["accuracy"] == 0.5, "all queries of the runs have the same texts"
    rows = {"base", *WORDS, "again", "routed", "oracle"}
    assert routing.keys() == rows | {"accuracy"}
    assert len({routing[row]["mrr@5"] for row in rows}) == 1, "all models have the weights of the base model"
    assert routing["routed"]["mrr@5 change"]["mean"] == 0

    (store / "law/runs/law-0/report/report.json").unlink()
    assert bench_select.main() == 2
    assert "is not finished" in capsys.readouterr().err
