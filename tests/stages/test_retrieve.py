"""retrieve: which passages may become training examples."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa

from pyrite import tables
from pyrite.spec import RunSpec
from pyrite.spill import TextFile
from pyrite.stages.retrieve import retrieve


class _Model:
    """An encoder whose embeddings are all alike, so that every passage is retrieved."""

    device = "cpu"

    def __init__(self, folder: Path) -> None:
        self._file = folder / "embeddings.npy"

    def corpus(self, texts: Any, progress: object) -> list[Path]:
        del progress
        np.save(self._file, self.encode([text for block in texts(100) for text in block], "document"))
        return [self._file]

    def encode(self, texts: Sequence[str], kind: str) -> Any:
        del kind
        return np.ones((len(texts), 1), np.float32)


def test_near_duplicates_of_held_out_data_are_no_candidates(tmp_path: Path) -> None:
    passages = [
        {"passage_id": "free", "text": "a", "split": "train"},
        {"passage_id": "copy", "text": "b", "split": "train", "near_duplicate": "test"},
        {"passage_id": "val", "text": "c", "split": "val"},
        {"passage_id": "test", "text": "d", "split": "test", "near_duplicate": "copy"},
    ]
    tables.write(tmp_path / "passages.parquet", passages, tables.PASSAGES)
    spec = RunSpec.model_validate({"name": "r", "source": {"kind": "sample"}})
    ctx: Any = SimpleNamespace(spec=spec, input=lambda key: tmp_path / Path(key).name, progress=None)
    queries = pa.Table.from_pylist([{"query_id": "q", "text": "e", "split": "train"}], tables.QUERIES)
    # "copy" is known to be relevant, but must not become a positive either.
    qrels = pa.Table.from_pylist([{"query_id": "q", "passage_id": "copy", "grade": 1}], tables.QRELS)
    model: Any = _Model(tmp_path)
    pairs = retrieve(model, ctx, queries, qrels)
    assert pairs.candidates(pairs.rows_by_id())["passage_id"].to_pylist() == ["free"]
    # No near-duplicate of it may be a negative, so judging and mining get its text.
    with TextFile(tmp_path / "texts", tables.PASSAGE_TEXTS) as texts:
        texts.append(tables.read(tmp_path / "passages.parquet", tables.PASSAGE_TEXTS))
        rows = pairs.pairs(pairs.rows_by_id(), texts).to_pylist()
    assert [(row["passage_id"], row["rank"], row["relevant"], row["text"]) for row in rows] == [
        ("free", 1, False, "a"),
        ("copy", None, True, "b"),
    ]
