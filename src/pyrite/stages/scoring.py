"""Scores a model: ranks passages for queries, and computes the metrics."""

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pyrite.embedding.encoder import Encoder, in_memory
from pyrite.embedding.search import read_blocks, top_k
from pyrite.evaluation import scoring
from pyrite.progress import Progress
from pyrite.sources import retention
from pyrite.spec.stages import retention_name

#: Passages ranked per query, as many as the metrics need.
DEPTH = 10


def rank(
    encoder: Encoder,
    corpus: tuple[list[str], list[str]],
    queries: tuple[list[str], list[str]],
    progress: Progress,
) -> pa.Table:
    """The top ``DEPTH`` passages of each query: columns query_id, passage_id, rank (from 1), score.

    ``corpus`` and ``queries`` are (ids, texts). The search covers all of the corpus.
    """
    (passage_ids, passage_texts), (query_ids, query_texts) = corpus, queries
    files = encoder.corpus(in_memory(passage_texts), progress)
    k = min(DEPTH, len(passage_ids))
    blocks = read_blocks(files, encoder.spec.resources.search_block)
    scores, found = top_k(encoder.encode(query_texts, "query"), blocks, k)
    return pa.table(
        {
            "query_id": np.repeat(query_ids, k).tolist(),
            "passage_id": np.array(passage_ids)[found].ravel().tolist(),
            "rank": pa.array(np.tile(np.arange(1, k + 1), len(query_ids)), pa.int32()),
            "score": pa.array(scores.ravel(), pa.float32()),
        }
    )


def score_split(
    encoder: Encoder,
    model: str,
    split: str,
    passages: pa.Table,
    queries: pa.Table,
    qrels: pa.Table,
    progress: Progress,
) -> tuple[pa.Table, list[dict[str, Any]]]:
    """Rankings (RANKINGS) and per-query metrics (PER_QUERY rows) of ``model`` on the queries of ``split``."""
    queries = queries.filter(pc.equal(queries["split"], split))
    qrels = qrels.filter(pc.is_in(qrels["query_id"], queries["query_id"].combine_chunks()))
    corpus = (passages["passage_id"].to_pylist(), passages["text"].to_pylist())
    ranked = rank(encoder, corpus, (queries["query_id"].to_pylist(), queries["text"].to_pylist()), progress)
    named = {"model": [model] * ranked.num_rows, "split": [split] * ranked.num_rows}
    rankings = pa.table({**named, **{name: ranked[name] for name in ranked.column_names}})
    return rankings, [{"model": model, "split": split, **row} for row in scoring.per_query(ranked, qrels)]


def means(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The mean of each metric over the PER_QUERY rows of one model."""
    values: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault(row["metric"], []).append(row["value"])
    return {metric: float(np.mean(each)) for metric, each in values.items()}


class Retention(NamedTuple):
    """A retention set: (ids, texts) of passages and of queries, and qrels."""

    corpus: tuple[list[str], list[str]]
    queries: tuple[list[str], list[str]]
    qrels: pa.Table


@cache
def read_retention(path: str) -> Retention:
    """Read a retention set. Each document is one passage, which the model truncates. Raises UserError if invalid."""
    documents, questions = retention.read(path)
    qrels = [(q.id, document, grade) for q in questions for document, grade in q.relevant.items()]
    query_ids, passage_ids, grades = zip(*qrels, strict=True)
    return Retention(
        ([d.id for d in documents], [d.text for d in documents]),
        ([q.id for q in questions], [q.text for q in questions]),
        pa.table({"query_id": query_ids, "passage_id": passage_ids, "grade": pa.array(grades, pa.int8())}),
    )


def score_retention(encoder: Encoder, model: str, path: str, progress: Progress) -> list[dict[str, Any]]:
    """nDCG@10 of ``model`` for every query of the retention set at ``path``, as RETENTION rows sorted by query id."""
    corpus, queries, qrels = read_retention(path)
    ranked = rank(encoder, corpus, queries, progress)
    named = {"model": model, "set": retention_name(path)}
    return [{**named, **row} for row in scoring.per_query(ranked, qrels) if row["metric"] == "ndcg@10"]
