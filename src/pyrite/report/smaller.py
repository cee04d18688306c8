"""Smaller embeddings on test: their size, and their quality against the same model's complete float32 embeddings."""

from typing import Any

import pyarrow as pa

from pyrite.embedding.smaller import BINARY, FLOAT32, INT8, RESCORED, RESCORED_DEPTH
from pyrite.evaluation.clusters import Clusters
from pyrite.evaluation.selection import SELECTION_METRICS
from pyrite.report.queries import as_json, compare_by_query
from pyrite.spec import RunSpec

_LABELS = {INT8: "int8", BINARY: "binary", RESCORED: f"binary, first {RESCORED_DEPTH} rescored"}


def build(table: pa.Table, spec: RunSpec, clusters: Clusters) -> dict[str, Any] | None:
    """The number of queries, and a row for each form, the float32 embeddings first; None if none was scored.

    A row has its ``name``, ``label``, ``dims``, ``bytes`` and ``rescored_bytes`` (``tables.SMALLER``). Its
    ``comparisons`` by model and metric compare the form with the model's float32 embeddings.
    """
    if not table.num_rows:
        return None
    values: dict[tuple[str, str, str], dict[str, float]] = {}
    sizes: dict[str, dict[str, int]] = {}
    for row in table.to_pylist():
        by_query = values.setdefault((row["embedding"], row["model"], row["metric"]), {})
        by_query[row["query_id"]] = row["value"]
        sizes[row["embedding"]] = {name: row[name] for name in ("dims", "bytes", "rescored_bytes")}
    models = list(dict.fromkeys(model for _, model, _ in values))

    def compare(form: str, model: str, metric: str) -> dict[str, Any]:
        base, other = values[FLOAT32, model, metric], values[form, model, metric]
        return as_json(compare_by_query(base, other, spec.evaluate.resamples, spec.seed, clusters))

    return {
        "queries": len(next(iter(values.values()))),
        "trained_dims": spec.finetune.matryoshka,
        "rows": [
            {
                "name": form,
                "label": _LABELS.get(form, f"float32, {size['dims']} dimensions"),
                **size,
                "comparisons": {
                    model: {metric: compare(form, model, metric) for metric in SELECTION_METRICS} for model in models
                },
            }
            for form, size in sizes.items()
        ],
    }
