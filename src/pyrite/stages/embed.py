"""embed: the model of an iteration encodes a part of the corpus, and searches it for the queries of all splits.

Each part has whole blocks of embeddings, which are cached in the store, so a killed part resumes. Only the numbers of
the passages found leave the part: retrieve and validate take the best of all parts (``read_found``).
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pyrite import tables
from pyrite.embedding.encoder import BLOCK
from pyrite.embedding.search import Floats, Integers, Mask, Search, best_of, read_blocks, take
from pyrite.evaluation.selection import model_name
from pyrite.splitting import SPLITS
from pyrite.stages.context import StepContext
from pyrite.stages.inputs import encoder, passage_texts, read_passage_ids, read_qrels, read_queries
from pyrite.stages.pairs import pair_keys

#: Passages found for each validation and test query. The metrics need 10, and 5 more are scored again in float32. The
#: others are in the pool of passages on which validate scores blends.
DEPTH = 50

#: Queries of a row group of what was found.
_QUERIES = 1 << 14


def run(ctx: StepContext) -> dict[str, Any]:
    """Write what the part has for each split's queries, and the scores of known answers, to iterations/<i>/search."""
    assert ctx.step.shard is not None
    spec, shard, model = ctx.spec, ctx.step.shard, encoder(ctx, ctx.iteration)
    passages, qrels = read_passage_ids(ctx), read_qrels(ctx)
    trained = in_training(passages)
    part = _part(shard, spec.retrieve.shards, passages.num_rows)
    files = model.corpus(passage_texts(ctx), ctx.progress, part)
    start, end = part.start * BLOCK, min(part.stop * BLOCK, passages.num_rows)
    vectors, searches = {}, {}
    for split in SPLITS:
        texts = read_queries(ctx, split)["text"].to_pylist() if files else []
        vectors[split] = model.encode(texts, "query")
        is_train = split == "train"
        depth = spec.retrieve.range_max if is_train else DEPTH
        searches[split] = Search(vectors[split], depth, model.device, trained if is_train else None)
    ctx.progress.begin(end - start, "passages searched")
    for block in read_blocks(files, start, ctx.progress.advance):
        for search in searches.values():
            search.add(block)
    for split, search in searches.items():
        tables.write_parts(ctx.output(_key(ctx.iteration, split, shard)), _parts(*search.results()), tables.FOUND)
    known = known_pairs(read_queries(ctx, "train"), qrels, passages, trained)
    own = (start <= known[1]) & (known[1] < end)
    rows, positions = known[0][own], known[1][own]
    scored = _table(rows, positions, known_scores(vectors["train"], files, rows, positions - start))
    tables.write(ctx.output(_key(ctx.iteration, "known", shard)), scored, tables.FOUND)
    summary = {"model": model_name(ctx.iteration), "passages": end - start}
    if ctx.iteration == 0 and files:
        blocks = islice(passage_texts(ctx)(BLOCK), part.start, part.stop)
        summary["truncated"] = sum(model.count_truncated(block) for block in blocks)
    return summary


def in_training(passages: pa.Table) -> Mask:
    """Whether each of the PASSAGE_IDS may be a training example: of held-out passages not even a near-duplicate may."""
    mask: Mask = pc.and_(pc.equal(passages["split"], "train"), pc.is_null(passages["near_duplicate"])).to_numpy()
    return mask


def known_pairs(queries: pa.Table, qrels: pa.Table, passages: pa.Table, trained: Mask) -> tuple[Integers, Integers]:
    """Rows of ``queries`` and positions of ``passages`` of the known answers that may be training examples."""
    keys = pair_keys(qrels, queries, passages["passage_id"].combine_chunks())
    rows, positions = np.divmod(keys, passages.num_rows)
    return rows[trained[positions]], positions[trained[positions]]


def known_scores(vectors: Floats, files: list[Any], rows: Integers, positions: Integers) -> Floats:
    """The scores of pairs of a query's row in ``vectors`` and a position among the embeddings in ``files``."""
    if not len(rows):
        return np.empty(0, np.float32)
    order = np.argsort(positions, kind="stable")
    scores = np.empty(len(rows), np.float32)
    for first in range(0, len(rows), BLOCK):
        chosen = order[first : first + BLOCK]
        scores[chosen] = np.einsum("ij,ij->i", vectors[rows[chosen]], take(files, positions[chosen]))
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
    keys = (_key(iteration, "known", shard) for shard in range(ctx.spec.retrieve.shards))
    return pa.concat_tables([tables.read(ctx.input(key), tables.FOUND) for key in keys])


def _part(shard: int, shards: int, passages: int) -> slice:
    """The blocks of a part of the corpus. Parts of a small corpus may have none."""
    blocks = -(-passages // BLOCK)
    return slice(blocks * shard // shards, blocks * (shard + 1) // shards)


def _key(iteration: int, name: str, shard: int) -> str:
    return f"iterations/{iteration}/search/{name}-{shard:05d}.parquet"


def _parts(scores: Floats, found: Integers) -> Iterator[pa.Table]:
    """FOUND of some queries at a time."""
    for first in range(0, len(scores), _QUERIES):
        part = scores[first : first + _QUERIES]
        rows = np.repeat(np.arange(first, first + len(part)), part.shape[1])
        yield _table(rows, found[first : first + _QUERIES].ravel(), part.ravel())


def _table(rows: Integers, positions: Integers, scores: Floats) -> pa.Table:
    return pa.table([pa.array(each) for each in (rows, positions, scores)], tables.FOUND.names).cast(tables.FOUND)


def _read_parts(ctx: StepContext, iteration: int, split: str, shard: int) -> Iterator[tuple[Floats, Integers]]:
    """Scores and positions of a part, for some queries at a time, of shape (queries, k); without end if it is empty."""
    for table in tables.read_parts(ctx.input(_key(iteration, split, shard)), tables.FOUND):
        queries = len(table["query"].unique())
        yield table["score"].to_numpy().reshape(queries, -1), table["position"].to_numpy().reshape(queries, -1)
    while True:
        yield np.empty((0, 0), np.float32), np.empty((0, 0), np.int64)
