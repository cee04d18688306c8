"""Metrics of a run, computed from its steps and the manifests of finished steps by pure functions.

The controller exports them for all runs of a cluster, `pyrite train` for its own run.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from pyrite import metrics
from pyrite.metrics import Sample
from pyrite.plan import BASE, Step

#: A stage and its iteration, if it has one.
Key = tuple[str, int | None]


def step_samples(run: str, steps: Sequence[Step], manifests: Mapping[str, Any]) -> Iterator[Sample]:
    """The progress of a run, and the duration and results of the stages of which all shards are finished.

    Args:
        steps: all steps of the run.
        manifests: manifests of finished steps, by step name.
    """
    yield Sample(metrics.RUN_ITERATIONS, (run,), max((step.iteration or 0 for step in steps), default=0))
    yield Sample(metrics.RUN_STEPS, (run,), len(steps))
    yield Sample(metrics.RUN_STEPS_DONE, (run,), sum(step.name in manifests for step in steps))
    shards: dict[Key, list[Step]] = defaultdict(list)
    for step in steps:
        shards[step.stage, step.iteration].append(step)
    finished = {key: group for key, group in shards.items() if all(step.name in manifests for step in group)}
    for (stage, iteration), group in finished.items():
        (seconds,) = step_seconds({step.name: manifests[step.name] for step in group}).values()
        yield Sample(metrics.RUN_STAGE_SECONDS, (run, stage, label_value(iteration)), seconds)
    summaries = {key: [manifests[step.name]["summary"] for step in group] for key, group in finished.items()}
    yield from _result_samples(run, summaries)


def step_seconds(manifests: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of each stage and iteration in which at least one of its shards was running.

    A manifest describes the attempt that finished its step. Earlier attempts, and the time between, do not count.
    """
    spans: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for name, manifest in manifests.items():
        start, end = (datetime.fromisoformat(manifest[at]).timestamp() for at in ("started", "finished"))
        spans[name.partition(".")[0]].append((start, end))
    return {name: union_length(found) for name, found in spans.items()}


def union_length(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of ``spans``, each (start, end)."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def label_value(number: int | None) -> str:
    """An iteration or a shard as a label value; empty if there is none."""
    return "" if number is None else str(number)


def _result_samples(run: str, summaries: Mapping[Key, list[dict[str, Any]]]) -> Iterator[Sample]:
    for (stage, iteration), shards in sorted(summaries.items(), key=lambda entry: (entry[0][0], entry[0][1] or 0)):
        at, summary = label_value(iteration), shards[0]
        if stage == "judge":
            yield from _judge_samples(run, at, shards)
        elif stage == "mine":
            for kind in ("hard", "easy", "accumulated", "title_pairs"):
                if kind in summary:
                    yield Sample(metrics.RUN_EXAMPLES, (run, at, kind), summary[kind])
            hard = {"hard_positives": metrics.RUN_HARD_POSITIVES, "hard_negatives": metrics.RUN_HARD_NEGATIVES}
            for name, metric in hard.items():
                if name in summary:
                    yield Sample(metric, (run, at), summary[name])
        elif stage == "finetune" and "loss" in summary:
            yield Sample(metrics.RUN_LOSS, (run, at), summary["loss"])
        elif stage == "evaluate":
            yield Sample(metrics.RUN_GATE, (run,), summary["passed"])
    yield from _validation_samples(run, {key[1] or 0: own[0] for key, own in summaries.items() if key[0] == "validate"})


def _judge_samples(run: str, iteration: str, shards: list[dict[str, Any]]) -> Iterator[Sample]:
    pairs: Counter[str] = Counter()
    grades: Counter[str] = Counter()
    for summary in shards:
        pairs.update({key: summary.get(key, 0) for key in ("judged", "cached", "skipped", "not_selected", "missing")})
        if "by_first" in summary:
            pairs["by_first"] += summary["by_first"]
        grades.update(summary.get("grades", {}))
    pairs["judged"] -= pairs["cached"]  # in a manifest, "judged" includes the cached pairs
    for outcome, count in pairs.items():
        yield Sample(metrics.RUN_PAIRS, (run, iteration, outcome), count)
    for grade, count in grades.items():
        yield Sample(metrics.RUN_GRADES, (run, iteration, grade), count)


def _validation_samples(run: str, summaries: Mapping[int, dict[str, Any]]) -> Iterator[Sample]:
    scores = [
        (iteration, model, values)
        for iteration in sorted(summaries)
        for model, values in summaries[iteration]["val"].items()
    ]
    shown = [("base" if model == BASE else "tuned", *score) for score in scores if "@" not in (model := score[1])]
    if scores:
        shown.append(("best", *max(scores, key=lambda score: score[2]["mrr@5"] + score[2]["dcg@5"])))
    for kind, iteration, _, values in shown:
        labels = (run, kind, str(iteration))
        yield Sample(metrics.RUN_MRR, labels, values["mrr@5"])
        yield Sample(metrics.RUN_DCG, labels, values["dcg@5"])
