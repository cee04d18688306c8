"""evaluate: chooses the model by its validation scores, scores it once on test, and writes the report."""

import json
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pyrite import tables
from pyrite.embedding import models
from pyrite.embedding.asymmetric import save_query_encoder
from pyrite.evaluation.clusters import Clusters, by_group
from pyrite.evaluation.selection import (
    BASE,
    Candidate,
    Choice,
    LossLimit,
    choose,
    model_name,
    parse_model_name,
    score_of,
)
from pyrite.report import model_card
from pyrite.report.assessment import Assessment
from pyrite.report.data import ReportInputs, build
from pyrite.report.judging import SUMMARIZED, known_answers_of_training, summarize_judgments
from pyrite.report.pages import report_page
from pyrite.report.provenance import CorpusFacts
from pyrite.report.queries import shown_passages
from pyrite.report.references import BASE_BARE, BM25, CHOSEN_BARE, REFERENCES
from pyrite.splitting import affected_queries
from pyrite.stages.context import StepContext
from pyrite.stages.found import read_found
from pyrite.stages.inputs import (
    encoder_for,
    float32_encoder,
    model_folder,
    passage_texts,
    read_candidate_rankings,
    read_judgment_parts,
    read_passage_ids,
    read_passage_parts,
    read_passages_with,
    read_qrels,
    read_queries,
    resaved_base,
)
from pyrite.stages.scoring import RESCORED, Corpus, score_bm25, score_judged, score_retention, score_split
from pyrite.stages.smaller import sample_queries, score_smaller


def run(ctx: StepContext) -> dict[str, Any]:
    """Write model/, report/report.html, report/report.json and the test metrics; return the choice and its scores."""
    iterations = range(1, ctx.spec.iterations + 1)
    passages, queries, qrels = read_passage_ids(ctx), read_queries(ctx), read_qrels(ctx)
    corpus = Corpus(passages["passage_id"].combine_chunks(), passage_texts(ctx))
    val = pa.concat_tables(
        [tables.read(ctx.input(f"iterations/{i}/metrics/val.parquet"), tables.PER_QUERY) for i in (0, *iterations)]
    )
    clusters = by_group(queries)
    retention = _read_retention(ctx)
    judgments, judged_val = _read_assessment(ctx)
    choice = _choose(ctx, judged_val if ctx.spec.chooses_by_judge else val, retention, clusters)
    chosen = ctx.output_folder("model")
    _export_model(ctx, choice.name, chosen)

    rows: list[dict[str, Any]] = []
    num_test = pc.sum(pc.equal(queries["split"], "test")).as_py()
    ranked: list[pa.Table] = []
    reported: list[dict[str, Any]] = []
    for name in dict.fromkeys([BASE, *(model_name(i) for i in iterations), choice.name]):
        iteration, weight = parse_model_name(name)
        folder = chosen if name == choice.name else model_folder(ctx, iteration)
        ctx.progress.message(f"scoring {name} on test")
        encoder = encoder_for(ctx, folder)
        top = read_found(ctx, iteration, "test", num_test, min(RESCORED, len(corpus.ids))) if weight in (0, 1) else None
        rankings, scored = score_split(
            encoder, name, "test", corpus, queries, qrels, ctx.progress, float32_encoder(ctx, folder), top
        )
        rows += scored
        ranked.append(rankings)
        for path in ctx.spec.evaluate.retention.report if ctx.spec.evaluate.retention else ():
            reported += score_retention(encoder, name, path, ctx.progress)
    test = pa.Table.from_pylist(rows, tables.PER_QUERY)
    rankings = pa.concat_tables(ranked).cast(tables.RANKINGS)
    tables.write(ctx.output("report/test.parquet"), test, tables.PER_QUERY)
    tables.write(ctx.output("report/rankings.parquet"), rankings, tables.RANKINGS)
    retention = pa.concat_tables([retention, pa.Table.from_pylist(reported, tables.RETENTION)])
    tables.write(ctx.output("report/retention.parquet"), retention, tables.RETENTION)

    lengths, has_context = _measure(ctx)
    bare = corpus._replace(texts=passage_texts(ctx, context=False)) if has_context else None
    references = _score_references(ctx, choice.name, chosen, corpus, bare, queries, qrels)
    tables.write(ctx.output("report/references.parquet"), references, tables.PER_QUERY)

    smaller = _score_smaller(ctx, choice.name, chosen, corpus, queries, qrels)
    tables.write(ctx.output("report/smaller.parquet"), smaller, tables.SMALLER)

    judged = summarize_judgments(_judgments(ctx), known_answers_of_training(queries, qrels))
    assessment = None
    if ctx.spec.evaluate.judge:
        summary, judged_test = ctx.manifests["assess"]["summary"], score_judged(rankings, judgments)
        tables.write(ctx.output("report/judged.parquet"), pa.concat_tables([judged_val, judged_test]), tables.PER_QUERY)
        assessment = Assessment(summary, judgments, judged_val, judged_test)
    report = build(
        ReportInputs(
            spec=ctx.spec,
            manifests={name: dict(manifest) for name, manifest in ctx.manifests.items() if name != ctx.step.name},
            corpus=CorpusFacts.of(corpus.ids, lengths),
            passages=read_passages_with(ctx, shown_passages(rankings, qrels)),
            affected=affected_queries(passages, queries, qrels)["test"],
            queries=queries,
            qrels=qrels,
            val=val,
            test=test,
            references=references,
            smaller=smaller,
            rankings=rankings,
            judged=judged,
            choice=choice,
            retention=retention,
            clusters=clusters,
            assessment=assessment,
        )
    )
    ctx.output("report/report.json").write_text(json.dumps(report, indent=1, allow_nan=False))
    ctx.output("report/report.html").write_text(report_page(report), encoding="utf-8")
    judges = set().union(*(each.judges for each in judged.values()))
    model_card.write(chosen, report, ctx.spec, queries, judges, encoder_for(ctx, chosen).model, model_folder(ctx, 0))
    return {
        "chosen": choice.name,
        "reasons": choice.reasons,
        "test": report["judged"]["means"] if ctx.spec.chooses_by_judge else report["means"]["test"],
        "passed": report["gate"]["passed"],
    }


def _read_assessment(ctx: StepContext) -> tuple[pa.Table, pa.Table]:
    """The JUDGMENTS of evaluate.judge, and all candidates' PER_QUERY on validation by them; empty without it."""
    if not ctx.spec.evaluate.judge:
        return tables.JUDGMENTS.empty_table(), tables.PER_QUERY.empty_table()
    judgments = tables.read(ctx.input("assessment/judgments.parquet"), tables.JUDGMENTS)
    rankings = read_candidate_rankings(ctx)
    return judgments, score_judged(rankings.filter(pc.equal(rankings["split"], "val")), judgments)


def _measure(ctx: StepContext) -> tuple[npt.NDArray[np.int32], bool]:
    """The number of characters of each passage, and whether any passage has a context."""
    lengths, has_context = [np.empty(0, np.int32)], False
    for part in read_passage_parts(ctx, pa.schema([tables.PASSAGES.field(name) for name in ("context", "text")])):
        lengths.append(pc.utf8_length(part["text"]).to_numpy())
        has_context = has_context or bool(pc.any(pc.not_equal(part["context"], "")).as_py())
    return np.concatenate(lengths), has_context


def _judgments(ctx: StepContext) -> Iterator[dict[int, Iterator[pa.Table]]]:
    """The judgments of each shard by iteration, in parts."""
    for shard in range(ctx.spec.judge.shards):
        yield {i: read_judgment_parts(ctx, i, shard, SUMMARIZED) for i in range(1, ctx.spec.iterations + 1)}


def _score_references(
    ctx: StepContext,
    name: str,
    chosen: Path,
    corpus: Corpus,
    bare: Corpus | None,
    queries: pa.Table,
    qrels: pa.Table,
) -> pa.Table:
    """PER_QUERY table of the reference rows on test: BM25, and base and chosen model without context.

    ``bare``: the corpus without context; None if no passage has any.
    """
    ctx.progress.message("scoring BM25 on test")
    rows = score_bm25(BM25, "test", corpus, queries, qrels)[1]
    for row, folder in ((BASE_BARE, model_folder(ctx, 0)), (CHOSEN_BARE, chosen)):
        if bare is None or (row == CHOSEN_BARE and name == BASE):
            continue
        ctx.progress.message(f"scoring {REFERENCES[row]} on test")
        encoder, rescorer = encoder_for(ctx, folder), float32_encoder(ctx, folder)
        rows += score_split(encoder, row, "test", bare, queries, qrels, ctx.progress, rescorer)[1]
    return pa.Table.from_pylist(rows, tables.PER_QUERY)


def _score_smaller(
    ctx: StepContext, name: str, chosen: Path, corpus: Corpus, queries: pa.Table, qrels: pa.Table
) -> pa.Table:
    """SMALLER of the base model and the chosen model; empty without evaluate.smaller."""
    rows: list[dict[str, Any]] = []
    if not ctx.spec.evaluate.smaller:
        return tables.SMALLER.empty_table()
    sampled = sample_queries(queries, ctx.spec.seed)
    for model, folder in {BASE: model_folder(ctx, 0), **({} if name == BASE else {name: chosen})}.items():
        ctx.progress.message(f"scoring smaller embeddings of {model} on test")
        encoder = encoder_for(ctx, folder)
        rows += score_smaller(encoder, model, corpus, sampled, qrels, ctx.spec.finetune.matryoshka, ctx.progress)
    return pa.Table.from_pylist(rows, tables.SMALLER)


def _read_retention(ctx: StepContext) -> pa.Table:
    """RETENTION table of all candidates on the set that the choice depends on; empty without such a set."""
    files = [f"iterations/{i}/metrics/retention.parquet" for i in range(ctx.spec.iterations + 1)]
    found = files if ctx.spec.evaluate.retention else []
    return pa.concat_tables(
        [tables.RETENTION.empty_table(), *(tables.read(ctx.input(key), tables.RETENTION) for key in found)]
    )


def _choose(ctx: StepContext, val: pa.Table, retention: pa.Table, clusters: Clusters) -> Choice:
    metrics: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in val.to_pylist():
        metrics[row["model"]][row["query_id"]][row["metric"]] = row["value"]
    losses: dict[str, dict[str, float]] = defaultdict(dict)
    for row in retention.to_pylist():
        losses[row["model"]][row["query_id"]] = row["value"]
    candidates = []
    for name, by_query in metrics.items():
        iteration, weight = parse_model_name(name)
        scores = np.array([score_of(by_query[query]) for query in sorted(by_query)])
        values = np.array([losses[name][query] for query in sorted(losses[name])]) if name in losses else None
        candidates.append(Candidate(name, iteration, weight, scores, values))
    validated = sorted(next(iter(metrics.values())))
    return choose(candidates, LossLimit.of(ctx.spec), [clusters[query] for query in validated])


def _export_model(ctx: StepContext, name: str, folder: Path) -> None:
    """Write the model ``name`` (base, an iteration, or a blend) to ``folder``.

    With finetune.train query, a tuned model has two encoders: its own for queries, and the base model for passages.
    """
    iteration, weight = parse_model_name(name)
    if iteration and ctx.spec.finetune.train == "query":
        query = model_folder(ctx, iteration)
        if weight < 1:
            query = ctx.scratch / "query-encoder"
            models.blend(resaved_base(ctx), model_folder(ctx, iteration), weight, query)
        save_query_encoder(query, model_folder(ctx, 0), ctx.spec.model, folder)
    elif iteration == 0:
        models.export_base(model_folder(ctx, 0), ctx.spec.model, folder)
    elif weight < 1:
        models.blend(resaved_base(ctx), model_folder(ctx, iteration), weight, folder)
    else:
        shutil.copytree(model_folder(ctx, iteration), folder, dirs_exist_ok=True)
