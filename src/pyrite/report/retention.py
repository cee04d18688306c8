"""What a model loses outside its domain: the retention sets."""

from collections.abc import Container, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from pyrite.evaluation.selection import BASE, LossLimit, parse_model_name
from pyrite.report.queries import as_json, compare_by_query
from pyrite.spec import RunSpec
from pyrite.spec.stages import retention_name


def candidates(table: pa.Table, spec: RunSpec) -> dict[str, dict[str, float | None]]:
    """By model: nDCG@10 on the set that the choice depends on, its relative change, and the bound of that change."""
    limit = LossLimit.of(spec)
    if limit is None or spec.evaluate.retention is None:
        return {}
    values = _by_model(table, retention_name(spec.evaluate.retention.path))
    base = _array(values[BASE])
    found: dict[str, dict[str, float | None]] = {}
    for model, by_query in values.items():
        other = _array(by_query)
        found[model] = {
            "retention": float(other.mean()),
            "retention_change": float(other.mean() / base.mean() - 1) if base.any() else None,
            "retention_bound": limit.bound(base, other),
        }
    return found


def blends_not_scored(
    spec: RunSpec, manifests: Mapping[str, Mapping[str, Any]], scored: Container[str]
) -> list[dict[str, Any]]:
    """The blends that validate's search for a weight tried, and that have no validation score: all but the last.

    ``retention_bound`` is the bound of the change on the set that the choice depends on.
    """
    limit = LossLimit.of(spec)
    if limit is None:
        return []
    tried: dict[str, float] = {}
    for iteration in range(1, spec.iterations + 1):
        tried |= (manifests.get(f"validate-{iteration}", {}).get("summary") or {}).get("retention_bounds", {})
    reasons = {True: "not scored: a larger weight is within the limit", False: "rejected: exceeds the limit"}
    return [
        {"name": name, "retention_bound": tried[name], "reason": reasons[limit.allows(tried[name])]}
        for name in sorted(tried, key=parse_model_name)
        if name not in scored
    ]


def rows(table: pa.Table, spec: RunSpec, model: str) -> list[dict[str, Any]]:
    """One row per set: nDCG@10 of the base model compared with ``model``.

    ``selects`` is true for the set that the choice depends on. ``bound`` is the one-sided bound of the relative change.
    """
    limit, sets = LossLimit.of(spec), spec.evaluate.retention
    if limit is None or sets is None:
        return []
    found = []
    for path in (sets.path, *sets.report):
        values = _by_model(table, retention_name(path))
        comparison = compare_by_query(values[BASE], values[model], limit.resamples, limit.seed, {})
        found.append(
            {
                "set": retention_name(path),
                "selects": path == sets.path,
                "confidence": limit.confidence,
                "bound": limit.bound(_array(values[BASE]), _array(values[model])),
                **as_json(comparison),
            }
        )
    return found


def _by_model(table: pa.Table, name: str) -> dict[str, dict[str, float]]:
    values: dict[str, dict[str, float]] = {}
    columns = (table.column(column).to_pylist() for column in ("model", "set", "query_id", "value"))
    for model, set_name, query, value in zip(*columns, strict=True):
        if set_name == name:
            values.setdefault(model, {})[query] = value
    return values


def _array(by_query: dict[str, float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([by_query[query] for query in sorted(by_query)])
