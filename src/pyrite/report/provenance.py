"""What produced a result: the data set, the settings, the steps and their time, the versions and the machine."""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pyrite.plan import flatten
from pyrite.report import leaks
from pyrite.report.judging import at_work
from pyrite.spec import RunSpec

SPLITS = ("train", "val", "test")
#: Examples of dropped records that the report shows per reason.
DROPPED_EXAMPLES = 3

#: Ids that are Python objects at the same time.
_PART = 1 << 14


@dataclass(frozen=True)
class CorpusFacts:
    """The number of passages, the median of their numbers of characters, and a digest of their ids in any order."""

    passages: int
    median_chars: float | None
    sha256: str

    @classmethod
    def of(cls, ids: pa.StringArray, lengths: npt.NDArray[np.int32]) -> Self:
        """The facts about the passages with these ``ids`` and numbers of characters."""
        digest, ordered = hashlib.sha256(), ids.sort()
        for start in range(0, len(ids), _PART):
            digest.update("".join(f"{id}\n" for id in ordered.slice(start, _PART).to_pylist()).encode())
        return cls(len(ids), float(np.median(lengths)) if len(lengths) else None, digest.hexdigest())


def dataset(
    manifests: dict[str, dict[str, Any]], corpus: CorpusFacts, queries: pa.Table, qrels: pa.Table
) -> dict[str, Any]:
    """The corpus and its splits. ``manifests``: by step name, as in ``ReportInputs``."""
    summaries = {name: manifest.get("summary") or {} for name, manifest in manifests.items()}
    summary, base = summaries.get("prepare", {}), summaries.get("validate-0", {})
    mined = (name for name in summaries if name.startswith("mine-"))
    title_pairs = [summaries[name].get("title_pairs", 0) for name in sorted(mined, key=lambda name: int(name[5:]))]
    columns = (queries.column(name).to_pylist() for name in ("query_id", "split", "topic"))
    rows = list(zip(*columns, strict=True))
    relevant = Counter(qrels.column("query_id").to_pylist())
    splits = []
    for split in SPLITS:
        ids = [query for query, query_split, _ in rows if query_split == split]
        splits.append(
            {
                "split": split,
                "queries": len(ids),
                "topics": len({topic for _, query_split, topic in rows if query_split == split and topic}),
                "relevant_per_query": sum(relevant[query] for query in ids) / len(ids) if ids else None,
            }
        )
    splits_of_topic: dict[str, set[str]] = {}
    for _, split, topic in rows:
        splits_of_topic.setdefault(topic, set()).add(split)
    return {
        "documents": summary.get("documents"),
        "passages": corpus.passages,
        "merged": summary.get("merged_passages"),
        "median_chars": corpus.median_chars,
        "splits": splits,
        "splits_given": bool(summary.get("splits_given")),
        "title_pairs": title_pairs,
        "leak_checks": leaks.checks(bool(summary.get("splits_given")), sum(title_pairs)),
        "shared_topics": sum(len(found) > 1 for topic, found in splits_of_topic.items() if topic),
        "dropped": _dropped(summary.get("dropped") or {}, summary.get("dropped_examples") or {}),
        "notes": [
            *(summary.get("notes") or []),
            *(base.get("model_notes") or []),
            *_truncation_note(base, corpus.passages),
        ],
    }


def _truncation_note(base: dict[str, Any], passages: int) -> list[str]:
    count = base.get("truncated_passages")
    if not count:
        return []
    return [f"{count:,} of {passages:,} passages exceed the model's maximum sequence length and are truncated."]


def _dropped(counts: dict[str, int], examples: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Reasons with counts and a few examples, the most frequent first."""
    rows = [
        {"reason": reason, "count": count, "examples": examples.get(reason, [])[:DROPPED_EXAMPLES]}
        for reason, count in counts.items()
    ]
    return sorted(rows, key=lambda row: (-row["count"], row["reason"]))


def numbers(summary: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Every number in a summary by its dotted path. Texts and lists are skipped."""
    found: dict[str, float] = {}
    for key, value in summary.items():
        if isinstance(value, dict):
            found |= numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value):
            found[f"{prefix}{key}"] = value
    return found


def settings(spec: RunSpec) -> dict[str, Any]:
    """Every setting by its dotted path: ``changed`` from the default, and ``all``."""
    values = _flatten(spec.model_dump(mode="json", by_alias=True))
    minimal = RunSpec.model_validate({"name": spec.name, "source": spec.source})
    dumped = minimal.model_dump(mode="json", by_alias=True)
    fields = type(spec.source).model_fields.items()
    dumped["source"] = {name: field.default for name, field in fields if not field.is_required() and name != "kind"}
    defaults = _flatten(dumped)
    changed = [
        {"path": path, "value": value, "default": defaults.get(path)}
        for path, value in values.items()
        if value != defaults.get(path) and path != "name"
    ]
    return {"changed": changed, "all": values}


def _flatten(section: dict[str, Any]) -> dict[str, str]:
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in flatten(section).items()
    }


def steps(manifests: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Time and output of each step. The shards of a step (judge-1.0, judge-1.1, ...) form one row.

    ``seconds`` is the sum over shards, ``taken`` the time in which at least one shard was running, and ``wall`` the
    time from the first start to the last finish.
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
    """The ``key`` section (versions or machine) of all manifests; distinct values are joined by commas."""
    found: dict[str, list[str]] = {}
    for manifest in manifests.values():
        for name, value in _flatten(manifest.get(key) or {}).items():
            found.setdefault(name, []).append(value)
    return {name: ", ".join(dict.fromkeys(values)) for name, values in sorted(found.items())}
