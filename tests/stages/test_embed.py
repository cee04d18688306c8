"""embed: parts of the corpus give the results of one search."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pyrite.embedding import encoder, search
from pyrite.executors.step import open_run, run_step
from pyrite.plan import Step
from pyrite.progress import NullProgress
from pyrite.spec import RunSpec
from pyrite.stages import embed, found
from pyrite.store import open_store


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 10 of the 60 passages, and row groups of 4 queries."""
    monkeypatch.setattr(encoder, "BLOCK", 10)
    monkeypatch.setattr(embed, "BLOCK", 10)
    monkeypatch.setattr(search, "TILE", 10)
    monkeypatch.setattr(found, "BLOCK", 10)
    monkeypatch.setattr(found, "_QUERIES", 4)


def outputs(folder: Path, spec: dict[str, Any], shards: int) -> dict[str, Any]:
    """What steps after embed write, with the corpus in this many parts, by key."""
    spec = {**spec, "retrieve": {"range_max": 7, "shards": shards}}
    run = open_run(RunSpec.model_validate(spec), open_store(str(folder)))
    steps = (Step("prepare"), *(Step("embed", 0, shard) for shard in range(shards)))
    for step in (*steps, Step("retrieve", 1), Step("validate", 0)):
        run_step(run, step, NullProgress())
    at = folder / "runs" / run.spec.name / "iterations"
    names = [*at.glob("1/*.parquet"), *at.glob("1/pairs/*.parquet"), *at.glob("0/metrics/*.parquet")]
    return {str(name.relative_to(at)): pq.read_table(name) for name in names}


@pytest.mark.usefixtures("small_blocks")
def test_the_number_of_parts_does_not_change_results(tiny_model: Path, questions: Path, tmp_path: Path) -> None:
    """Seven parts of six blocks: one is empty."""
    spec = {
        "name": "small",
        "source": {"kind": "jsonl", "path": str(questions)},
        "model": {"base": str(tiny_model)},
        "resources": {"device": "cpu"},
    }
    one, seven = outputs(tmp_path / "one", spec, 1), outputs(tmp_path / "seven", spec, 7)
    assert one["1/candidates.parquet"].num_rows
    assert [name for name, table in one.items() if not table.equals(seven[name])] == []
    below = [row for row in one["1/pairs/shard-00000.parquet"].to_pylist() if row["rank"] == 8]
    assert below, "known answers that were not found among the first 7"
    model = encoder.Encoder(tiny_model, tiny_model, RunSpec.model_validate(spec), open_store(str(tmp_path / "one")))
    queries = model.encode([row["query"] for row in below], "query")
    passages = model.encode([f"{row['context']}\n{row['text']}".lstrip("\n") for row in below], "document")
    assert np.allclose([row["score"] for row in below], (queries * passages).sum(axis=1), atol=1e-2)  # bf16


@pytest.mark.usefixtures("small_blocks")
def test_a_killed_part_encodes_only_missing_blocks(
    tiny_model: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, encoded = encoder.Encoder.encode, []

    def counted(self: Any, texts: Any, kind: Any, *arguments: Any) -> Any:
        if kind == "document":
            if len(encoded) == 2:
                encoded.append(0)
                raise KeyboardInterrupt
            encoded.append(len(texts))
        return encode(self, texts, kind, *arguments)

    monkeypatch.setattr(encoder.Encoder, "encode", counted)
    spec = {
        "name": "small",
        "source": {"kind": "jsonl", "path": str(questions)},
        "model": {"base": str(tiny_model)},
        "retrieve": {"shards": 2},
    }
    run = open_run(RunSpec.model_validate(spec), open_store(str(tmp_path)))
    run_step(run, Step("prepare"), NullProgress())
    with pytest.raises(KeyboardInterrupt):
        run_step(run, Step("embed", 0, 1), NullProgress())
    summary = run_step(run, Step("embed", 0, 1), NullProgress())["summary"]
    assert encoded == [10, 10, 0, 10], "two blocks, the kill, and the third block"
    assert summary["passages"] == 30


def test_parts_cover_the_corpus_once() -> None:
    for passages in (0, 1, 2048, 2049, 10_000_000):
        for shards in (1, 3, 16):
            parts = [embed._part(shard, shards, passages) for shard in range(shards)]
            assert parts[0].start == 0
            assert parts[-1].stop == -(-passages // 2048)
            assert all(before.stop == after.start for before, after in pairwise(parts))
            sizes = np.array([part.stop - part.start for part in parts])
            assert sizes.max() - sizes.min() <= 1
