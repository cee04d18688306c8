"""What a run's steps have come to, as metrics. Pure: from the plan's steps and the manifests of finished ones.

The controller shows it of runs on a cluster, `pyrite train` of the run that it does.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from pyrite import metrics
from pyrite.metrics import Sample
from pyrite.plan import Step

#: The base model's name in tables (``evaluation.selection``, which would bring numpy into the controller).
BASE = "base"

#: A stage and its iteration, if it has one.
Key = tuple[str, int | None]


def of_steps(run: str, steps: Sequence[Step], manifests: Mapping[str, Any]) -> Iterator[Sample]:
    """How far the run is, and what whole stages took and found; a stage that is done in part says nothing yet.

    Args:
        steps: all of the plan.
        manifests: those of finished steps, by the step's name.
    """
    yield Sample(metrics.RUN_ITERATIONS, (run,), max((step.iteration or 0 for step in steps), default=0))
    yield Sample(metrics.RUN_STEPS, (run,), len(steps))
    yield Sample(metrics.RUN_STEPS_DONE, (run,), sum(step.name in manifests for step in steps))
    shards: dict[Key, list[Step]] = defaultdict(list)
    for step in steps:
        shards[step.stage, step.iteration].append(step)
    whole = {key: group for key, group in shards.items() if all(step.name in manifests for step in group)}
    for (stage, iteration), group in whole.items():
        (seconds,) = step_seconds({step.name: manifests[step.name] for step in group}).values()
        yield Sample(metrics.RUN_STAGE_SECONDS, (run, stage, number(iteration)), seconds)
    yield from _of_results(run, {k: [manifests[step.name]["summary"] for step in group] for k, group in whole.items()})


def step_seconds(manifests: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of each stage and iteration in which at least one of its shards was at work.

    A manifest tells of the try that finished its step: tries before it, and what lies between, do not count.
    """
    spans: dict[str, list[tuple[datetime, datetime]]] = defaultdict(list)
    for name, manifest in manifests.items():
        start, end = (datetime.fromisoformat(manifest[at]) for at in ("started", "finished"))
        spans[name.partition(".")[0]].append((start, end))
    return {name: _together(found).total_seconds() for name, found in spans.items()}


def _together(spans: Sequence[tuple[datetime, datetime]]) -> timedelta:
    """The length of ``spans`` laid over each other."""
    total, reached = timedelta(), min(start for start, _ in spans)
    for start, end in sorted(spans):
        total += max(end - max(start, reached), timedelta())
        reached = max(reached, end)
    return total


def number(value: int | None) -> str:
    """An iteration or a shard as a label."""
    return "" if value is None else str(value)


def _of_results(run: str, summaries: Mapping[Key, list[dict[str, Any]]]) -> Iterator[Sample]:
    for (stage, iteration), found in sorted(summaries.items(), key=lambda entry: (entry[0][0], entry[0][1] or 0)):
        at = number(iteration)
        if stage == "judge":
            yield from _of_judging(run, at, found)
        elif stage == "mine":
            for kind in ("hard", "easy", "accumulated"):
                if kind in found[0]:
                    yield Sample(metrics.RUN_EXAMPLES, (run, at, kind), found[0][kind])
            for kind in ("positive", "negative"):
                if f"hard_{kind}s" in found[0]:
                    yield Sample(metrics.RUN_HARD, (run, at, kind), found[0][f"hard_{kind}s"])
        elif stage == "finetune" and "loss" in found[0]:
            yield Sample(metrics.RUN_LOSS, (run, at), found[0]["loss"])
        elif stage == "evaluate":
            yield Sample(metrics.RUN_GATE, (run,), found[0]["passed"])
    yield from _of_validation(run, {key[1] or 0: found[0] for key, found in summaries.items() if key[0] == "validate"})


def _of_judging(run: str, iteration: str, found: list[dict[str, Any]]) -> Iterator[Sample]:
    sums: Counter[str] = Counter()
    grades: Counter[str] = Counter()
    for summary in found:
        sums.update({key: summary.get(key, 0) for key in ("judged", "cached", "skipped", "not_selected", "missing")})
        grades.update(summary.get("grades", {}))
    sums["judged"] -= sums["cached"]  # the manifest's counts all that have a judgment
    for outcome, pairs in sums.items():
        yield Sample(metrics.RUN_PAIRS, (run, iteration, outcome), pairs)
    for grade, pairs in grades.items():
        yield Sample(metrics.RUN_GRADES, (run, iteration, grade), pairs)


def _of_validation(run: str, found: Mapping[int, dict[str, Any]]) -> Iterator[Sample]:
    scores = [
        (iteration, model, values) for iteration in sorted(found) for model, values in found[iteration]["val"].items()
    ]
    shown = [("base" if model == BASE else "tuned", *score) for score in scores if "@" not in (model := score[1])]
    if scores:
        shown.append(("best", *max(scores, key=lambda score: score[2]["mrr@5"] + score[2]["dcg@5"])))
    for kind, iteration, _, values in shown:
        labels = (run, kind, str(iteration))
        yield Sample(metrics.RUN_MRR, labels, values["mrr@5"])
        yield Sample(metrics.RUN_DCG, labels, values["dcg@5"])
