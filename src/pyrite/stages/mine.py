"""mine: turns judged candidates into training examples, and with mine.accumulate adds those of earlier iterations."""

from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pyrite import tables
from pyrite.errors import UserError
from pyrite.generation.filters import content_words
from pyrite.judges.base import GRADES, RELEVANT
from pyrite.spec import MineSpec
from pyrite.splitting import draw
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
from pyrite.training.title_pairs import MAX_PASSAGES, TITLE, TitledPassage, title_pairs


def run(ctx: StepContext) -> dict[str, Any]:
    """Write iterations/<i>/examples.parquet; return the counts of examples, and of queries without any by reason."""
    spec = ctx.spec.mine
    passages, all_queries = read_passages(ctx), read_queries(ctx)
    queries = all_queries.filter(pc.equal(all_queries["split"], "train"))
    passage_ids = passages["passage_id"].to_pylist()
    text_of = dict(zip(passage_ids, passages["text"].to_pylist(), strict=True))
    passage_of = dict(zip(passage_ids, tables.in_context(passages), strict=True))
    query_of = dict(zip(queries["query_id"].to_pylist(), queries["text"].to_pylist(), strict=True))
    # Grades of earlier iterations count too, because the current model may no longer retrieve the passage.
    judgments = [read_judgments(ctx, i) for i in range(1, ctx.iteration + 1)]
    qrels = read_qrels(ctx)
    relevant = passages_by_query(qrels, *(each.filter(pc.field("grade") >= RELEVANT) for each in judgments))

    shingles = mining.shingles_by_id(passages)
    judged = _join_grades(read_candidates(ctx, ctx.iteration), judgments[-1], passages_by_query(qrels))
    ctx.progress.begin(len(judged), "queries mined")
    examples, reasons = mining.mine(
        judged,
        relevant,
        spec,
        ctx.spec.seed,
        mining.duplicate_check(shingles),
        stratified=ctx.spec.stratifies_negatives,
    )
    ctx.progress.advance(len(judged))
    groups = mining.group_neighbours(examples, dict(judged), spec.neighbours)
    rows = [
        {**_row(example, query_of, passage_of, spec), "iteration": ctx.iteration, "group": f"{ctx.iteration}-{group}"}
        for example, group in zip(examples, groups, strict=True)
    ]
    titles, about_titles = _title_pairs(ctx, passages, all_queries, relevant, text_of)
    schema = tables.examples(spec.num_negatives)
    output = protect_near_duplicates(_accumulated(ctx, rows, relevant) + rows + titles, shingles)
    total = tables.write(ctx.output(f"iterations/{ctx.iteration}/examples.parquet"), output, schema)
    types = Counter(TITLE if row["kind"] == TITLE else row["iteration"] for row in output)
    if total == types[TITLE]:
        why = ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common())
        raise UserError(
            f"mining found no example in {len(judged)} queries ({why}). "
            "Lower mine.positive_grade, use another mine.rule, or raise retrieve.range_max."
        )
    kinds = Counter(example.kind for example in examples)
    hard = [example for example in examples if example.kind == "hard"]
    known = sum(example.positive.known for example in examples)
    if not kinds["easy"]:
        ctx.progress.message(
            "warning: there is no easy example; training on hard examples alone can invert the model's ranking"
        )
    return {
        "queries": len(judged),
        "hard": kinds["hard"],
        "easy": kinds["easy"],
        # Of hard examples, some negative outranks the positive; of outranked ones, a negative that was chosen.
        "outranked": sum(example.outranked for example in examples),
        "known_positives": known,
        "judged_positives": len(examples) - known,
        "accumulated": total - types[ctx.iteration] - types[TITLE],
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
        **({"title_pairs": types[TITLE], **about_titles} if spec.title_pairs else {}),
        "queries_without_examples": dict(reasons.most_common()),
    }


def _join_grades(
    candidates: pa.Table, judgments: pa.Table, known: Mapping[str, Container[str]]
) -> list[tuple[str, list[Candidate]]]:
    """Each query with its candidates and their grades, if judged, in the order of ``candidates``.

    Args:
        known: the known answers of each query.
    """
    grades = {(row["query_id"], row["passage_id"]): (row["grade"], row["expected"]) for row in judgments.to_pylist()}
    ungraded = (None, None)
    return [
        (
            query,
            [
                Candidate(
                    row["passage_id"],
                    row["rank"],
                    row["score"],
                    *grades.get((query, row["passage_id"]), ungraded),
                    row["passage_id"] in known.get(query, ()),
                )
                for row in rows
            ],
        )
        for query, rows in groupby(candidates.to_pylist(), key=lambda row: row["query_id"])
    ]


def _row(example: Example, query_of: dict[str, str], passage_of: dict[str, str], spec: MineSpec) -> dict[str, Any]:
    negatives = {f"negative_{i}": passage_of[c.passage_id] for i, c in enumerate(example.negatives, 1)}
    return {
        "query_id": example.query_id,
        "positive_id": example.positive.passage_id,
        "negative_ids": [c.passage_id for c in example.negatives],
        "relevant_ids": sorted(example.relevant),
        "kind": example.kind,
        "anchor": query_of[example.query_id],
        "positive": passage_of[example.positive.passage_id],
        **negatives,
        "label": [mining.target_grade(c, spec) for c in (example.positive, *example.negatives)],
    }


def _accumulated(ctx: StepContext, new: list[dict[str, Any]], relevant: dict[str, set[str]]) -> list[dict[str, Any]]:
    """The examples of earlier iterations that are not in ``new``, with the currently known ``relevant`` passages.

    Without title pairs, which are drawn in each iteration.
    """
    if ctx.iteration == 1 or not ctx.spec.mine.accumulate:
        return []

    def identity(row: dict[str, Any]) -> tuple[str, str, tuple[str, ...]]:
        return row["query_id"], row["positive_id"], tuple(row["negative_ids"])

    key = f"iterations/{ctx.iteration - 1}/examples.parquet"
    earlier = tables.read(ctx.input(key), tables.examples(ctx.spec.mine.num_negatives)).to_pylist()
    repeated = {identity(row) for row in new}
    return [
        {**row, "relevant_ids": sorted(relevant[row["query_id"]])}
        for row in earlier
        if row["kind"] != TITLE and identity(row) not in repeated
    ]


def _title_pairs(
    ctx: StepContext, passages: pa.Table, queries: pa.Table, relevant: dict[str, set[str]], text_of: dict[str, str]
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The rows of mine.title_pairs, from passages of all splits, and how many a held-out query excludes.

    Raises:
        UserError: mine.title_pairs is set, but no pair can be made.
    """
    spec = ctx.spec.mine
    if not spec.title_pairs:
        return [], {}
    is_train = pc.equal(queries["split"], "train")
    held_out = {content_words(text) for text in queries.filter(pc.invert(is_train))["text"].to_pylist()}
    columns = (passages[name].to_pylist() for name in ("passage_id", "title", "context"))
    parents = pc.list_value_length(passages["parents"]).to_pylist()
    titled = [
        TitledPassage(passage, title or "", bool(context) and (count or 0) <= 1)
        for passage, title, context, count in zip(*columns, parents, strict=True)
    ]
    pairs, dropped = title_pairs(
        titled,
        spec.title_pairs,
        spec.num_negatives,
        lambda title: content_words(title) in held_out,
        relevant,
        lambda passage: draw(ctx.spec.seed, f"{ctx.iteration} {passage}"),
    )
    if not pairs:
        usable = sum(passage.names_subject for passage in titled)
        raise UserError(
            f"mine.title_pairs is {spec.title_pairs}, but there is no pair: {usable} of {len(titled)} passages have "
            f"one title that they do not start with, and the titles of {dropped} of these are held-out questions. At "
            f"least {spec.num_negatives + 1} titles with at most {MAX_PASSAGES} passages each are needed. Set "
            "mine.title_pairs to 0, or add titles to the source."
        )
    rows = [
        {
            "query_id": pair.query_id,
            "positive_id": pair.positive,
            "negative_ids": list(pair.negatives),
            "relevant_ids": sorted(pair.relevant),
            "kind": TITLE,
            "anchor": pair.title,
            "positive": text_of[pair.positive],
            **{f"negative_{i}": text_of[passage] for i, passage in enumerate(pair.negatives, 1)},
            "label": [float(max(GRADES)), *[float(min(GRADES))] * len(pair.negatives)],
            "iteration": ctx.iteration,
            "group": f"{ctx.iteration}-{TITLE}-{number}",
        }
        for number, pair in enumerate(pairs)
    ]
    return rows, {"title_pairs_of_held_out_queries": dropped}


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
