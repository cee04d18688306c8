"""Judging in numbers: pairs, tokens, cost, grades of known answers, and speed and grades over time."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pyrite import tables
from pyrite.costs import DEFAULT_MACHINE, machine
from pyrite.evaluation.cascade import ErrorRate, pooled
from pyrite.evaluation.significance import share_interval
from pyrite.judges.base import GRADES, RELEVANT
from pyrite.manifest_metrics import union_length
from pyrite.ragged import Mask, Numbers
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

#: The columns of JUDGMENTS that ``summarize_judgments`` needs.
SUMMARIZED = pa.schema([tables.JUDGMENTS.field(name) for name in (*_KEYS, "grade", "expected", "judge")])


# --- judgments --------------------------------------------------------------------------------------------------------


class Judged:
    """The judgments of an iteration, in numbers.

    Attributes:
        grades: the number of pairs of each grade, 1 to 4.
        new: the same, of the pairs that no earlier iteration judged.
        known: SUMMARIZED of the known answers of training queries.
        judges: the values of the column judge.
    """

    def __init__(self) -> None:
        self.grades, self.new = np.zeros((2, len(GRADES)), np.int64)
        self.known = SUMMARIZED.empty_table()
        self.judges: set[str] = set()

    def add(self, judgments: pa.Table, new: Mask, known: Mask) -> None:
        """Add SUMMARIZED. ``new`` and ``known`` are masks over its rows."""
        grades = judgments["grade"].to_numpy()
        self.grades += _count_grades(grades)
        self.new += _count_grades(grades[new])
        self.known = pa.concat_tables([self.known, judgments.filter(known)])
        self.judges.update(judgments["judge"].unique().to_pylist())


def known_answers_of_training(queries: pa.Table, qrels: pa.Table) -> pa.Table:
    """The columns query_id and passage_id of the training queries' known answers."""
    train = queries.filter(pc.equal(queries["split"], "train"))
    return qrels.filter(pc.is_in(qrels["query_id"], train["query_id"].combine_chunks())).select(_KEYS)


def summarize_judgments(shards: Iterable[Mapping[int, Iterable[pa.Table]]], known: pa.Table) -> dict[int, Judged]:
    """The judgments of each iteration, in numbers. Memory holds 8 bytes for each pair of a shard.

    Args:
        shards: for each shard, SUMMARIZED by iteration, in parts. All pairs of a query are in one shard.
        known: as from ``known_answers_of_training``.
    """
    known_hashes, judged = np.sort(_hashes(known)), defaultdict[int, Judged](Judged)
    for shard in shards:
        earlier: Numbers = np.empty(0, np.int64)
        for iteration, parts in sorted(shard.items()):
            summary, hashes = judged[iteration], [earlier]
            for part in parts:
                own = _hashes(part)
                is_new = ~_contains(earlier, own)
                summary.add(part, is_new, _contains(known_hashes, own))
                hashes.append(own[is_new])
            earlier = np.sort(np.concatenate(hashes))
    return dict(judged)


def _hashes(pairs: pa.Table) -> Numbers:
    """A 64-bit hash of each pair. Two of 50 million pairs have the same one with a probability of 7 in 100,000."""
    ids = (pairs[name].to_pylist() for name in _KEYS)
    return np.fromiter(map(hash, zip(*ids, strict=True)), np.int64, pairs.num_rows)


def _contains(ordered: Numbers, hashes: Numbers) -> Mask:
    """Whether each of ``hashes`` is in ``ordered``."""
    if not len(ordered):
        return np.zeros(len(hashes), np.bool_)
    positions = np.searchsorted(ordered, hashes).clip(max=len(ordered) - 1)
    return np.asarray(ordered[positions] == hashes)


def _count_grades(grades: npt.NDArray[np.int8]) -> Numbers:
    return np.bincount(grades, minlength=len(GRADES) + 1)[1:]


# --- counts and cost --------------------------------------------------------------------------------------------------


def judging(spec: RunSpec, manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Numbers of pairs per iteration. With an LLM judge also tokens, speed, decoding modes and estimated cost.

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
    spec: RunSpec, judged: Mapping[int, Judged], queries: pa.Table, qrels: pa.Table
) -> dict[str, Any] | None:
    """The grades of the training queries' known answers that the run judged: a free check of the judge.

    A pair of several iterations counts once, with its last judgment. None if there is no such pair, or if the judge is
    the answer key without simulated errors, which grades all of them 4.

    Args:
        judged: the judgments by iteration.

    Returns:
        ``known`` and ``judged``: numbers of pairs. ``queries``: those with a judged pair. ``grades``: counts.
        ``relevant`` (share of grade 3 or 4) and ``expected`` (grade): mean and 95% interval (low, high), clustered by
        query.
    """
    judge = spec.main_judge.spec  # the first judge of a cascade is checked by the audit
    if judge.kind == "labels" and not judge.identity["errors"]:
        return None
    known = known_answers_of_training(queries, qrels)
    graded = _last_judgments([each.known for _, each in sorted(judged.items())])
    if not graded.num_rows:
        return None
    clusters = graded["query_id"].to_pylist()
    grades = graded["grade"].to_numpy()
    expected = _with_interval((graded["expected"].to_numpy().astype(np.float64) - 1) / 3, clusters)
    return {
        "known": known.num_rows,
        "judged": graded.num_rows,
        "queries": len(set(clusters)),
        "grades": {str(grade): int(count) for grade, count in zip(GRADES, _count_grades(grades), strict=True)},
        "relevant": _with_interval((grades >= RELEVANT).astype(np.float64), clusters),
        "expected": {name: 1 + 3 * value for name, value in expected.items()},
    }


def _last_judgments(judgments: Sequence[pa.Table]) -> pa.Table:
    """The last judgment of each pair in the tables, by query and passage id."""
    table = pa.concat_tables([SUMMARIZED.empty_table(), *judgments])
    table = table.append_column("row", pa.array(np.arange(table.num_rows)))
    last = table.group_by(_KEYS).aggregate([("row", "max")])["row_max"]
    return table.take(last).sort_by([(name, "ascending") for name in _KEYS])


def _with_interval(shares: npt.NDArray[np.float64], clusters: Sequence[str]) -> dict[str, float]:
    found = share_interval(shares, clusters)
    return {"mean": float(shares.mean()), "low": found.low, "high": found.high}


# --- speed and grades over time ---------------------------------------------------------------------------------------


def timeline(
    iterations: int, manifests: Mapping[str, Mapping[str, Any]], judged: Mapping[int, Judged]
) -> dict[str, Any]:
    """Speed and shares of the grades over the time of each iteration that an LLM judged.

    Args:
        manifests: as in ReportInputs. Shards without a timeline, or with an empty one, are skipped.
        judged: the judgments by iteration.

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
    new = _shares_of_new_pairs(judged) if slices else {}
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


def _shares_of_new_pairs(judged: Mapping[int, Judged]) -> dict[int, list[float]]:
    """Shares of the grades 1 to 4 among the pairs that no earlier iteration judged, if there are enough of them."""
    return {
        iteration: _shares(each.new) for iteration, each in judged.items() if each.new.sum() >= MIN_PAIRS_FOR_SHARES
    }


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
