"""Scores a model: ranks passages for queries, and computes the metrics."""

from collections.abc import Iterator
from functools import cache
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pyrite import tables
from pyrite.embedding.encoder import BLOCK, Encoder, in_memory
from pyrite.embedding.search import Floats, Integers, read_blocks, top_k
from pyrite.evaluation import bm25, scoring
from pyrite.evaluation.judged import judged_per_query
from pyrite.progress import Progress
from pyrite.sources import retention
from pyrite.spec.stages import retention_name
from pyrite.tables import Texts

#: Passages ranked per query, as many as the metrics need.
RANKED = 10

#: Passages scored again in float32 per query. bf16 changes cosines by 0.001 on average and by 0.006 at most (MedQuAD),
#: so the top 10 are among them.
RESCORED = RANKED + 5

#: Passages, and pairs of a query and a passage, whose float32 vectors are in memory at a time. 16,384 vectors of 1,024
#: dimensions take 64 MiB.
RESCORED_BLOCK = 16_384


class Corpus(NamedTuple):
    """Passages to search: their ids, and their texts as models read them, which need not fit into memory."""

    ids: pa.StringArray
    texts: Texts


def corpus_of(passages: pa.Table) -> Corpus:
    """The ``passages`` of a table in memory, with the columns passage_id, context and text."""

    def texts(rows: int) -> Iterator[list[str]]:
        return (tables.in_context(passages.slice(start, rows)) for start in range(0, passages.num_rows, rows))

    return Corpus(passages["passage_id"].combine_chunks(), texts)


def rank(
    encoder: Encoder,
    corpus: Corpus,
    queries: tuple[list[str], list[str]],
    progress: Progress,
    rescorer: Encoder | None = None,
) -> pa.Table:
    """The top ``RANKED`` passages of each query: columns query_id, passage_id, rank (from 1), score.

    ``queries`` are (ids, texts). The search covers all of the corpus. ``rescorer``: the same model in float32, which
    scores the top ``RESCORED`` again.
    """
    files = encoder.corpus(corpus.texts, progress)
    k = min(RESCORED, len(corpus.ids))
    found = top_k(encoder.encode(queries[1], "query"), read_blocks(files), k, encoder.device)
    return rank_found(found, corpus, queries, progress, rescorer)


def rank_found(
    top: tuple[Floats, Integers],
    corpus: Corpus,
    queries: tuple[list[str], list[str]],
    progress: Progress,
    rescorer: Encoder | None = None,
) -> pa.Table:
    """As ``rank``, from scores and positions of the top ``RESCORED`` passages at least, of shape (queries, k)."""
    query_ids, query_texts = queries
    scores, found = top[0][:, :RESCORED], top[1][:, :RESCORED]
    if rescorer:
        scores, found = _rescore(rescorer, corpus.texts, query_texts, found, progress)
    return rankings((query_ids, corpus.ids), scores[:, :RANKED], found[:, :RANKED])


def _rescore(
    encoder: Encoder, passages: Texts, queries: list[str], found: Integers, progress: Progress
) -> tuple[Floats, Integers]:
    """The scores of the passages at the positions ``found``, shape (queries, k), and these in the new order.

    Each passage is encoded once, in blocks of ``RESCORED_BLOCK``, which bounds the memory.
    """
    distinct, inverse = np.unique(found.ravel(), return_inverse=True)
    progress.begin(len(distinct), "passages encoded in float32")
    queried = encoder.encode(queries, "query")
    scores: Floats = np.empty(found.size, dtype=np.float32)
    pairs = np.argsort(inverse, kind="stable")  # positions in ``scores``, in the order of their passages
    texts = _texts_at(passages, distinct)
    for start in range(0, len(distinct), RESCORED_BLOCK):
        block = list(islice(texts, RESCORED_BLOCK))
        vectors = _passage_vectors(encoder.passage_encoder, block, progress)
        first, last = np.searchsorted(inverse, [start, start + len(block)], sorter=pairs)
        for begin in range(first, last, RESCORED_BLOCK):
            chunk = pairs[begin : min(begin + RESCORED_BLOCK, last)]
            scores[chunk] = np.einsum("pd,pd->p", queried[chunk // found.shape[1]], vectors[inverse[chunk] - start])
    scores = scores.reshape(found.shape)
    order = np.lexsort((found, -scores), axis=1)
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(found, order, axis=1)


def _texts_at(texts: Texts, positions: Integers) -> Iterator[str]:
    """The ``texts`` at the ascending ``positions``."""
    start = 0
    for block in texts(BLOCK):
        first, last = np.searchsorted(positions, [start, start + len(block)])
        yield from (block[position] for position in (positions[first:last] - start).tolist())
        start += len(block)


def _passage_vectors(encoder: Encoder, texts: list[str], progress: Progress) -> Floats:
    """The embeddings of ``texts``, shape (texts, dims). The base model's are cached: other runs need them too."""
    if encoder.folder != encoder.base:
        return encoder.encode(texts, "document", progress.advance)
    return np.concatenate([np.load(file) for file in encoder.corpus(in_memory(texts), progress)])


def rankings(ids: tuple[list[str], pa.StringArray], scores: Floats, found: Integers) -> pa.Table:
    """Search results as a table with the columns query_id, passage_id, rank (from 1) and score.

    Args:
        ids: the ids of the queries and of the passages.
        scores, found: scores and positions of the passages, best first, shape (queries, k).
    """
    (query_ids, passage_ids), k = ids, found.shape[1]
    return pa.table(
        {
            "query_id": np.repeat(query_ids, k).tolist(),
            "passage_id": passage_ids.take(pa.array(found.ravel())),
            "rank": pa.array(np.tile(np.arange(1, k + 1), len(query_ids)), pa.int32()),
            "score": pa.array(scores.ravel(), pa.float32()),
        }
    )


def rank_split(
    encoder: Encoder,
    model: str,
    split: str,
    corpus: Corpus,
    queries: pa.Table,
    progress: Progress,
    rescorer: Encoder | None = None,
    top: tuple[Floats, Integers] | None = None,
) -> pa.Table:
    """The top ``RANKED`` passages of ``model`` for the queries of ``split``, as RANKINGS.

    ``top``: the result of a search for them; None: search now.
    """
    queries = queries.filter(pc.equal(queries["split"], split))
    texts = (queries["query_id"].to_pylist(), queries["text"].to_pylist())
    if top is None:
        ranked = rank(encoder, corpus, texts, progress, rescorer)
    else:
        ranked = rank_found(top, corpus, texts, progress, rescorer)
    return label_rankings(model, split, ranked)


def score_split(
    encoder: Encoder,
    model: str,
    split: str,
    corpus: Corpus,
    queries: pa.Table,
    qrels: pa.Table,
    progress: Progress,
    rescorer: Encoder | None = None,
    top: tuple[Floats, Integers] | None = None,
) -> tuple[pa.Table, list[dict[str, Any]]]:
    """Rankings (RANKINGS) and per-query metrics (PER_QUERY rows) of ``model`` on the queries of ``split``."""
    table = rank_split(encoder, model, split, corpus, queries, progress, rescorer, top)
    return table, score_rankings(model, split, table, queries, qrels)


def score_bm25(
    model: str, split: str, corpus: Corpus, queries: pa.Table, qrels: pa.Table
) -> tuple[pa.Table, list[dict[str, Any]]]:
    """As ``score_split``, for BM25."""
    queries = queries.filter(pc.equal(queries["split"], split))
    scores, found = bm25.rank(corpus.texts, queries["text"].to_pylist(), RANKED)
    table = label_rankings(model, split, rankings((queries["query_id"].to_pylist(), corpus.ids), scores, found))
    return table, score_rankings(model, split, table, queries, qrels)


def label_rankings(model: str, split: str, ranked: pa.Table) -> pa.Table:
    """The rankings of ``model`` as RANKINGS."""
    names = {"model": [model] * ranked.num_rows, "split": [split] * ranked.num_rows}
    return pa.table({**names, **{name: ranked[name] for name in ranked.column_names}})


def score_rankings(
    model: str, split: str, ranked: pa.Table, queries: pa.Table, qrels: pa.Table
) -> list[dict[str, Any]]:
    """PER_QUERY rows of RANKINGS on the queries of ``split``."""
    queries = queries.filter(pc.equal(queries["split"], split))
    qrels = qrels.filter(pc.is_in(qrels["query_id"], queries["query_id"].combine_chunks()))
    return [{"model": model, "split": split, **row} for row in scoring.per_query(ranked, qrels)]


def score_judged(ranked: pa.Table, judgments: pa.Table) -> pa.Table:
    """PER_QUERY of every model and split in the RANKINGS ``ranked``, by the grades in ``judgments``."""
    rows = []
    for split in sorted(set(ranked["split"].to_pylist())):
        of_split = ranked.filter(pc.equal(ranked["split"], split))
        for model in dict.fromkeys(of_split["model"].to_pylist()):
            own = of_split.filter(pc.equal(of_split["model"], model))
            rows += [{"model": model, "split": split, **row} for row in judged_per_query(own, judgments)]
    return pa.Table.from_pylist(rows, tables.PER_QUERY)


def means(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The mean of each metric over the PER_QUERY rows of one model."""
    values: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault(row["metric"], []).append(row["value"])
    return {metric: float(np.mean(each)) for metric, each in values.items()}


class Retention(NamedTuple):
    """A retention set: passages, (ids, texts) of queries, and qrels."""

    corpus: Corpus
    queries: tuple[list[str], list[str]]
    qrels: pa.Table


@cache
def read_retention(path: str) -> Retention:
    """Read a retention set. Each document is one passage, which the model truncates. Raises UserError if invalid."""
    documents, questions = retention.read(path)
    qrels = [(q.id, document, grade) for q in questions for document, grade in q.relevant.items()]
    query_ids, passage_ids, grades = zip(*qrels, strict=True)
    return Retention(
        Corpus(pa.array([d.id for d in documents]), in_memory([d.text for d in documents])),
        ([q.id for q in questions], [q.text for q in questions]),
        pa.table({"query_id": query_ids, "passage_id": passage_ids, "grade": pa.array(grades, pa.int8())}),
    )


def score_retention(encoder: Encoder, model: str, path: str, progress: Progress) -> list[dict[str, Any]]:
    """nDCG@10 of ``model`` for every query of the retention set at ``path``, as RETENTION rows sorted by query id."""
    corpus, queries, qrels = read_retention(path)
    found = rank(encoder, corpus, queries, progress)
    names = {"model": model, "set": retention_name(path)}
    return [{**names, **row} for row in scoring.per_query(found, qrels) if row["metric"] == "ndcg@10"]
