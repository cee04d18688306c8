"""What embed finds in the parts of the corpus: written as numbers, read as the best of all parts."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pyrite import tables
from pyrite.embedding.encoder import BLOCK
from pyrite.embedding.search import Floats, Integers, best_of, read_blocks
from pyrite.ragged import Mask
from pyrite.stages.context import StepContext
from pyrite.stages.pairs import find_pairs

#: Passages found for each validation and test query. The metrics need 10, and 5 more are scored again in float32. The
#: others are in the pool of passages on which validate scores blends.
DEPTH = 50

#: Queries of a row group.
_QUERIES = 1 << 14


def found_key(iteration: int, name: str, shard: int) -> str:
    """The key of the results of a part for a split's queries, or of the scores of "known" answers."""
    return f"iterations/{iteration}/search/{name}-{shard:05d}.parquet"


def in_training(passages: pa.Table) -> Mask:
    """Whether each of the PASSAGE_IDS may be a training example: it and no near-duplicate of it is held out."""
    mask: Mask = pc.and_(pc.equal(passages["split"], "train"), pc.is_null(passages["near_duplicate"])).to_numpy()
    return mask


def known_pairs(queries: pa.Table, qrels: pa.Table, passages: pa.Table, trained: Mask) -> tuple[Integers, Integers]:
    """Rows of ``queries`` and positions of ``passages`` of the known answers that may be training examples."""
    keys = find_pairs(qrels, queries, passages["passage_id"].combine_chunks())
    rows, positions = np.divmod(keys, passages.num_rows)
    return rows[trained[positions]], positions[trained[positions]]


def known_scores(vectors: Floats, files: list[Path], rows: Integers, positions: Integers) -> Floats:
    """The scores of pairs of a query's row in ``vectors`` and a position among the embeddings in ``files``."""
    scores, order = np.empty(len(rows), np.float32), np.argsort(positions, kind="stable")
    for block in read_blocks(files):
        start, end = np.searchsorted(positions, [block.start, block.start + len(block.vectors)], sorter=order).tolist()
        for first in range(start, end, BLOCK):
            chosen = order[first : min(first + BLOCK, end)]
            found = block.vectors[positions[chosen] - block.start]
            scores[chosen] = np.einsum("ij,ij->i", vectors[rows[chosen]], found)
    return scores


def read_found(ctx: StepContext, iteration: int, split: str, queries: int, k: int) -> tuple[Floats, Integers]:
    """The best ``k`` passages of the split's queries by the model of ``iteration``, among those of all parts.

    Returns:
        scores and positions in the corpus, best first, of shape (queries, k).
    """
    scores, found = np.empty((queries, k), np.float32), np.empty((queries, k), np.int64)
    parts = [_read_parts(ctx, iteration, split, shard) for shard in range(ctx.spec.retrieve.shards)]
    for first in range(0, queries, _QUERIES):
        rows = slice(first, min(first + _QUERIES, queries))
        scores[rows], found[rows] = best_of([each for each in map(next, parts) if each[0].size], k)
    return scores, found


def read_known(ctx: StepContext, iteration: int) -> pa.Table:
    """FOUND of the known answers that may be training examples, with their scores by the model of ``iteration``."""
    keys = (found_key(iteration, "known", shard) for shard in range(ctx.spec.retrieve.shards))
    return pa.concat_tables([tables.read(ctx.input(key), tables.FOUND) for key in keys])


def found_parts(scores: Floats, found: Integers) -> Iterator[pa.Table]:
    """FOUND of some queries at a time."""
    for first in range(0, len(scores), _QUERIES):
        part = scores[first : first + _QUERIES]
        rows = np.repeat(np.arange(first, first + len(part)), part.shape[1])
        yield found_table(rows, found[first : first + _QUERIES].ravel(), part.ravel())


def found_table(rows: Integers, positions: Integers, scores: Floats) -> pa.Table:
    """FOUND of pairs of a row of the queries and a position in the corpus."""
    return pa.table([pa.array(each) for each in (rows, positions, scores)], tables.FOUND.names).cast(tables.FOUND)


def _read_parts(ctx: StepContext, iteration: int, split: str, shard: int) -> Iterator[tuple[Floats, Integers]]:
    """Scores and positions of a part, for some queries at a time, of shape (queries, k); then empty ones."""
    for table in tables.read_parts(ctx.input(found_key(iteration, split, shard)), tables.FOUND):
        queries = len(table["query"].unique())
        yield table["score"].to_numpy().reshape(queries, -1), table["position"].to_numpy().reshape(queries, -1)
    while True:
        yield np.empty((0, 0), np.float32), np.empty((0, 0), np.int64)
