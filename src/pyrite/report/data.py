"""Everything the report says, as plain JSON values: ``report.json``. The page only lays it out."""

import hashlib
import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pyrite.evaluation.scoring import METRICS
from pyrite.evaluation.selection import BASE, Choice, model_name, parse_model_name, score_of
from pyrite.evaluation.significance import Comparison, compare
from pyrite.report import bookkeeping, formatting, queries
from pyrite.report.course import course
from pyrite.report.judging import judging
from pyrite.spec import RunSpec

#: Raised whenever a reader of an older report.json could be misled.
FORMAT = 1

#: ``{model: {metric: {query id: value}}}``
PerQuery = dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True, eq=False)
class ReportInputs:
    """What a finished run leaves behind.

    Attributes:
        spec: the run's description.
        manifests: manifest of every finished step by the step's name (``prepare``, ``judge-1.0``, ...), with
            the
            keys step, started, finished (ISO 8601, UTC), seconds, summary, versions, machine, outputs.
        passages, queries, qrels: PASSAGES, QUERIES and QRELS tables.
        val, test: PER_QUERY tables; val of every candidate, test of the base, every iteration and the chosen.
        rankings: RANKINGS table on test, the first 10 ranks.
        candidates, judgments: CANDIDATES and JUDGMENTS tables by iteration (from 1).
        choice: which model is handed over, and why.
        retention: nDCG@10 on the retention set by model name; empty where the run has none.
    """

    spec: RunSpec
    manifests: dict[str, dict[str, Any]]
    passages: pa.Table
    queries: pa.Table
    qrels: pa.Table
    val: pa.Table
    test: pa.Table
    rankings: pa.Table
    candidates: dict[int, pa.Table]
    judgments: dict[int, pa.Table]
    choice: Choice
    retention: dict[str, float] = field(default_factory=dict)


def build(inputs: ReportInputs) -> dict[str, Any]:
    """The report as JSON values: no NaN, no tables, the same for the same inputs."""
    spec, chosen = inputs.spec, inputs.choice.name
    val, test = _nested(inputs.val), _nested(inputs.test)
    models = sorted(test, key=parse_model_name)
    comparisons = {
        model: {metric: _compare(test, model, metric, spec) for metric in METRICS} for model in models if model != BASE
    }
    compared = chosen if chosen != BASE else _best_tuned(val, models)
    ids, prepare = sorted(test[BASE]["mrr@5"]), inputs.manifests.get("prepare", {})
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
        "models": models,
        "means": {split: _means(of) for split, of in (("val", val), ("test", test))},
        "comparisons": comparisons,
        "gate": _gate(spec, comparisons.get(chosen)),
        "candidates": _candidates(inputs, val),
        "curve": _curve(spec.iterations, val, test),
        "mining": _mining(inputs),
        "judging": judging(spec, inputs.manifests),
        "course": course(spec.iterations, inputs.manifests, inputs.judgments),
        "loss": _loss(inputs),
        "shifts": queries.shifts(inputs.rankings, inputs.qrels, ids, compared),
        "types": queries.by_type(inputs.queries, test, compared, spec.evaluate.resamples, spec.seed),
        **queries.extremes(inputs, test, compared),
        "test": _test_set(inputs, ids),
        "data": bookkeeping.data(
            prepare, inputs.manifests.get("validate-0", {}), inputs.passages, inputs.queries, inputs.qrels
        ),
        "settings": bookkeeping.settings(spec),
        "steps": bookkeeping.steps(inputs.manifests),
        "versions": bookkeeping.merged(inputs.manifests, "versions"),
        "machine": bookkeeping.merged(inputs.manifests, "machine"),
        "per_query": test,
    }
    report["verdict"] = formatting.verdict(report)
    return report


def _nested(table: pa.Table) -> PerQuery:
    nested: PerQuery = {}
    columns = (table.column(name).to_pylist() for name in ("model", "metric", "query_id", "value"))
    for model, metric, query, value in sorted(zip(*columns, strict=True)):
        nested.setdefault(model, {}).setdefault(metric, {})[query] = value
    return nested


def _means(of: PerQuery) -> dict[str, dict[str, float]]:
    return {
        model: {metric: float(np.mean(list(values.values()))) for metric, values in metrics.items()}
        for model, metrics in of.items()
    }


def _compare(test: PerQuery, model: str, metric: str, spec: RunSpec) -> dict[str, Any]:
    base, other = test[BASE][metric], test[model][metric]
    ids = sorted(base)
    return as_json(
        compare(
            np.array([base[query] for query in ids]),
            np.array([other[query] for query in ids]),
            spec.evaluate.resamples,
            spec.seed,
        )
    )


def as_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison with null for what is undefined."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    result: dict[str, Any] = plain(asdict(comparison))
    return result


def _best_tuned(val: PerQuery, models: list[str]) -> str:
    """The tuned model to show where the base is kept: the best on val of those that test has seen."""
    means = _means(val)
    tuned = [model for model in models if model != BASE and model in means]
    return max(tuned, key=lambda model: score_of(means[model]), default=BASE)


def _gate(spec: RunSpec, chosen: dict[str, Any] | None) -> dict[str, Any]:
    gate = spec.evaluate.gate
    wanted = {"mrr@5": gate.mrr, "dcg@5": gate.dcg}
    if chosen is None:  # the base model is kept: nothing was gained
        checks = [
            {"kind": "gain", "metric": metric, "wanted": share, "got": 0.0, "met": share <= 0}
            for metric, share in wanted.items()
        ]
        return {"wanted": wanted, "p_value": gate.p_value, "checks": checks, "passed": False}
    checks = [
        {
            "kind": "gain",
            "metric": metric,
            "wanted": share,
            "got": chosen[metric]["relative"],
            "met": chosen[metric]["relative"] is not None and chosen[metric]["relative"] >= share,
        }
        for metric, share in wanted.items()
    ]
    p_value = chosen["mrr@5"]["p_value"]
    checks.append(
        {
            "kind": "p",
            "metric": "mrr@5",
            "wanted": gate.p_value,
            "got": p_value,
            "met": p_value <= gate.p_value,
        }
    )
    return {
        "wanted": wanted,
        "p_value": gate.p_value,
        "checks": checks,
        "passed": all(check["met"] for check in checks),
    }


def _candidates(inputs: ReportInputs, val: PerQuery) -> list[dict[str, Any]]:
    scores = {name: score_of(metrics) for name, metrics in _means(val).items()}
    rows = []
    for name in sorted(inputs.choice.reasons, key=parse_model_name):
        iteration, weight = parse_model_name(name)
        retention = inputs.retention.get(name)
        value = scores.get(name)
        rows.append(
            {
                "name": name,
                "iteration": iteration,
                "weight": weight,
                "val": value,
                "val_change": _change(value, scores.get(BASE)),
                "retention": retention,
                "retention_change": _change(retention, inputs.retention.get(BASE)),
                "chosen": name == inputs.choice.name,
                "reason": inputs.choice.reasons[name],
            }
        )
    return rows


def _change(value: float | None, base: float | None) -> float | None:
    return value / base - 1 if value is not None and base else None


def _curve(iterations: int, val: PerQuery, test: PerQuery) -> list[dict[str, Any]]:
    means = {"val": _means(val), "test": _means(test)}
    names = [model_name(iteration) for iteration in range(iterations + 1)]
    return [
        {"iteration": iteration, "model": name, **{split: means[split].get(name) for split in means}}
        for iteration, name in enumerate(names)
        if name in val or name in test
    ]


def _mining(inputs: ReportInputs) -> list[dict[str, Any]]:
    """Per iteration: what was looked at, how the grades fell, and what mining made of it."""
    rows = []
    for iteration in sorted(set(inputs.candidates) | set(inputs.judgments)):
        candidates, judgments = inputs.candidates.get(iteration), inputs.judgments.get(iteration)
        grades = judgments.column("grade").to_pylist() if judgments is not None else []
        summary = inputs.manifests.get(f"mine-{iteration}", {}).get("summary") or {}
        rows.append(
            {
                "iteration": iteration,
                "candidates": candidates.num_rows if candidates is not None else None,
                "judgments": judgments.num_rows if judgments is not None else None,
                "grades": {str(grade): grades.count(grade) for grade in (1, 2, 3, 4)},
                "mined": bookkeeping.counts(summary),
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
    """What two reports need to agree on before their numbers can be put side by side."""
    wanted = set(ids)
    columns = (inputs.qrels.column(name).to_pylist() for name in ("query_id", "passage_id", "grade"))
    relevant = sorted(row for row in zip(*columns, strict=True) if row[0] in wanted)
    return {
        "queries": len(ids),
        "relevant": len(relevant),
        "qrels_sha256": _digest(repr(row) for row in relevant),
        "corpus_sha256": _digest(sorted(inputs.passages.column("passage_id").to_pylist())),
    }


def _digest(lines: Any) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()
