"""Judging in numbers: pairs, tokens, cost, grades of known answers, and speed and grades over time."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pyrite.costs import DEFAULT_MACHINE, machine
from pyrite.evaluation.cascade import ErrorRate, pooled
from pyrite.evaluation.significance import share_interval
from pyrite.judges.base import GRADES, RELEVANT
from pyrite.manifest_metrics import union_length
from pyrite.spec import CascadeJudgeSpec, RunSpec

#: The timeline of an iteration has at most this many slices.
MAX_SLICES = 60
#: Pairs needed to estimate the shares of the grades, whose standard error is then at most 8 percentage points. Slices
#: hold at least this many pairs on average.
MIN_PAIRS_FOR_SHARES = 40
#: Shares are not computed for a slice with fewer pairs, such as while the judge stalls.
_MIN_PAIRS_IN_SLICE = 10
#: Minimum duration of a timeline's last bucket, in seconds.
_RESOLUTION = 0.001
_COUNTS = ("judged", "cached", "skipped", "not_selected", "missing")
_KEYS = ["query_id", "passage_id"]


# --- counts and cost --------------------------------------------------------------------------------------------------


def judging(spec: RunSpec, manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Counts of pairs per iteration. With an LLM judge also tokens, speed, decoding modes and estimated cost.

    ``judges``: kind and simulated errors of the judge, or of both judges of a cascade.

    Tokens are those of all judged pairs, including cached pairs. Speed and cost are those of the pairs that were sent
    to the judge, in the time in which at least one shard was running or starting. The judge's machine is unknown, so
    the cost uses the price of the default machine in ``costs.yaml``.
    """
    llm = spec.judge.needs_server
    rows = []
    for iteration in range(1, spec.iterations + 1):
        shards = _judge_shards(manifests, iteration)
        if shards:
            summaries = [shard["summary"] for shard in shards]
            counts = {name: _sum(summaries, name) for name in _COUNTS}
            usage = _llm_usage(shards, summaries) if llm else {}
            rows.append({"iteration": iteration, **counts, **usage, **_cascade(summaries)})
    both = [spec.judge.first, spec.judge.second] if isinstance(spec.judge, CascadeJudgeSpec) else [spec.judge]
    found: dict[str, Any] = {
        "kind": spec.judge.kind,
        "judges": [{name: judge.identity[name] for name in ("kind", "errors")} for judge in both],
        "iterations": rows,
    }
    if llm and rows:
        priced = machine(DEFAULT_MACHINE)
        found |= {
            **spec.judge.identity,
            **{name: sum(row[name] for row in rows) for name in ("requested", "seconds", "dollars")},
            "price": {
                "machine": priced.name,
                "dollars_per_hour": priced.dollars_per_hour,
                "source": priced.price_source,
            },
        }
    return found


def _cascade(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The pairs that the first judge of a cascade decided, and its error rate by the audit; empty without a cascade."""
    if not any("by_first" in summary for summary in summaries):
        return {}
    audits = [summary["audit"] for summary in summaries]
    rates = [ErrorRate(audit["pairs"], audit["errors"], audit["standard_error"]) for audit in audits]
    modes = {summary["first"].get("decoding_mode") for summary in summaries if summary.get("first")}
    return {
        "by_first": _sum(summaries, "by_first"),
        "audit": pooled(rates).as_json(),
        "first_decoding_modes": sorted(filter(None, modes)),
    }


def _judge_shards(manifests: Mapping[str, Mapping[str, Any]], iteration: int) -> list[Mapping[str, Any]]:
    """The manifests of the iteration's judge shards that have a summary."""
    shards = (manifest for name, manifest in manifests.items() if name.partition(".")[0] == f"judge-{iteration}")
    return [shard for shard in shards if shard.get("summary")]


def _llm_usage(shards: Sequence[Mapping[str, Any]], summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    prompt, cached, seconds = _sum(summaries, "prompt_tokens"), _sum(summaries, "cached_tokens"), at_work(shards)
    requested = _sum(summaries, "judged") - _sum(summaries, "cached")
    return {
        "requested": requested,
        "prompt_tokens": prompt,
        "cached_share": cached / prompt if prompt else None,
        "seconds": seconds,
        "pairs_per_second": requested / seconds if requested and seconds else None,
        "decoding_modes": sorted({each["decoding_mode"] for each in summaries if each.get("decoding_mode")}),
        "truncated": _sum(summaries, "truncated"),
        "dollars": seconds / 3600 * machine(DEFAULT_MACHINE).dollars_per_hour if requested else 0.0,
    }


def _sum(summaries: Sequence[Mapping[str, Any]], name: str) -> int:
    return sum(int(summary.get(name) or 0) for summary in summaries)


def at_work(shards: Sequence[Mapping[str, Any]]) -> float:
    """Seconds in which at least one of the shards was running."""
    starts = [datetime.fromisoformat(each["started"]).timestamp() for each in shards]
    spans = [(start, start + each["seconds"]) for start, each in zip(starts, shards, strict=True)]
    return round(union_length(spans), 2)


# --- grades of known answers ------------------------------------------------------------------------------------------


def known_answers(
    spec: RunSpec, judgments: Mapping[int, pa.Table], queries: pa.Table, qrels: pa.Table
) -> dict[str, Any] | None:
    """The grades of the training queries' known answers that the run judged: a free check of the judge.

    A pair of several iterations counts once, with its last judgment. None if there is no such pair, or if the judge is
    the answer key without simulated errors, which grades all of them 4.

    Args:
        judgments: JUDGMENTS tables by iteration.

    Returns:
        ``known`` and ``judged``: numbers of pairs. ``queries``: those with a judged pair. ``grades``: counts.
        ``relevant`` (share of grade 3 or 4) and ``expected`` (grade): mean and 95% interval (low, high), clustered by
        query.
    """
    judge = spec.main_judge.spec  # the first judge of a cascade is checked by the audit
    if judge.kind == "labels" and not judge.identity["errors"]:
        return None
    train = queries.filter(pc.equal(queries["split"], "train")).select(["query_id"])
    known = qrels.select(_KEYS).join(train, "query_id", join_type="left semi")
    graded: dict[tuple[str, str], tuple[int, float]] = {}
    for _, table in sorted(judgments.items()):
        found = table.select([*_KEYS, "grade", "expected"]).join(known, _KEYS, join_type="left semi")
        for row in found.to_pylist():
            graded[row["query_id"], row["passage_id"]] = (row["grade"], row["expected"])
    if not graded:
        return None
    clusters = [query for query, _ in sorted(graded)]
    values = np.array([graded[pair] for pair in sorted(graded)], dtype=np.float64)
    counts = Counter(int(grade) for grade in values[:, 0])
    expected = _with_interval((values[:, 1] - 1) / 3, clusters)
    return {
        "known": known.num_rows,
        "judged": len(graded),
        "queries": len(set(clusters)),
        "grades": {str(grade): counts[grade] for grade in GRADES},
        "relevant": _with_interval((values[:, 0] >= RELEVANT).astype(np.float64), clusters),
        "expected": {name: 1 + 3 * value for name, value in expected.items()},
    }


def _with_interval(shares: npt.NDArray[np.float64], clusters: Sequence[str]) -> dict[str, float]:
    found = share_interval(shares, clusters)
    return {"mean": float(shares.mean()), "low": found.low, "high": found.high}


# --- speed and grades over time ---------------------------------------------------------------------------------------


def timeline(
    iterations: int, manifests: Mapping[str, Mapping[str, Any]], judgments: Mapping[int, pa.Table]
) -> dict[str, Any]:
    """Speed and shares of the grades over the time of each iteration that an LLM judged.

    Args:
        manifests: as in ReportInputs. Shards without a timeline, or with an empty one, are skipped.
        judgments: JUDGMENTS tables by iteration.

    Returns:
        ``iterations``: rows with iteration, started (ISO 8601, of the first shard), slice_seconds, pairs, and per slice
        ``pairs_per_second`` and ``grade_shares`` (of the grades 1 to 4; None if there are too few pairs).
        ``previous_shares`` are the shares among all newly judged pairs of the iteration before, or None.
        ``largest_change``: the grade whose share of the newly judged pairs changed most between two consecutive
        iterations (grade, iteration, before, after), or None.
    """
    slices = {}
    for iteration in range(1, iterations + 1):
        timelines = [shard["summary"].get("timeline") for shard in _judge_shards(manifests, iteration)]
        timelines = [each for each in timelines if each and each["grades"]]
        if timelines:
            slices[iteration] = merge_timelines(timelines)
    new = _shares_of_new_pairs(judgments) if slices else {}
    rows = [
        {
            "iteration": iteration,
            "started": datetime.fromtimestamp(start, UTC).isoformat(timespec="seconds"),
            "slice_seconds": round(width, 3),
            "pairs": round(float(counts.sum())),
            "pairs_per_second": [round(float(each.sum()) / width, 3) for each in counts],
            "grade_shares": [_shares(each) if each.sum() >= _MIN_PAIRS_IN_SLICE else None for each in counts],
            "previous_shares": new.get(iteration - 1),
        }
        for iteration, (start, width, counts) in slices.items()
    ]
    return {"iterations": rows, "largest_change": _largest_change(new)}


def merge_timelines(timelines: Sequence[Mapping[str, Any]]) -> tuple[float, float, npt.NDArray[np.float64]]:
    """Add up timelines (of ``pyrite.judges.timeline``, none empty) on one grid of equal slices.

    The pairs of a bucket are spread evenly over its duration, so a slice can hold fractions of pairs.

    Returns:
        The first start in seconds since 1970, the width of a slice in seconds, and the counts of the grades 1 to 4, of
        shape (slices, 4). The counts have the same sum as those of the timelines.
    """
    starts = [datetime.fromisoformat(each["started"]).timestamp() for each in timelines]
    start = min(starts)
    # Edges of the buckets of each timeline, in seconds since the first start. The last bucket ends at its last pair.
    edges = []
    for own_start, each in zip(starts, timelines, strict=True):
        inner = each["bucket_seconds"] * np.arange(len(each["grades"]))
        edges.append(own_start - start + np.append(inner, max(each["seconds"], inner[-1] + _RESOLUTION)))
    cumulative = [np.cumsum([[0] * 4, *each["grades"]], axis=0) for each in timelines]
    widest = max(each["bucket_seconds"] for each in timelines)
    span = max(widest, *(float(each[-1]) for each in edges))
    pairs = sum(each[-1].sum() for each in cumulative)
    slices = max(1, min(MAX_SLICES, int(span / widest), int(pairs / MIN_PAIRS_FOR_SHARES)))
    grid = np.linspace(0, span, slices + 1)
    total = sum(
        np.stack([np.interp(grid, at, counts[:, grade]) for grade in range(4)], axis=1)
        for at, counts in zip(edges, cumulative, strict=True)
    )
    return start, span / slices, np.diff(total, axis=0)


def _shares_of_new_pairs(judgments: Mapping[int, pa.Table]) -> dict[int, list[float]]:
    """Shares of the grades 1 to 4 among the pairs that no earlier iteration judged, if there are enough of them."""
    found, earlier = {}, None
    for iteration, table in sorted(judgments.items()):
        table = table.select([*_KEYS, "grade"])
        new = table.join(earlier, _KEYS, join_type="left anti") if earlier is not None else table
        if new.num_rows >= MIN_PAIRS_FOR_SHARES:
            found[iteration] = _shares(np.bincount(new["grade"].to_numpy(), minlength=5)[1:])
        pairs = new.select(_KEYS)
        earlier = pa.concat_tables([earlier, pairs]) if earlier is not None else pairs
    return found


def _shares(counts: npt.NDArray[Any]) -> list[float]:
    return [round(float(share), 4) for share in counts / counts.sum()]


def _largest_change(shares: Mapping[int, Sequence[float]]) -> dict[str, Any] | None:
    changes = [
        {"grade": grade, "iteration": iteration, "before": before, "after": after}
        for iteration in shares
        if iteration - 1 in shares
        for grade, (before, after) in enumerate(zip(shares[iteration - 1], shares[iteration], strict=True), 1)
    ]
    return max(changes, key=lambda change: abs(change["after"] - change["before"]), default=None)
