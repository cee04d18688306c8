"""retrieve: the model as it is now ranks the training chunks for every training query.

Only training chunks are ranked: a passage of a validation or test topic can never become a training example.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pyrite import tables
from pyrite.embedding.encoder import Encoder
from pyrite.embedding.search import gather, read_blocks, top_k
from pyrite.stages.context import StepContext
from pyrite.stages.inputs import encoder, read_chunks, read_qrels, read_queries


def run(ctx: StepContext) -> dict[str, Any]:
    """Write iterations/<i>/candidates.parquet; return counts."""
    chunks, queries, qrels = read_chunks(ctx), read_queries(ctx, "train"), read_qrels(ctx)
    candidates = retrieve(encoder(ctx, ctx.iteration - 1), ctx, chunks, queries, qrels)
    rows = tables.write(ctx.output(f"iterations/{ctx.iteration}/candidates.parquet"), candidates, tables.CANDIDATES)
    beyond = pc.sum(pc.equal(candidates["rank"], ctx.spec.retrieve.top_k + 1)).as_py() or 0
    return {"queries": queries.num_rows, "candidates": rows, "known_relevant_below_top_k": beyond}


def retrieve(with_model: Encoder, ctx: StepContext, chunks: pa.Table, queries: pa.Table, qrels: pa.Table) -> pa.Table:
    """The top candidates of each query among the training chunks, and every chunk known to be relevant to it.

    A known relevant chunk that is not among the ``top_k`` comes with its own score and the rank ``top_k + 1``, which
    stands for "anywhere below": it is the hardest positive there is.
    """
    spec = ctx.spec
    files = with_model.corpus(chunks["text"].to_pylist(), ctx.progress)
    trained = np.array(chunks["split"].to_pylist()) == "train"
    position_of = {
        chunk: i for i, (chunk, kept) in enumerate(zip(chunks["chunk_id"].to_pylist(), trained, strict=True)) if kept
    }
    ids = np.array(chunks["chunk_id"].to_pylist())[trained]
    vectors = with_model.encode(queries["text"].to_pylist(), "query")
    k = min(spec.retrieve.top_k, len(ids))
    scores, found = top_k(vectors, read_blocks(files, spec.resources.search_block, trained), k)

    query_ids = queries["query_id"].to_pylist()
    near = [set(ids[row]) for row in found]
    row_of = {query: i for i, query in enumerate(query_ids)}
    missed = [
        (row_of[query], chunk)
        for query, chunk in zip(qrels["query_id"].to_pylist(), qrels["chunk_id"].to_pylist(), strict=True)
        if query in row_of and chunk in position_of and chunk not in near[row_of[query]]
    ]
    columns = {
        "query_id": np.repeat(query_ids, k).tolist() + [query_ids[row] for row, _ in missed],
        "chunk_id": ids[found].ravel().tolist() + [chunk for _, chunk in missed],
        "rank": np.tile(np.arange(1, k + 1), len(query_ids)).tolist() + [spec.retrieve.top_k + 1] * len(missed),
        "score": scores.ravel().tolist(),
    }
    if missed:
        rows = np.array([row for row, _ in missed])
        theirs = gather(files, np.array([position_of[chunk] for _, chunk in missed]))
        columns["score"] += np.einsum("ij,ij->i", vectors[rows], theirs).tolist()
    table = pa.table(columns).cast(tables.CANDIDATES)
    return table.sort_by(
        [("query_id", "ascending"), ("rank", "ascending"), ("score", "descending"), ("chunk_id", "ascending")]
    )
