"""Reading what earlier stages wrote: one place that knows under which keys it stands."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pyrite import tables
from pyrite.embedding import models
from pyrite.embedding.encoder import Encoder
from pyrite.stages.context import StepContext


def read_chunks(ctx: StepContext) -> pa.Table:
    """All chunks, in the order that prepare gave them."""
    return tables.read(ctx.input("corpus/chunks.parquet"), tables.CHUNKS)


def read_queries(ctx: StepContext, split: str | None = None) -> pa.Table:
    """The queries of ``split``, or all."""
    queries = tables.read(ctx.input("queries/queries.parquet"), tables.QUERIES)
    return queries if split is None else queries.filter(pc.equal(queries["split"], split))


def read_qrels(ctx: StepContext) -> pa.Table:
    """What the data set says is relevant, all splits."""
    return tables.read(ctx.input("queries/qrels.parquet"), tables.QRELS)


def read_candidates(ctx: StepContext, iteration: int) -> pa.Table:
    """The candidates of an iteration, by query and rank."""
    return tables.read(ctx.input(f"iterations/{iteration}/candidates.parquet"), tables.CANDIDATES)


def read_judgments(ctx: StepContext, iteration: int) -> pa.Table:
    """The judgments of an iteration, all shards."""
    shards = range(ctx.spec.judge.shards)
    keys = [f"iterations/{iteration}/judgments/shard-{shard:05d}.parquet" for shard in shards]
    return pa.concat_tables([tables.read(ctx.input(key), tables.JUDGMENTS) for key in keys])


def model_folder(ctx: StepContext, iteration: int) -> Path:
    """The local folder of an iteration's model; iteration 0 is the base."""
    if iteration == 0:
        return models.base_folder(ctx.spec.model.base, ctx.spec.model.revision)
    return ctx.input_folder(f"iterations/{iteration}/model")


def encoder(ctx: StepContext, iteration: int) -> Encoder:
    """An encoder with an iteration's model; iteration 0 is the base."""
    return encoder_of(ctx, model_folder(ctx, iteration))


def encoder_of(ctx: StepContext, folder: Path) -> Encoder:
    """An encoder with the model in ``folder``, the base's prompts and the run's settings."""
    return Encoder(folder, model_folder(ctx, 0), ctx.spec, ctx.store)
