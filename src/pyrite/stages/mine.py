"""mine: turns judged candidates into training examples, and with mine.accumulate adds those of earlier iterations."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pyrite import tables
from pyrite.errors import UserError
from pyrite.judges.base import RELEVANT
from pyrite.stages.context import StepContext
from pyrite.stages.inputs import (
    passages_by_query,
    read_candidates,
    read_judgments,
    read_passages,
    read_qrels,
    read_queries,
)
from pyrite.training import mining
from pyrite.training.mining import Candidate, Example, Shingles


def run(ctx: StepContext) -> dict[str, Any]:
    """Write iterations/<i>/examples.parquet; return the counts of examples, and of queries without any by reason."""
    spec = ctx.spec.mine
    text_of = _texts(read_passages(ctx), "passage_id")
    query_of = _texts(read_queries(ctx, "train"), "query_id")
    # Grades of earlier iterations count too, because the current model may no longer retrieve the passage.
    judgments = [read_judgments(ctx, i) for i in range(1, ctx.iteration + 1)]
    relevant = passages_by_query(read_qrels(ctx), *(each.filter(pc.field("grade") >= RELEVANT) for each in judgments))

    @cache
    def shingles(passage_id: str) -> Shingles:
        return mining.shingles(text_of[passage_id])

    def is_duplicate(a: str, b: str) -> bool:
        return mining.near_duplicates(shingles(a), shingles(b))

    judged = _join_grades(read_candidates(ctx, ctx.iteration), judgments[-1])
    ctx.progress.begin(len(judged), "queries mined")
    examples, reasons = mining.mine(judged, relevant, spec, ctx.spec.seed, is_duplicate)
    ctx.progress.advance(len(judged))
    groups = mining.group_neighbours(examples, dict(judged), spec.neighbours)
    rows = [
        {**_row(example, query_of, text_of), "iteration": ctx.iteration, "group": f"{ctx.iteration}-{group}"}
        for example, group in zip(examples, groups, strict=True)
    ]
    schema = tables.examples(spec.num_negatives)
    output = protect_near_duplicates(_accumulated(ctx, rows, relevant) + rows, shingles)
    total = tables.write(ctx.output(f"iterations/{ctx.iteration}/examples.parquet"), output, schema)
    if not total:
        why = ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common())
        raise UserError(
            f"mining found no example in {len(judged)} queries ({why}). "
            "Lower mine.positive_grade, use another mine.rule, or raise retrieve.range_max."
        )
    kinds = Counter(example.kind for example in examples)
    hard = [example for example in examples if example.kind == "hard"]
    if not kinds["easy"]:
        ctx.progress.message(
            "warning: there is no easy example; training on hard examples alone can invert the model's ranking"
        )
    return {
        "queries": len(judged),
        "hard": kinds["hard"],
        "easy": kinds["easy"],
        "accumulated": total - len(rows),
        "hard_positives": len({(example.query_id, example.positive.passage_id) for example in hard}),
        "hard_negatives": len(
            {
                (example.query_id, negative.passage_id)
                for example in hard
                for negative in example.negatives
                if negative.rank < example.positive.rank
            }
        ),
        "examples": total,
        "queries_without_examples": dict(reasons.most_common()),
    }


def _texts(table: pa.Table, key: str) -> dict[str, str]:
    return dict(zip(table[key].to_pylist(), table["text"].to_pylist(), strict=True))


def _join_grades(candidates: pa.Table, judgments: pa.Table) -> list[tuple[str, list[Candidate]]]:
    """Each query with its candidates and their grades, if judged, in the order of ``candidates``."""
    grades = {(row["query_id"], row["passage_id"]): (row["grade"], row["expected"]) for row in judgments.to_pylist()}
    ungraded = (None, None)
    return [
        (
            query,
            [
                Candidate(
                    row["passage_id"], row["rank"], row["score"], *grades.get((query, row["passage_id"]), ungraded)
                )
                for row in rows
            ],
        )
        for query, rows in groupby(candidates.to_pylist(), key=lambda row: row["query_id"])
    ]


def _row(example: Example, query_of: dict[str, str], text_of: dict[str, str]) -> dict[str, Any]:
    negatives = {f"negative_{i}": text_of[c.passage_id] for i, c in enumerate(example.negatives, 1)}
    return {
        "query_id": example.query_id,
        "positive_id": example.positive.passage_id,
        "negative_ids": [c.passage_id for c in example.negatives],
        "relevant_ids": sorted(example.relevant),
        "kind": example.kind,
        "anchor": query_of[example.query_id],
        "positive": text_of[example.positive.passage_id],
        **negatives,
        "label": [c.expected for c in (example.positive, *example.negatives)],
    }


def _accumulated(ctx: StepContext, new: list[dict[str, Any]], relevant: dict[str, set[str]]) -> list[dict[str, Any]]:
    """The examples of earlier iterations that are not in ``new``, with the currently known ``relevant`` passages."""
    if ctx.iteration == 1 or not ctx.spec.mine.accumulate:
        return []

    def identity(row: dict[str, Any]) -> tuple[str, str, tuple[str, ...]]:
        return row["query_id"], row["positive_id"], tuple(row["negative_ids"])

    key = f"iterations/{ctx.iteration - 1}/examples.parquet"
    earlier = tables.read(ctx.input(key), tables.examples(ctx.spec.mine.num_negatives)).to_pylist()
    repeated = {identity(row) for row in new}
    return [
        {**row, "relevant_ids": sorted(relevant[row["query_id"]])} for row in earlier if identity(row) not in repeated
    ]


def protect_near_duplicates(
    rows: Sequence[dict[str, Any]], shingles: Callable[[str], Shingles]
) -> list[dict[str, Any]]:
    """Add near-duplicates of relevant passages to ``relevant_ids``, so that rows with them do not share a batch.

    In a batch, the passages of the other rows are negatives. A row whose own negative turns out to be relevant is
    dropped.
    """
    passages = {passage for row in rows for passage in (row["positive_id"], *row["negative_ids"])}
    relevant = {passage for row in rows for passage in row["relevant_ids"]}
    duplicates = mining.find_near_duplicates(relevant, passages, shingles)
    widened = [
        {**row, "relevant_ids": sorted({*row["relevant_ids"]}.union(*(duplicates[c] for c in row["relevant_ids"])))}
        for row in rows
    ]
    return [row for row in widened if set(row["relevant_ids"]).isdisjoint(row["negative_ids"])]
