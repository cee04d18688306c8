"""The course of judging: how fast pairs were judged and how their grades fell over an iteration's time.

From the timelines that the shards of the judge step leave in their manifests; runs that have none have no course.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pyrite.report.judging import shards_of

#: An iteration is told in at most so many slices of time.
MOST_SLICES = 60
#: Pairs of which a share says something: it is known to about 8 points. A slice is as long as to hold so many.
ENOUGH_PAIRS = 40
#: A slice that holds less than this by a stall of the judge has no shares.
_FEWEST_PAIRS = 10
#: What a timeline tells apart: a last pair at the very start of its bucket is taken to be so much later.
_INSTANT = 0.001
_KEYS = ["query_id", "passage_id"]


def course(
    iterations: int, manifests: Mapping[str, Mapping[str, Any]], judgments: Mapping[int, pa.Table]
) -> dict[str, Any]:
    """For each iteration in which a language model judged pairs, what happened in slices of its time.

    Args:
        manifests: as in ReportInputs; of shards that judged nothing afresh, or keep no timeline, nothing is told.
        judgments: JUDGMENTS tables by iteration.

    Returns:
        ``iterations``: rows with the keys iteration, started (ISO 8601, of the first shard), slice_seconds, pairs, and
        by slice ``pairs_per_second`` and ``shares`` (of the grades 1 to 4; None where there are too few pairs);
        ``before`` are the shares of the grades of all pairs that were new in the iteration before, or None.
        ``largest_change``: the grade whose share of the new pairs differs most between two such iterations that follow
        each other (grade, iteration, before, after), or None.
    """
    slices = {}
    for iteration in range(1, iterations + 1):
        timelines = [each["summary"].get("timeline") for each in shards_of(manifests, iteration)]
        timelines = [each for each in timelines if each and each["grades"]]
        if timelines:
            slices[iteration] = lay(timelines)
    new = _shares_of_new(judgments) if slices else {}
    rows = [
        {
            "iteration": iteration,
            "started": datetime.fromtimestamp(start, UTC).isoformat(timespec="seconds"),
            "slice_seconds": round(width, 3),
            "pairs": round(float(counts.sum())),
            "pairs_per_second": [round(float(each.sum()) / width, 3) for each in counts],
            "shares": [_shares(each) if each.sum() >= _FEWEST_PAIRS else None for each in counts],
            "before": new.get(iteration - 1),
        }
        for iteration, (start, width, counts) in slices.items()
    ]
    return {"iterations": rows, "largest_change": _largest_change(new)}


def lay(timelines: Sequence[Mapping[str, Any]]) -> tuple[float, float, npt.NDArray[np.float64]]:
    """Timelines (of ``pyrite.judges.timeline``, none empty) beside each other, on one grid of equal slices.

    The pairs of a bucket are taken to be spread evenly over its time, so the slices hold fractions of pairs.

    Returns:
        When the first began, in seconds since 1970; the width of a slice in seconds; and the counts of the grades 1 to
        4 as (slices, 4), which sum up to those of the timelines.
    """
    starts = [datetime.fromisoformat(each["started"]).timestamp() for each in timelines]
    start = min(starts)
    # What grows with time: for each timeline the counts up to each edge of its buckets; the last ends at its last pair.
    edges = []
    for began, each in zip(starts, timelines, strict=True):
        inner = each["bucket_seconds"] * np.arange(len(each["grades"]))
        edges.append(began - start + np.append(inner, max(each["seconds"], inner[-1] + _INSTANT)))
    sums = [np.cumsum([[0] * 4, *each["grades"]], axis=0) for each in timelines]
    widest = max(each["bucket_seconds"] for each in timelines)
    span = max(widest, *(float(each[-1]) for each in edges))
    pairs = sum(each[-1].sum() for each in sums)
    many = max(1, min(MOST_SLICES, int(span / widest), int(pairs / ENOUGH_PAIRS)))
    grid = np.linspace(0, span, many + 1)
    grown = sum(
        np.stack([np.interp(grid, at, counts[:, grade]) for grade in range(4)], axis=1)
        for at, counts in zip(edges, sums, strict=True)
    )
    return start, span / many, np.diff(grown, axis=0)


def _shares_of_new(judgments: Mapping[int, pa.Table]) -> dict[int, list[float]]:
    """The shares of the grades 1 to 4 among the pairs that no earlier iteration has judged, where they are enough."""
    found, earlier = {}, None
    for iteration, table in sorted(judgments.items()):
        table = table.select([*_KEYS, "grade"])
        new = table.join(earlier, _KEYS, join_type="left anti") if earlier is not None else table
        if new.num_rows >= ENOUGH_PAIRS:
            found[iteration] = _shares(np.bincount(new["grade"].to_numpy(), minlength=5)[1:])
        pairs = new.select(_KEYS)
        earlier = pa.concat_tables([earlier, pairs]) if earlier is not None else pairs
    return found


def _shares(counts: npt.NDArray[Any]) -> list[float]:
    return [round(float(share), 4) for share in counts / counts.sum()]


def _largest_change(new: Mapping[int, Sequence[float]]) -> dict[str, Any] | None:
    changes = [
        {"grade": grade, "iteration": iteration, "before": before, "after": after}
        for iteration in new
        if iteration - 1 in new
        for grade, (before, after) in enumerate(zip(new[iteration - 1], new[iteration], strict=True), 1)
    ]
    return max(changes, key=lambda of: abs(of["after"] - of["before"]), default=None)
