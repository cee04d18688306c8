"""What the metrics show of runs: a pure function of what one turn saw, and the edge that sets it."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, get_args

from pyrite import metrics
from pyrite.controller.resource import Phase, TrainingRun
from pyrite.controller.seen import Job, Server, Stored, Turn, read_stored, read_time
from pyrite.controller.settings import CostSettings
from pyrite.controller.showing import BASE, step_seconds
from pyrite.errors import PyriteError
from pyrite.metrics import Sample
from pyrite.store import Store

#: A stage and its iteration, if it has one.
Key = tuple[str, int | None]


class Exporter:
    """Shows each turn as metrics. It remembers what the store last said of a run, as most turns do not ask it."""

    def __init__(self, store: Store):
        self._store = store
        self._stored: dict[str, Stored] = {}

    def show(self, turn: Turn, now: datetime) -> None:
        """Replace what is shown; runs that are gone from the cluster are forgotten."""
        self._stored = {run.uid: self._stored[run.uid] for run in turn.runs if run.uid in self._stored}
        for run in turn.runs:
            if run.name in turn.stored:
                self._stored[run.uid] = turn.stored[run.name]
        self._look_up_one(turn.runs)
        samples = [*of_cluster(turn.runs, turn.server)]
        for run in turn.runs:
            samples += of_run(run, self._stored.get(run.uid), turn.jobs.get(run.name, ()), turn.settings.cost, now)
        metrics.SHOWN.replace(samples)

    def _look_up_one(self, runs: Sequence[TrainingRun]) -> None:
        """After a start nothing is known of runs that just go on, or have ended. One a turn: no turn gets long."""
        unknown = next((run for run in runs if run.spec and run.uid not in self._stored), None)
        if unknown:
            try:
                self._stored[unknown.uid] = read_stored(self._store, unknown)
            except PyriteError:
                return  # the loop says so where it matters; the next turn tries again


def of_cluster(runs: Sequence[TrainingRun], server: Server | None) -> Iterator[Sample]:
    """What belongs to no one run."""
    for phase, number in Counter(run.status.phase for run in runs).items():
        yield Sample(metrics.RUNS, (phase,), number)
    if server:
        yield Sample(metrics.SERVERS, ("wanted",), server.replicas)
        yield Sample(metrics.SERVERS, ("present",), server.present)
        yield Sample(metrics.SERVERS, ("ready",), server.ready)


def of_run(
    run: TrainingRun, stored: Stored | None, jobs: Sequence[Job], cost: CostSettings, now: datetime
) -> Iterator[Sample]:
    """All that is shown of a run; ``stored`` is None where the store was not asked yet."""
    yield from _of_status(run)
    if stored is None or run.spec is None:
        return
    yield Sample(metrics.RUN_ITERATIONS, (run.name,), run.spec.iterations)
    yield Sample(metrics.RUN_STEPS, (run.name,), len(stored.states))
    finished = {state.step for state in stored.states if state.state == "done"}
    yield Sample(metrics.RUN_STEPS_DONE, (run.name,), len(finished))
    steps = {(state.step.stage, state.step.iteration) for state in stored.states}
    whole = {key for key in steps if all(s.state == "done" for s in stored.states if s.step[:2] == key)}
    by_name = {step.name: step for step in finished}
    summaries: dict[Key, list[dict[str, Any]]] = {}
    for name, step in sorted(by_name.items()):
        summaries.setdefault((step.stage, step.iteration), []).append(stored.manifests[name]["summary"])
    yield from _of_time(run, {name: stored.manifests[name] for name in by_name}, whole, jobs, cost, now)
    yield from _of_results(run.name, {key: summaries[key] for key in whole})


def _of_status(run: TrainingRun) -> Iterator[Sample]:
    status = run.status
    for phase in get_args(Phase):
        yield Sample(metrics.RUN_PHASE, (run.name, phase), status.phase == phase)
    if status.shards:
        yield Sample(metrics.RUN_SHARDS, (run.name,), status.shards.total)
        yield Sample(metrics.RUN_SHARDS_DONE, (run.name,), status.shards.done)
    if status.started:
        yield Sample(metrics.RUN_STARTED, (run.name,), read_time(status.started).timestamp())
    if status.finished:
        yield Sample(metrics.RUN_FINISHED, (run.name,), read_time(status.finished).timestamp())
    if status.gate_passed is not None:
        yield Sample(metrics.RUN_GATE, (run.name,), status.gate_passed)


def _of_time(
    run: TrainingRun,
    manifests: Mapping[str, Any],
    whole: set[Key],
    jobs: Sequence[Job],
    cost: CostSettings,
    now: datetime,
) -> Iterator[Sample]:
    """Wall time and cost. What the store was last asked may be older than the Job that runs now."""
    seconds = step_seconds(manifests)
    going = {(job.stage, job.iteration): job for job in jobs if not job.ended and not job.queued}
    named = {_name(key): key for key in {*whole, *going}}
    for name, taken in seconds.items():
        if named.get(name) in whole:
            stage, iteration = named[name]
            yield Sample(metrics.RUN_STAGE_SECONDS, (run.name, stage, _number(iteration)), taken)
    if cost.dollars_per_hour:
        ended = sum(taken for name, taken in seconds.items() if named.get(name) not in going)
        running = sum((now - job.created).total_seconds() for job in going.values())
        yield Sample(metrics.RUN_COST, (run.name,), (ended + running) / 3600 * cost.dollars_per_hour)
        if cost.budget_dollars:
            yield Sample(metrics.RUN_BUDGET, (run.name,), cost.budget_dollars)


def _of_results(run: str, summaries: Mapping[Key, list[dict[str, Any]]]) -> Iterator[Sample]:
    """What whole steps have come to; a step that is judged in part says nothing yet."""
    for (stage, iteration), found in sorted(summaries.items(), key=lambda entry: (entry[0][0], entry[0][1] or 0)):
        at = _number(iteration)
        if stage == "judge":
            yield from _of_judging(run, at, found)
        elif stage == "mine":
            for kind in ("hard", "easy", "earlier"):
                if kind in found[0]:
                    yield Sample(metrics.RUN_EXAMPLES, (run, at, kind), found[0][kind])
        elif stage == "finetune" and "loss" in found[0]:
            yield Sample(metrics.RUN_LOSS, (run, at), found[0]["loss"])
    yield from _of_validation(run, {key[1] or 0: found[0] for key, found in summaries.items() if key[0] == "validate"})


def _of_judging(run: str, iteration: str, found: list[dict[str, Any]]) -> Iterator[Sample]:
    sums: Counter[str] = Counter()
    grades: Counter[str] = Counter()
    for summary in found:
        sums.update({key: summary.get(key, 0) for key in ("judged", "kept", "skipped", "not_chosen", "missing")})
        grades.update(summary.get("grades", {}))
    sums["judged"] -= sums["kept"]  # the manifest's counts all that have a judgment
    for outcome, number in sums.items():
        yield Sample(metrics.RUN_PAIRS, (run, iteration, outcome), number)
    for grade, number in grades.items():
        yield Sample(metrics.RUN_GRADES, (run, iteration, grade), number)


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


def _name(key: Key) -> str:
    return key[0] if key[1] is None else f"{key[0]}-{key[1]}"


def _number(iteration: int | None) -> str:
    return "" if iteration is None else str(iteration)
