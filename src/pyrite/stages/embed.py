"""embed: the model of an iteration encodes a part of the corpus, and searches it for the queries of all splits.

Each part has complete blocks of embeddings, which are cached in the store, so a killed part resumes. Only the numbers
of the passages found leave the part: retrieve and validate take the best of all parts (``stages/found.py``).
"""

from itertools import islice
from typing import Any

import pyarrow.compute as pc

from pyrite import tables
from pyrite.embedding.checks import check_matryoshka
from pyrite.embedding.encoder import BLOCK
from pyrite.embedding.search import Search, read_blocks
from pyrite.evaluation.selection import model_name
from pyrite.splitting import SPLITS
from pyrite.stages.context import StepContext
from pyrite.stages.found import DEPTH, found_key, found_parts, found_table, in_training, known_pairs, known_scores
from pyrite.stages.inputs import encoder, passage_texts, read_passage_ids, read_qrels, read_queries


def run(ctx: StepContext) -> dict[str, Any]:
    """Write the results of the part for each split's queries, and scores of known answers, to iterations/<i>/search."""
    assert ctx.step.shard is not None
    spec, shard, model = ctx.spec, ctx.step.shard, encoder(ctx, ctx.iteration)
    if ctx.iteration == 0:  # before judging, which may cost money
        check_matryoshka(spec.finetune.matryoshka, model.model)
    passages, queries = read_passage_ids(ctx), read_queries(ctx)
    by_split = {split: queries.filter(pc.equal(queries["split"], split)) for split in SPLITS}
    trained = in_training(passages)
    part = _part(shard, spec.retrieve.shards, passages.num_rows)
    files = model.corpus(passage_texts(ctx), ctx.progress, part)
    start, end = part.start * BLOCK, min(part.stop * BLOCK, passages.num_rows)
    vectors, searches = {}, {}
    for split in SPLITS:
        texts = by_split[split]["text"].to_pylist() if files else []
        vectors[split] = model.encode(texts, "query")
        is_train = split == "train"
        depth = spec.retrieve.range_max if is_train else DEPTH
        searches[split] = Search(vectors[split], depth, model.device, trained if is_train else None)
    ctx.progress.begin(end - start, "passages searched")
    for block in read_blocks(files, start, ctx.progress.advance):
        for search in searches.values():
            search.add(block)
    for split, search in searches.items():
        parts = found_parts(*search.results())
        tables.write_parts(ctx.output(found_key(ctx.iteration, split, shard)), parts, tables.FOUND)
    known = known_pairs(by_split["train"], read_qrels(ctx), passages, trained)
    own = (start <= known[1]) & (known[1] < end)
    rows, positions = known[0][own], known[1][own]
    scored = found_table(rows, positions, known_scores(vectors["train"], files, rows, positions - start))
    tables.write(ctx.output(found_key(ctx.iteration, "known", shard)), scored, tables.FOUND)
    summary = {"model": model_name(ctx.iteration), "passages": end - start}
    if ctx.iteration == 0 and files:
        blocks = islice(passage_texts(ctx)(BLOCK), part.start, part.stop)
        summary["truncated"] = sum(model.count_truncated(block) for block in blocks)
    return summary


def _part(shard: int, shards: int, passages: int) -> slice:
    """The blocks of a part of the corpus. Parts of a small corpus may have none."""
    blocks = -(-passages // BLOCK)
    return slice(blocks * shard // shards, blocks * (shard + 1) // shards)
