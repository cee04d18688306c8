"""What judging took and how the judge was asked, per iteration, from the manifests of its shards."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pyrite.costs import USUAL_MACHINE, machine
from pyrite.spec import RunSpec

_COUNTS = ("judged", "cached", "skipped", "not_selected", "missing")


def judging(spec: RunSpec, manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Counts of pairs; where a language model judges, also tokens, speed, the way of asking, and dollars.

    Tokens are those of all pairs in the judgments, whenever they were paid for. Speed and dollars are of the pairs that
    were not known before, over the time in which a shard was at work, its start and end included. Nobody knows what
    machine served the judge: the dollars are what the one that Pyrite has a price of costs in that time.
    """
    llm = spec.judge.needs_server
    rows = []
    for iteration in range(1, spec.iterations + 1):
        shards = shards_of(manifests, iteration)
        if shards:
            summaries = [each["summary"] for each in shards]
            counts = {name: _sum(summaries, name) for name in _COUNTS}
            rows.append({"iteration": iteration, **counts, **(_asking(shards, summaries) if llm else {})})
    found: dict[str, Any] = {"kind": spec.judge.kind, "iterations": rows}
    if llm and rows:
        on = machine(USUAL_MACHINE)
        found |= {
            **spec.judge.identity,
            "requested": sum(row["requested"] for row in rows),
            "seconds": sum(row["seconds"] for row in rows),
            "dollars": sum(row["dollars"] for row in rows),
            "price": {"machine": on.name, "dollars_per_hour": on.dollars_per_hour, "source": on.price_source},
        }
    return found


def shards_of(manifests: Mapping[str, Mapping[str, Any]], iteration: int) -> list[Mapping[str, Any]]:
    """The manifests of the iteration's shards of the judge step; those without a summary are left aside."""
    shards = (each for name, each in manifests.items() if name.partition(".")[0] == f"judge-{iteration}")
    return [each for each in shards if each.get("summary")]


def _asking(shards: Sequence[Mapping[str, Any]], summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    prompt, cached, seconds = _sum(summaries, "prompt_tokens"), _sum(summaries, "cached_tokens"), at_work(shards)
    asked = _sum(summaries, "judged") - _sum(summaries, "cached")
    return {
        "requested": asked,
        "prompt_tokens": prompt,
        "cached_share": cached / prompt if prompt else None,
        "seconds": seconds,
        "pairs_per_second": asked / seconds if asked and seconds else None,
        "decoding_modes": sorted({each["decoding_mode"] for each in summaries if each.get("decoding_mode")}),
        "truncated": _sum(summaries, "truncated"),
        "dollars": seconds / 3600 * machine(USUAL_MACHINE).dollars_per_hour if asked else 0.0,
    }


def _sum(summaries: Sequence[Mapping[str, Any]], name: str) -> int:
    return sum(int(each.get(name) or 0) for each in summaries)


def at_work(shards: Sequence[Mapping[str, Any]]) -> float:
    """Seconds in which at least one of the shards was at work."""
    spans = sorted((datetime.fromisoformat(each["started"]).timestamp(), each["seconds"]) for each in shards)
    total, end = 0.0, float("-inf")
    for start, seconds in spans:
        total += max(0.0, start + seconds - max(start, end))
        end = max(end, start + seconds)
    return round(total, 2)
