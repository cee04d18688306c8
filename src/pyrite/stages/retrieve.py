"""retrieve: the current model ranks the training passages for every training query.

Passages of validation and test topics, and training passages that are near-duplicates of them, are excluded, so that
they never become training examples. Memory holds only the ids of the corpus; texts and embeddings are read in blocks.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pyrite import tables
from pyrite.embedding.encoder import Encoder
from pyrite.embedding.search import read_blocks, take, top_k
from pyrite.evaluation.selection import model_name
from pyrite.stages.context import StepContext
from pyrite.stages.inputs import current_model, encoder, passage_texts, read_passage_ids, read_qrels, read_queries


def run(ctx: StepContext) -> dict[str, Any]:
    """Write iterations/<i>/candidates.parquet; return the name of the model and counts."""
    queries, qrels, current = read_queries(ctx, "train"), read_qrels(ctx), current_model(ctx)
    candidates = retrieve(encoder(ctx, current), ctx, queries, qrels)
    rows = tables.write(ctx.output(f"iterations/{ctx.iteration}/candidates.parquet"), candidates, tables.CANDIDATES)
    below = pc.sum(pc.equal(candidates["rank"], ctx.spec.retrieve.range_max + 1)).as_py() or 0
    return {
        "model": model_name(current),
        "queries": queries.num_rows,
        "candidates": rows,
        "known_relevant_below_range_max": below,
    }


def retrieve(model: Encoder, ctx: StepContext, queries: pa.Table, qrels: pa.Table) -> pa.Table:
    """The top ``range_max`` training passages of each query, and every training passage known to be relevant to it.

    A known relevant passage below the top ``range_max`` has its own score, but the rank ``range_max + 1`` in place of
    its unknown one. Such passages are the hardest positives.
    """
    spec, passages = ctx.spec, read_passage_ids(ctx)
    files = model.corpus(passage_texts(ctx), ctx.progress)
    in_train = pc.and_(pc.equal(passages["split"], "train"), pc.is_null(passages["near_duplicate"])).to_numpy()
    ids = passages["passage_id"].filter(pa.array(in_train)).combine_chunks()
    vectors = model.encode(queries["text"].to_pylist(), "query")
    k = min(spec.retrieve.range_max, len(ids))
    scores, found = top_k(vectors, read_blocks(files, spec.resources.search_block, in_train), k)
    tops = pa.table(
        {
            "query_id": np.repeat(queries["query_id"].to_numpy(), k),
            "passage_id": ids.take(pa.array(found.ravel())),
            "rank": np.tile(np.arange(1, k + 1), queries.num_rows),
            "score": scores.ravel(),
        }
    )

    known = pa.table(
        {
            **{name: qrels[name] for name in ("query_id", "passage_id")},
            "row": pc.index_in(qrels["query_id"], queries["query_id"].combine_chunks()),
            "position": pc.index_in(qrels["passage_id"], ids),
        }
    ).drop_null()
    rows, positions = known["row"].to_numpy(), known["position"].to_numpy()
    missed = ~(found[rows] == positions[:, None]).any(axis=1)
    table = tops.cast(tables.CANDIDATES)
    if missed.any():
        missed_vectors = take(files, np.flatnonzero(in_train)[positions[missed]])
        below = known.filter(pa.array(missed)).select(["query_id", "passage_id"])
        below = below.append_column("rank", pa.array(np.full(len(missed_vectors), spec.retrieve.range_max + 1)))
        below = below.append_column("score", pa.array(np.einsum("ij,ij->i", vectors[rows[missed]], missed_vectors)))
        table = pa.concat_tables([table, below.cast(tables.CANDIDATES)])
    return table.sort_by(
        [("query_id", "ascending"), ("rank", "ascending"), ("score", "descending"), ("passage_id", "ascending")]
    )
