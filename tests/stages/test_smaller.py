"""Smaller embeddings are scored as a user of the model would embed and rank."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sentence_transformers import SentenceTransformer

from pyrite import tables
from pyrite.embedding.encoder import Encoder, in_memory
from pyrite.progress import NullProgress
from pyrite.spec import RunSpec
from pyrite.stages import smaller
from pyrite.stages.scoring import Corpus
from pyrite.store import open_store
from small_data import KINDS, TOPICS

TEXTS = [answer.format(topic, topic, topic) for topic in TOPICS for _, answer in KINDS.values()]
ASKED = [question.format(topic) for topic in TOPICS for question, _ in KINDS.values()]


def scored(tiny_model: Path, tmp_path: Path, passages: int) -> dict[str, dict[str, Any]]:
    """By form, the sizes and the MRR@5 of each query, by query id. A query's answer is the passage of its number."""
    source = {"kind": "jsonl", "path": "unused"}
    spec = RunSpec.model_validate({"name": "small", "source": source, "resources": {"device": "cpu"}})
    encoder = Encoder(tiny_model, tiny_model, spec, open_store(str(tmp_path / "store")), "float32")
    corpus = Corpus(pa.array([f"p{n}" for n in range(passages)]), in_memory(TEXTS[:passages]))
    rows = [{"query_id": f"q{n}", "text": text, "split": "test"} for n, text in enumerate(ASKED[:passages])]
    queries = pa.Table.from_pylist(rows, tables.QUERIES)
    answers = [{"query_id": f"q{n}", "passage_id": f"p{n}", "grade": 1} for n in range(passages)]
    qrels = pa.Table.from_pylist(answers, tables.QRELS)
    found = smaller.score_smaller(encoder, "base", corpus, queries, qrels, [8], NullProgress())
    table = pa.Table.from_pylist(found, tables.SMALLER)
    assert set(table["metric"].to_pylist()) == {"mrr@5", "dcg@5"}
    by_form: dict[str, dict[str, Any]] = {}
    for row in table.to_pylist():
        if row["metric"] == "mrr@5":
            by_form.setdefault(row["embedding"], {**row, "values": []})["values"].append(row["value"])
    return by_form


def test_truncated_embeddings_score_as_truncate_dim_does(tiny_model: Path, tmp_path: Path) -> None:
    rows = scored(tiny_model, tmp_path, 60)
    for name, dims in (("float32", None), ("float32-8", 8)):
        model = SentenceTransformer(str(tiny_model), device="cpu", truncate_dim=dims)
        scores = model.similarity(model.encode_query(ASKED), model.encode_document(TEXTS)).numpy()
        ranks = 1 + (scores > np.diag(scores)[:, None]).sum(axis=1)
        found = dict(zip(sorted(f"q{n}" for n in range(60)), rows[name]["values"], strict=True))
        same = [found[f"q{n}"] == pytest.approx(1 / rank if rank <= 5 else 0) for n, rank in enumerate(ranks)]
        assert np.mean(same) > 0.98, "apart from passages with nearly equal scores"
    assert (rows["float32-8"]["bytes"], rows["binary-rescored"]["rescored_bytes"]) == (32, 128)


def test_binary_embeddings_are_rescored_by_float32(tiny_model: Path, tmp_path: Path) -> None:
    """With as many passages as are rescored, the order is that of float32."""
    rows = scored(tiny_model, tmp_path, smaller.RESCORED_DEPTH)
    assert rows["binary-rescored"]["values"] == rows["float32"]["values"]
    assert rows["binary"]["values"] != rows["float32"]["values"]


def test_a_large_test_set_is_sampled_by_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smaller, "MAX_QUERIES", 10)
    splits = ("train", "test")
    rows = [{"query_id": f"{split}{n:02d}", "text": "", "split": split} for split in splits for n in range(30)]
    queries = pa.Table.from_pylist(rows, tables.QUERIES)
    one, again, other = (smaller.sample_queries(queries, seed)["query_id"].to_pylist() for seed in (0, 0, 1))
    assert one == again == sorted(set(one))
    assert (len(one), {query[:4] for query in one}) == (10, {"test"})
    assert one != other
