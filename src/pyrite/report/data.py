"""The content of the report as plain JSON values, written to ``report.json``. The page only renders it."""

import hashlib
import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pyrite import tables
from pyrite.evaluation.clusters import Clusters
from pyrite.evaluation.scoring import METRICS
from pyrite.evaluation.selection import (
    BASE,
    SELECTION_METRICS,
    Choice,
    model_name,
    parse_model_name,
    score_of,
)
from pyrite.judges.base import GRADES
from pyrite.report import assessment, formatting, judging, leaks, provenance, queries, references, retention, smaller
from pyrite.report.assessment import Assessment
from pyrite.report.judging import Judged
from pyrite.report.provenance import CorpusFacts
from pyrite.report.queries import PerQuery, as_json, compare_by_query
from pyrite.spec import RunSpec

#: Version of report.json. Increase it when a key is renamed, removed or gets another meaning.
FORMAT = 3


@dataclass(frozen=True, eq=False)
class ReportInputs:
    """The results of a finished run.

    Attributes:
        spec: the run's settings.
        manifests: manifest of every finished step by step name (``prepare``, ``judge-1.0``, ...), with the keys step,
            started, finished (ISO 8601, UTC), seconds, summary, versions, machine, outputs.
        corpus: facts about all passages.
        passages: ids, contexts and texts of the passages that the report may show (``queries.shown_passages``).
        affected: test queries whose answer a model could have seen in training (``splitting.affected_queries``).
        queries, qrels: QUERIES and QRELS tables.
        val, test: PER_QUERY tables. ``val`` has every candidate; ``test`` has the base model, every iteration and the
            chosen model.
        references: PER_QUERY table of the reference rows on test (``report.references``).
        smaller: SMALLER table of the base model and the chosen model.
        rankings: RANKINGS table on test, the first 10 ranks.
        judged: the judgments by iteration (from 1), in numbers.
        choice: the chosen model, and a reason for every candidate.
        retention: RETENTION table. The set that the choice depends on has every candidate; the sets that are only
            reported have the models of ``test``. Empty without a retention set.
        clusters: the cluster of each query, for intervals and tests. A query that is not in it is its own cluster.
        assessment: the grades of evaluate.judge; None if the run has no such judge.
    """

    spec: RunSpec
    manifests: dict[str, dict[str, Any]]
    corpus: CorpusFacts
    passages: pa.Table
    affected: Collection[str]
    queries: pa.Table
    qrels: pa.Table
    val: pa.Table
    test: pa.Table
    references: pa.Table
    smaller: pa.Table
    rankings: pa.Table
    judged: dict[int, Judged]
    choice: Choice
    retention: pa.Table = field(default_factory=tables.RETENTION.empty_table)
    clusters: Clusters = field(default_factory=dict)
    assessment: Assessment | None = None


def build(inputs: ReportInputs) -> dict[str, Any]:
    """The report as JSON values without NaN. The same inputs give the same report."""
    spec, chosen = inputs.spec, inputs.choice.name
    val, test = _nested(inputs.val), _nested(inputs.test)
    models = sorted(test, key=parse_model_name)
    comparisons = {
        model: {metric: _compare(test[BASE][metric], test[model][metric], spec, inputs.clusters) for metric in METRICS}
        for model in models
        if model != BASE
    }
    judged, decisive_val = None, val
    if inputs.assessment:
        judged_test = _nested(inputs.assessment.test)
        judged = assessment.build(spec, inputs.assessment, judged_test, inputs.rankings, inputs.clusters)
        decisive_val = _nested(inputs.assessment.val) if judged["chooses"] else val
    compared = chosen if chosen != BASE else _best_tuned(decisive_val, models)
    ids = sorted(test[BASE]["mrr@5"])
    report: dict[str, Any] = {
        "format": FORMAT,
        "name": spec.name,
        "domain": spec.domain,
        "base_model": spec.model.base,
        "seed": spec.seed,
        "resamples": spec.evaluate.resamples,
        "chosen": chosen,
        "compared": compared,
        "max_loss": spec.evaluate.retention.max_loss if spec.evaluate.retention else None,
        "blends_searched": spec.evaluate.searches_blend,
        "blends_set": spec.evaluate.blends,
        "retention_sets": retention.rows(inputs.retention, spec, compared),
        "models": models,
        "means": {"val": _means(val), "test": _means(test)},
        "comparisons": comparisons,
        "judged": judged,
        "gate": _gate(spec, (judged["comparisons"] if judged and judged["chooses"] else comparisons).get(chosen)),
        "candidates": _candidates(inputs, decisive_val),
        "blends_not_scored": retention.blends_not_scored(spec, inputs.manifests, inputs.choice.reasons),
        "learning_curve": _learning_curve(spec.iterations, val, test),
        "mining": _mining(inputs),
        "judging": judging.judging(spec, inputs.manifests),
        "known_answers": judging.known_answers(spec, inputs.judged, inputs.queries, inputs.qrels),
        "judging_timeline": judging.timeline(spec.iterations, inputs.manifests, inputs.judged),
        "loss": _loss(inputs),
        "rank_changes": queries.rank_changes(inputs.rankings, inputs.qrels, ids, compared),
        "query_types": queries.by_type(
            inputs.queries, test, compared, spec.evaluate.resamples, spec.seed, inputs.clusters
        ),
        **queries.extremes(inputs.rankings, inputs.qrels, inputs.queries, inputs.passages, test, compared),
        "test": _test_set(inputs, ids),
        "references": references.rows(
            _nested(inputs.references), test[chosen], spec.evaluate.resamples, spec.seed, inputs.clusters
        ),
        "smaller": smaller.build(inputs.smaller, spec, inputs.clusters),
        "unaffected": leaks.without(inputs.affected, test),
        "data": provenance.dataset(inputs.manifests, inputs.corpus, inputs.queries, inputs.qrels),
        "settings": provenance.settings(spec),
        "steps": provenance.steps(inputs.manifests),
        "versions": provenance.merged(inputs.manifests, "versions"),
        "machine": provenance.merged(inputs.manifests, "machine"),
        "per_query": test,
        "per_query_val": {chosen: {metric: val[chosen][metric] for metric in SELECTION_METRICS}},
        "clusters": {query: inputs.clusters.get(query, query) for query in sorted({*ids, *val[chosen]["mrr@5"]})},
    }
    report["verdict"] = formatting.verdict(report)
    return report


def _nested(table: pa.Table) -> PerQuery:
    nested: PerQuery = {}
    columns = (table.column(name).to_pylist() for name in ("model", "metric", "query_id", "value"))
    for model, metric, query, value in sorted(zip(*columns, strict=True)):
        nested.setdefault(model, {}).setdefault(metric, {})[query] = value
    return nested


def _means(values: PerQuery) -> dict[str, dict[str, float]]:
    return {
        model: {metric: float(np.mean(list(by_query.values()))) for metric, by_query in metrics.items()}
        for model, metrics in values.items()
    }


def _compare(base: dict[str, float], other: dict[str, float], spec: RunSpec, clusters: Clusters) -> dict[str, Any]:
    return as_json(compare_by_query(base, other, spec.evaluate.resamples, spec.seed, clusters))


def _best_tuned(val: PerQuery, models: list[str]) -> str:
    """The model shown if the base model is chosen: the best tuned model on val among those scored on test."""
    means = _means(val)
    tuned = [model for model in models if model != BASE and model in means]
    return max(tuned, key=lambda model: score_of(means[model]), default=BASE)


def _gate(spec: RunSpec, chosen: dict[str, Any] | None) -> dict[str, Any]:
    """The gate and its checks. ``chosen`` has the comparisons of the chosen model, None if that is the base model."""
    gate = spec.evaluate.gate
    required = {"mrr@5": gate.mrr, "dcg@5": gate.dcg}
    checks: list[dict[str, Any]] = []
    for metric, gain in required.items():
        observed = 0.0
        if chosen:
            compared = chosen[metric]
            observed = compared["relative"] if gate.bound == "point" else compared["relative_interval"]["low"]
        met = observed is not None and observed >= gain
        checks.append({"kind": "gain", "metric": metric, "required": gain, "observed": observed, "met": met})
    if chosen:
        p_value = chosen["mrr@5"]["p_value"]
        met = p_value <= gate.p_value
        checks.append({"kind": "p", "metric": "mrr@5", "required": gate.p_value, "observed": p_value, "met": met})
    passed = chosen is not None and all(check["met"] for check in checks)
    return {
        "required": required,
        "bound": gate.bound,
        "p_value": gate.p_value,
        "checks": checks,
        "passed": passed,
    }


def _candidates(inputs: ReportInputs, val: PerQuery) -> list[dict[str, Any]]:
    scores = {name: score_of(metrics) for name, metrics in _means(val).items()}
    forgetting = retention.candidates(inputs.retention, inputs.spec)
    rows = []
    for name in sorted(inputs.choice.reasons, key=parse_model_name):
        iteration, weight = parse_model_name(name)
        value = scores.get(name)
        rows.append(
            {
                "name": name,
                "iteration": iteration,
                "weight": weight,
                "val": value,
                "val_change": _change(value, scores.get(BASE)),
                **forgetting.get(name, dict.fromkeys(("retention", "retention_change", "retention_bound"))),
                "chosen": name == inputs.choice.name,
                "reason": inputs.choice.reasons[name],
            }
        )
    return rows


def _change(value: float | None, base: float | None) -> float | None:
    return value / base - 1 if value is not None and base else None


def _learning_curve(iterations: int, val: PerQuery, test: PerQuery) -> list[dict[str, Any]]:
    means = {"val": _means(val), "test": _means(test)}
    names = [model_name(iteration) for iteration in range(iterations + 1)]
    return [
        {"iteration": iteration, "model": name, **{split: means[split].get(name) for split in means}}
        for iteration, name in enumerate(names)
        if name in val or name in test
    ]


def _mining(inputs: ReportInputs) -> list[dict[str, Any]]:
    """Per iteration: the model that ranked, candidates, judgments, their grades, and the numbers of the mine step."""
    rows = []
    for iteration, judged in sorted(inputs.judged.items()):
        retrieved, mined = (
            inputs.manifests.get(f"{stage}-{iteration}", {}).get("summary") or {} for stage in ("retrieve", "mine")
        )
        rows.append(
            {
                "iteration": iteration,
                "model": retrieved.get("model"),
                "candidates": retrieved.get("candidates"),
                "judgments": int(judged.grades.sum()),
                "grades": {str(grade): int(count) for grade, count in zip(GRADES, judged.grades, strict=True)},
                "mined": provenance.numbers(mined),
            }
        )
    return rows


def _loss(inputs: ReportInputs) -> list[dict[str, Any]]:
    """Per iteration, the training loss as [step, loss] pairs."""
    rows = []
    for iteration in range(1, inputs.spec.iterations + 1):
        summary = inputs.manifests.get(f"finetune-{iteration}", {}).get("summary") or {}
        points = [[step, loss] for step, loss in summary.get("history", []) if math.isfinite(loss)]
        if points or summary:
            rows.append(
                {
                    "iteration": iteration,
                    "examples": summary.get("examples"),
                    "steps": summary.get("steps"),
                    "points": points,
                }
            )
    return rows


def _test_set(inputs: ReportInputs, ids: list[str]) -> dict[str, Any]:
    """Size and digests of the test set. Two reports are fully comparable if theirs are equal.

    ``effective_clusters``: the number of equal clusters that are as informative (Kish, Survey Sampling, 1965).
    """
    wanted, sizes = set(ids), Counter(inputs.clusters.get(query, query) for query in ids)
    columns = (inputs.qrels.column(name).to_pylist() for name in ("query_id", "passage_id", "grade"))
    relevant = sorted(row for row in zip(*columns, strict=True) if row[0] in wanted)
    return {
        "queries": len(ids),
        "clusters": len(sizes),
        "effective_clusters": round(len(ids) ** 2 / sum(size**2 for size in sizes.values())),
        "relevant": len(relevant),
        "qrels_sha256": _digest(repr(row) for row in relevant),
        "corpus_sha256": inputs.corpus.sha256,
    }


def _digest(lines: Any) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()
