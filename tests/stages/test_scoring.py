"""Scoring on a small corpus: float32 rescoring, and BM25 in context."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pyrite import tables
from pyrite.embedding.encoder import Encoder, in_memory
from pyrite.embedding.search import top_k
from pyrite.progress import NullProgress
from pyrite.spec import RunSpec
from pyrite.stages import scoring
from pyrite.store import open_store
from small_data import KINDS, TOPICS


@pytest.mark.parametrize("block", [7, scoring.RESCORED_BLOCK])
def test_the_first_20_are_ranked_again_by_the_rescorer(
    block: int, tiny_model: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = RunSpec.model_validate(
        {
            "name": "small",
            "source": {"kind": "jsonl", "path": str(questions)},
            "model": {"base": str(tiny_model)},
            "resources": {"device": "cpu"},
        }
    )
    encoder = Encoder(tiny_model, tiny_model, spec, open_store(str(tmp_path / "store")), "float32")
    texts = [answer.format(topic, topic, topic) for topic in TOPICS for _, answer in KINDS.values()]
    asked = [question.format(topic) for topic in TOPICS[:5] for question, _ in KINDS.values()]
    corpus = scoring.Corpus(pa.array([str(n) for n in range(len(texts))]), in_memory(texts))
    queries = ([f"q{n}" for n in range(len(asked))], asked)
    exact = scoring.rank(encoder, corpus, queries, NullProgress())

    def inexact(*arguments: Any) -> tuple[Any, ...]:
        """The same passages with wrong scores, so in another order."""
        scores, found = top_k(*arguments)
        return scores, np.ascontiguousarray(found[:, ::-1])

    def encode(self: Encoder, texts: list[str], kind: Any, *arguments: Any) -> Any:
        if kind == "document":
            encoded.append(texts)
        return encode_all(self, texts, kind, *arguments)

    encoded: list[list[str]] = []
    encode_all = Encoder.encode
    monkeypatch.setattr(Encoder, "encode", encode)
    monkeypatch.setattr(scoring, "RESCORED_BLOCK", block)
    monkeypatch.setattr(scoring, "BLOCK", 10)
    monkeypatch.setattr(scoring, "top_k", inexact)
    rescored = scoring.rank(encoder, corpus, queries, NullProgress(), rescorer=encoder)
    for column in ("query_id", "passage_id", "rank"):
        assert rescored[column].to_pylist() == exact[column].to_pylist()
    assert rescored["score"].to_pylist() == pytest.approx(exact["score"].to_pylist(), abs=1e-5)
    assert rescored.num_rows == len(asked) * scoring.RANKED
    together = [text for part in encoded for text in part]
    assert len(together) == len(set(together)) > 7
    encoded.clear()
    scoring.rank(encoder, corpus, queries, NullProgress(), rescorer=encoder)
    assert not encoded, "the base model's vectors are cached, because other runs need them too"
    assert all(len(part) <= block for part in encoded)


def test_bm25_finds_a_passage_by_its_title() -> None:
    titles = ("Asthma", "Gout")
    passages = pa.Table.from_pylist(
        [{"passage_id": title, "text": "Rest and ice.", "context": title} for title in titles], tables.PASSAGES
    )
    queries = pa.Table.from_pylist([{"query_id": "q", "text": "What is gout?", "split": "test"}], tables.QUERIES)
    qrels = pa.Table.from_pylist([{"query_id": "q", "passage_id": "Gout", "grade": 1}], tables.QRELS)
    corpus = scoring.corpus_of(passages)
    ranked, rows = scoring.score_bm25("bm25", "test", corpus, queries, qrels)
    assert ranked["passage_id"].to_pylist() == ["Gout", "Asthma"]
    # One of two passages has the word: idf = ln(1 + 1.5 / 1.5). Their lengths are equal: tf = 1 / (1 + k1).
    assert ranked["score"].to_pylist() == pytest.approx([math.log(2) / 2.5, 0])
    found = {row["metric"]: row["value"] for row in rows}
    assert found["mrr@5"] == 1
    bare = scoring.score_bm25("bm25", "test", corpus._replace(texts=in_memory(["Rest and ice."] * 2)), queries, qrels)[
        1
    ]
    assert {row["metric"]: row["value"] for row in bare}["mrr@5"] == 0.5
