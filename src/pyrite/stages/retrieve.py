"""retrieve: joins the passages that the current model found for every training query with what is known about them.

Passages of validation and test topics, and training passages that are near-duplicates of them, are excluded, so that
they never become training examples. Memory holds numbers and the ids of the corpus; texts are read in parts.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pyrite import tables
from pyrite.embedding.encoder import Encoder
from pyrite.embedding.search import Floats, Integers, Search, read_blocks
from pyrite.evaluation.selection import model_name
from pyrite.judges.base import RELEVANT
from pyrite.spill import TextFile
from pyrite.stages.context import StepContext
from pyrite.stages.found import in_training, known_pairs, known_scores, read_found, read_known
from pyrite.stages.inputs import (
    current_model,
    passage_texts,
    read_judgment_parts,
    read_passage_ids,
    read_passage_parts,
    read_qrels,
    read_queries,
)
from pyrite.stages.pairs import PART, PART_WITHOUT_TEXTS, Pairs, find_pairs, pairs_key, shard_of

_GRADES = tables.subset(tables.JUDGMENTS, "query_id", "passage_id", "grade")


def run(ctx: StepContext) -> dict[str, Any]:
    """Write candidates.parquet and pairs/ to iterations/<i>; return the name of the model and counts."""
    queries, qrels, passages = read_queries(ctx, "train"), read_qrels(ctx), read_passage_ids(ctx)
    current = current_model(ctx)
    k = min(ctx.spec.retrieve.range_max, int(in_training(passages).sum()))
    top = read_found(ctx, current, "train", queries.num_rows, k)
    known = read_known(ctx, current)
    scored = known["query"].to_numpy(), known["position"].to_numpy(), known["score"].to_numpy()
    pairs = _join(queries, qrels, passages, top, scored, _judged_relevant(ctx))
    rows = pairs.rows_by_id()
    parts = (pairs.candidates(part) for part in pairs.parts(rows, PART_WITHOUT_TEXTS))
    tables.write_parts(ctx.output(f"iterations/{ctx.iteration}/candidates.parquet"), parts, tables.CANDIDATES)
    _write_pairs(pairs, rows, queries["query_id"].to_pylist(), ctx)
    return {
        "model": model_name(current),
        "queries": queries.num_rows,
        "candidates": pairs.num_candidates,
        "known_relevant_below_range_max": pairs.num_below,
    }


def _judged_relevant(ctx: StepContext) -> pa.Table:
    """QRELS of the pairs with a relevant grade in an earlier iteration."""
    relevant = [
        part.filter(pc.field("grade") >= RELEVANT)
        for iteration in range(1, ctx.iteration)
        for shard in range(ctx.spec.judge.shards)
        for part in read_judgment_parts(ctx, iteration, shard, tables.QRELS)
    ]
    return pa.concat_tables([tables.QRELS.empty_table(), *relevant])


def _write_pairs(pairs: Pairs, rows: Integers, query_ids: list[str], ctx: StepContext) -> None:
    """Write the PAIRS of each shard of judging. ``rows`` of the queries in the order of their ids."""
    shards = ctx.spec.judge.shards
    shard_of_row = np.array([shard_of(query_ids[row], shards) for row in rows.tolist()])
    path = ctx.scratch / "texts"
    ctx.progress.begin(len(rows), "queries joined with their passages")
    with TextFile(path, tables.PASSAGE_TEXTS) as texts:
        for passages in read_passage_parts(ctx, tables.PASSAGE_TEXTS):
            texts.append(passages)

        def parts(shard: int) -> Iterator[pa.Table]:
            for part in pairs.parts(rows[shard_of_row == shard], PART):
                yield pairs.pairs(part, texts)
                ctx.progress.advance(len(part))

        for shard in range(shards):
            tables.write_parts(ctx.output(pairs_key(ctx.iteration, shard)), parts(shard), tables.PAIRS)
    path.unlink()


def retrieve(model: Encoder, ctx: StepContext, queries: pa.Table, qrels: pa.Table) -> Pairs:
    """The pairs of some ``queries`` by a search in this process."""
    passages = read_passage_ids(ctx)
    trained = in_training(passages)
    files = model.corpus(passage_texts(ctx), ctx.progress)
    vectors = model.encode(queries["text"].to_pylist(), "query")
    search = Search(vectors, min(ctx.spec.retrieve.range_max, int(trained.sum())), model.device, trained)
    for block in read_blocks(files):
        search.add(block)
    rows, positions = known_pairs(queries, qrels, passages, trained)
    known = rows, positions, known_scores(vectors, files, rows, positions)
    return _join(queries, qrels, passages, search.results(), known, tables.QRELS.empty_table())


def _join(
    queries: pa.Table,
    qrels: pa.Table,
    passages: pa.Table,
    top: tuple[Floats, Integers],
    known: tuple[Integers, Integers, Floats],
    judged_relevant: pa.Table,
) -> Pairs:
    """The pairs of the passages found and of all known answers that may be training examples.

    A known answer that was not found has its own score, but a rank below all others in place of its unknown one. Such
    passages are the hardest positives.

    Args:
        top: as ``Pairs``.
        known: rows of ``queries``, positions of ``passages``, and scores of known answers.
        judged_relevant: QRELS of the pairs with a relevant grade in an earlier iteration.
    """
    rows, positions, scores = known
    missed = np.empty(len(rows), np.bool_)
    for first in range(0, len(rows), PART):
        part = slice(first, first + PART)
        missed[part] = ~(top[1][rows[part]] == positions[part, None]).any(axis=1)
    below = scores[missed], rows[missed].astype(np.int64) * passages.num_rows + positions[missed]
    ids = passages["passage_id"].combine_chunks()
    keys = (find_pairs(table, queries, ids) for table in (qrels, judged_relevant))
    return Pairs(queries, ids, top, below, *keys)
