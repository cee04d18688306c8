"""Reads the outputs of earlier steps that several stages need."""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pyrite import tables
from pyrite.embedding import models
from pyrite.embedding.encoder import Encoder
from pyrite.errors import UserError
from pyrite.evaluation.selection import current_iteration, label, model_name, score_of
from pyrite.generation.filters import deduplicate
from pyrite.generation.questions import from_tables, to_tables
from pyrite.plan import score_key
from pyrite.splitting import SPLITS
from pyrite.stages.context import StepContext
from pyrite.tables import Texts

_PASSAGES = "corpus/passages.parquet"
_IN_CONTEXT = tables.subset(tables.PASSAGES, "passage_id", "context", "text")


def read_passages(ctx: StepContext) -> pa.Table:
    """All passages, in the order of prepare."""
    return tables.read(ctx.input(_PASSAGES), tables.PASSAGES)


def read_passage_parts(ctx: StepContext, schema: pa.Schema) -> Iterator[pa.Table]:
    """The columns of ``schema`` of all passages, in the order of prepare, in parts."""
    return tables.read_parts(ctx.input(_PASSAGES), schema)


def read_passage_ids(ctx: StepContext) -> pa.Table:
    """PASSAGE_IDS of all passages, in the order of prepare."""
    return tables.read(ctx.input(_PASSAGES), tables.PASSAGE_IDS)


def read_passages_at(ctx: StepContext, positions: npt.NDArray[np.int64]) -> pa.Table:
    """The passages at the ascending ``positions``, with their ids, contexts and texts."""
    parts, start = [], 0
    for part in read_passage_parts(ctx, _IN_CONTEXT):
        first, last = np.searchsorted(positions, [start, start + part.num_rows])
        parts.append(part.take(positions[first:last] - start))
        start += part.num_rows
    return pa.concat_tables(parts)


def read_passages_with(ctx: StepContext, ids: pa.StringArray, schema: pa.Schema = _IN_CONTEXT) -> pa.Table:
    """The passages that have one of the ``ids``: the columns of ``schema``, by default ids, contexts and texts."""
    parts = read_passage_parts(ctx, schema)
    return pa.concat_tables(part.filter(pc.is_in(part["passage_id"], ids)) for part in parts)


def passage_texts(ctx: StepContext, *, context: bool = True) -> Texts:
    """The texts of all passages, in context or without it, in the order of prepare, read in blocks."""
    return tables.read_in_blocks(ctx.input(_PASSAGES), context=context)


def read_queries(ctx: StepContext, split: str | None = None) -> pa.Table:
    """The queries of ``split``, or all: the data set's and the generated ones."""
    queries = _with_generated(ctx)[0]
    return queries if split is None else queries.filter(pc.equal(queries["split"], split))


def read_qrels(ctx: StepContext) -> pa.Table:
    """The known relevant passages of all queries: the data set's, and those that queries were generated from."""
    return _with_generated(ctx)[1]


def read_answer_key(ctx: StepContext) -> tuple[pa.Table, pa.Table, pa.Table]:
    """The tables from which the judge of the labels is loaded, as ``Judge.load_key`` takes them."""
    return read_queries(ctx), tables.read(ctx.input(_PASSAGES), tables.PASSAGE_PARENTS), read_qrels(ctx)


def passages_by_query(*pairs: pa.Table) -> defaultdict[str, set[str]]:
    """The passage ids of each query, from tables with the columns query_id and passage_id."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for table in pairs:
        for query, passage in zip(table["query_id"].to_pylist(), table["passage_id"].to_pylist(), strict=True):
            found[query].add(passage)
    return found


def _with_generated(ctx: StepContext) -> tuple[pa.Table, pa.Table]:
    """QUERIES and QRELS, with the deduplicated generated queries of all shards.

    Raises:
        UserError: a split has no query.
    """
    queries, qrels = read_prepared(ctx)
    if ctx.spec.generate:
        names = [f"{shard:05d}.parquet" for shard in range(ctx.spec.generate.shards)]
        generated = [
            question
            for name in names
            for question in from_tables(
                tables.read(ctx.input(f"queries/generated-{name}"), tables.QUERIES),
                tables.read(ctx.input(f"queries/generated-qrels-{name}"), tables.QRELS),
            )
        ]
        more_queries, more_qrels = to_tables(deduplicate((), generated)[0])
        queries, qrels = pa.concat_tables([queries, more_queries]), pa.concat_tables([qrels, more_qrels])
    present = set(queries["split"].to_pylist())
    if empty := [split for split in SPLITS if split not in present]:
        raise UserError(
            f"{ctx.spec.name}: no query is in {' or '.join(empty)}. "
            f"{'Raise generate.queries.' if ctx.spec.generate else 'Set generate: an LLM then writes questions.'}"
        )
    return queries, qrels


def read_prepared(ctx: StepContext) -> tuple[pa.Table, pa.Table]:
    """The data set's own QUERIES and QRELS, as prepare wrote them."""
    return (
        tables.read(ctx.input("queries/queries.parquet"), tables.QUERIES),
        tables.read(ctx.input("queries/qrels.parquet"), tables.QRELS),
    )


def read_candidates(ctx: StepContext, iteration: int) -> pa.Table:
    """The candidates of an iteration, by query and rank."""
    return tables.read(ctx.input(f"iterations/{iteration}/candidates.parquet"), tables.CANDIDATES)


def read_judgment_parts(ctx: StepContext, iteration: int, shard: int, schema: pa.Schema) -> Iterator[pa.Table]:
    """The columns of ``schema`` of the judgments of a shard, in parts."""
    return tables.read_parts(ctx.input(judgments_key(iteration, shard)), schema)


def judgments_key(iteration: int, shard: int) -> str:
    """The key of the file with a shard's judgments."""
    return f"iterations/{iteration}/judgments/shard-{shard:05d}.parquet"


def read_candidate_rankings(ctx: StepContext) -> pa.Table:
    """RANKINGS of all candidates on validation and test, which validate writes if the run has evaluate.judge."""
    keys = [f"iterations/{i}/metrics/rankings.parquet" for i in range(ctx.spec.iterations + 1)]
    return pa.concat_tables([tables.read(ctx.input(key), tables.RANKINGS) for key in keys])


def model_folder(ctx: StepContext, iteration: int) -> Path:
    """The local folder of an iteration's model; iteration 0 is the base."""
    if iteration == 0:
        return models.base_folder(ctx.spec.model.base, ctx.spec.model.revision)
    return ctx.input_folder(f"iterations/{iteration}/model")


def current_model(ctx: StepContext) -> int:
    """The iteration whose model the step's iteration retrieves with and, with finetune.start previous, starts from."""
    if ctx.iteration == 1:
        return 0
    metrics = [json.loads(ctx.input(score_key(i)).read_text()) for i in range(ctx.iteration)]
    current = current_iteration([score_of(each) for each in metrics])
    if current < ctx.iteration - 1:
        ctx.progress.message(
            f"{label(model_name(ctx.iteration - 1))} scores below {label(model_name(current))} on validation: "
            f"iteration {ctx.iteration} uses {label(model_name(current))}"
        )
    return current


def resaved_base(ctx: StepContext) -> Path:
    """A local copy of the base model, in the format that ``models.blend`` needs."""
    folder = ctx.scratch / "base"
    models.resave(model_folder(ctx, 0), ctx.spec.model, folder)
    return folder


def encoder(ctx: StepContext, iteration: int) -> Encoder:
    """An encoder for an iteration's model; iteration 0 is the base."""
    return encoder_for(ctx, model_folder(ctx, iteration))


def encoder_for(ctx: StepContext, folder: Path, precision: models.Precision = "auto") -> Encoder:
    """An encoder for the model in ``folder``, with the base's prompts and the run's settings."""
    return Encoder(folder, model_folder(ctx, 0), ctx.spec, ctx.store, precision)


def float32_encoder(ctx: StepContext, folder: Path) -> Encoder | None:
    """An encoder in float32, as users load a model; None if ``encoder_for`` has that precision on this device."""
    device = models.device_name(ctx.spec.resources.device)
    return encoder_for(ctx, folder, "float32") if models.uses_bf16("auto", device) else None
