"""What went in and what it took: the data, the settings, the steps, the versions and the machine."""

import json
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from pyrite.report.judging import at_work
from pyrite.spec import RunSpec

SPLITS = ("train", "val", "test")
#: Examples shown of what was left out, per reason.
DROPPED_EXAMPLES = 3


def data(
    prepare: dict[str, Any], base: dict[str, Any], passages: pa.Table, queries: pa.Table, qrels: pa.Table
) -> dict[str, Any]:
    """The corpus and its splits from the tables, with what only prepare and the base model's scoring know."""
    told: dict[str, Any] = prepare.get("summary") or {}
    columns = (queries.column(name).to_pylist() for name in ("query_id", "split", "topic"))
    rows = list(zip(*columns, strict=True))
    relevant: dict[str, int] = {}
    for query in qrels.column("query_id").to_pylist():
        relevant[query] = relevant.get(query, 0) + 1
    splits = []
    for split in SPLITS:
        ids = [query for query, of, _ in rows if of == split]
        splits.append(
            {
                "split": split,
                "queries": len(ids),
                "topics": len({topic for _, of, topic in rows if of == split and topic}),
                "relevant_per_query": sum(relevant.get(q, 0) for q in ids) / len(ids) if ids else None,
            }
        )
    sides: dict[str, set[str]] = {}
    for _, split, topic in rows:
        sides.setdefault(topic, set()).add(split)
    lengths = [len(text) for text in passages.column("text").to_pylist()]
    return {
        "documents": told.get("documents"),
        "passages": passages.num_rows,
        "merged": told.get("merged_passages"),
        "median_chars": float(np.median(lengths)) if lengths else None,
        "splits": splits,
        "splits_given": bool(told.get("splits_given")),
        "shared_topics": sum(len(of) > 1 for topic, of in sides.items() if topic),
        "dropped": _dropped(told.get("dropped") or {}, told.get("dropped_examples") or {}),
        "notes": [*(told.get("notes") or []), *_cut(base, passages.num_rows)],
    }


def _cut(base: dict[str, Any], passages: int) -> list[str]:
    cut = (base.get("summary") or {}).get("truncated_passages")
    return [f"{cut:,} of {passages:,} passages are longer than the model's window and are cut there."] if cut else []


def _dropped(told: dict[str, int], examples: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Reasons with counts and a few examples, the most frequent first."""
    rows = [
        {"reason": reason, "count": count, "examples": examples.get(reason, [])[:DROPPED_EXAMPLES]}
        for reason, count in told.items()
    ]
    return sorted(rows, key=lambda row: (-row["count"], row["reason"]))


def counts(summary: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Every number in a summary by its dotted path; texts and lists (examples, histories) are left aside."""
    found: dict[str, float] = {}
    for key, value in summary.items():
        if isinstance(value, dict):
            found |= counts(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value):
            found[f"{prefix}{key}"] = value
    return found


def settings(spec: RunSpec) -> dict[str, Any]:
    """Every setting by its dotted path: the ones that differ from the default first, then all."""
    values = _flat(spec.model_dump(mode="json", by_alias=True))
    plain = RunSpec.model_validate({"name": spec.name, "source": spec.source})
    dumped = plain.model_dump(mode="json", by_alias=True)
    fields = type(spec.source).model_fields.items()
    dumped["source"] = {name: of.default for name, of in fields if not of.is_required() and name != "kind"}
    defaults = _flat(dumped)
    changed = [
        {"path": path, "value": value, "default": defaults.get(path)}
        for path, value in values.items()
        if value != defaults.get(path) and path != "name"
    ]
    return {"changed": changed, "all": values}


def _flat(section: dict[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in section.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return found


def steps(manifests: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What each step took. A step done in shards (judge-1.0, judge-1.1, ...) is one row.

    ``seconds`` is work, summed over shards; in ``taken``, shards that were at work at once count once; ``wall`` is from
    the first start to the last finish.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for name, manifest in manifests.items():
        stem, _, shard = name.partition(".")
        groups.setdefault(stem if shard.isdigit() else name, []).append(manifest)
    rows = []
    for name, members in groups.items():
        outputs = [output for member in members for output in member.get("outputs") or []]
        rows.append(
            {
                "step": name,
                "shards": len(members),
                "seconds": _total(member.get("seconds") for member in members),
                "rows": _total(output.get("rows") for output in outputs),
                "bytes": _total(output.get("bytes") for output in outputs),
                **_span(members),
            }
        )
    rows.sort(key=lambda row: (row["started"] or "", row["step"]))
    span = _span(list(manifests.values()))
    return {
        "rows": rows,
        "seconds": _total(row["seconds"] for row in rows),
        "taken": _total(at_work(members) for members in groups.values()),
        **span,
    }


def _total(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _span(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    started = min((m["started"] for m in manifests if m.get("started")), key=_time, default=None)
    finished = max((m["finished"] for m in manifests if m.get("finished")), key=_time, default=None)
    wall = (_time(finished) - _time(started)).total_seconds() if started and finished else None
    return {"started": started, "finished": finished, "wall": wall}


def _time(iso: str) -> datetime:
    return datetime.fromisoformat(iso)


def merged(manifests: dict[str, dict[str, Any]], key: str) -> dict[str, str]:
    """What all steps say of their versions or machine; where they differ, each value once."""
    found: dict[str, list[str]] = {}
    for manifest in manifests.values():
        for name, value in _flat(manifest.get(key) or {}).items():
            values = found.setdefault(name, [])
            if value not in values:
                values.append(value)
    return {name: ", ".join(values) for name, values in sorted(found.items())}
