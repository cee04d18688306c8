"""retrieve: the current model ranks the training passages for every training query.

Passages of validation and test topics, and training passages that are near-duplicates of them, are excluded, so that
they never become training examples. Memory holds only the ids of the corpus; texts and embeddings are read in blocks.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pyrite import tables
from pyrite.embedding.encoder import Encoder
from pyrite.embedding.search import Integers, read_blocks, take, top_k
from pyrite.evaluation.selection import model_name
from pyrite.judges.base import RELEVANT
from pyrite.stages.context import StepContext
from pyrite.stages.inputs import (
    current_model,
    encoder,
    passage_texts,
    read_judgments,
    read_passage_ids,
    read_passage_parts,
    read_qrels,
    read_queries,
)
from pyrite.stages.pairs import PART, PART_WITHOUT_TEXTS, Pairs, Texts, pairs_key, shard_of


def run(ctx: StepContext) -> dict[str, Any]:
    """Write candidates.parquet and pairs/ to iterations/<i>; return the name of the model and counts."""
    queries, qrels, current = read_queries(ctx, "train"), read_qrels(ctx), current_model(ctx)
    judged = [read_judgments(ctx, i).filter(pc.field("grade") >= RELEVANT) for i in range(1, ctx.iteration)]
    judged_relevant = pa.concat_tables([tables.JUDGMENTS.empty_table(), *judged])
    pairs = retrieve(encoder(ctx, current), ctx, queries, qrels, judged_relevant)
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


def _write_pairs(pairs: Pairs, rows: Integers, query_ids: list[str], ctx: StepContext) -> None:
    """Write the PAIRS of each shard of judging. ``rows`` of the queries in the order of their ids."""
    shards = ctx.spec.judge.shards
    shard_of_row = np.array([shard_of(query_ids[row], shards) for row in rows.tolist()])
    path = ctx.scratch / "texts"
    ctx.progress.begin(len(rows), "queries joined with their passages")
    with Texts(path) as texts:
        for passages in read_passage_parts(ctx, Texts.SCHEMA):
            texts.append(passages)

        def parts(shard: int) -> Iterator[pa.Table]:
            for part in pairs.parts(rows[shard_of_row == shard], PART):
                yield pairs.pairs(part, texts)
                ctx.progress.advance(len(part))

        for shard in range(shards):
            tables.write_parts(ctx.output(pairs_key(ctx.iteration, shard)), parts(shard), tables.PAIRS)
    path.unlink()


def retrieve(
    model: Encoder, ctx: StepContext, queries: pa.Table, qrels: pa.Table, judged_relevant: pa.Table | None = None
) -> Pairs:
    """The top ``range_max`` training passages of each query, and every training passage known to be relevant to it.

    A known relevant passage below the top ``range_max`` has its own score, but the rank ``range_max + 1`` in place of
    its unknown one. Such passages are the hardest positives.

    Args:
        judged_relevant: JUDGMENTS of earlier iterations with a relevant grade.
    """
    spec, passages = ctx.spec, read_passage_ids(ctx)
    files = model.corpus(passage_texts(ctx), ctx.progress)
    in_train = pc.and_(pc.equal(passages["split"], "train"), pc.is_null(passages["near_duplicate"])).to_numpy()
    positions = np.flatnonzero(in_train)
    vectors = model.encode(queries["text"].to_pylist(), "query")
    k = min(spec.retrieve.range_max, len(positions))
    scores, found = top_k(vectors, read_blocks(files, spec.resources.search_block, in_train), k)

    ids, size = passages["passage_id"].combine_chunks(), len(passages)
    known = _keys(qrels, queries, ids)
    rows, known_positions = np.divmod(known, size)
    found = positions[found]
    missed = in_train[known_positions] & ~(found[rows] == known_positions[:, None]).any(axis=1)
    missed_vectors = take(files, known_positions[missed]) if missed.any() else vectors[:0]
    below = np.einsum("ij,ij->i", vectors[rows[missed]], missed_vectors), known[missed]
    relevant = known[:0] if judged_relevant is None else _keys(judged_relevant, queries, ids)
    return Pairs(queries, ids, (scores, found), below, known, relevant)


def _keys(table: pa.Table, queries: pa.Table, passage_ids: pa.Array) -> Integers:
    """The keys (``Pairs``) of the rows of ``table`` whose query and passage exist."""
    rows = pc.index_in(table["query_id"], queries["query_id"].combine_chunks())
    positions = pc.index_in(table["passage_id"], passage_ids)
    found = pa.table({"row": rows, "position": positions}).drop_null()
    return np.unique(found["row"].to_numpy().astype(np.int64) * len(passage_ids) + found["position"].to_numpy())
