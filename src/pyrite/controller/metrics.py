"""What the metrics show of runs: a pure function of what one turn saw, and the edge that sets it."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, get_args

from pyrite import metrics
from pyrite.controller.observed import Job, Server, Snapshot, Stored, read_stored, read_time
from pyrite.controller.resource import Phase, TrainingRun
from pyrite.controller.settings import CostSettings
from pyrite.errors import PyriteError
from pyrite.manifest_metrics import run_samples, step_seconds
from pyrite.metrics import Sample
from pyrite.store import Store

#: How long what could not be read of a run is left alone.
_PAUSE = timedelta(minutes=1)

_log = logging.getLogger(__name__)


class Exporter:
    """Shows each turn as metrics. It remembers what the store last said of a run, as most turns do not ask it."""

    def __init__(self, store: Store):
        self._store = store
        self._stored: dict[str, Stored] = {}
        self._again: dict[str, datetime] = {}  # when what could not be read of a run is to be tried again

    def show(self, turn: Snapshot, now: datetime) -> None:
        """Replace what is shown; runs that are gone from the cluster are forgotten."""
        self._stored = {run.uid: self._stored[run.uid] for run in turn.runs if run.uid in self._stored}
        for run in turn.runs:
            if run.name in turn.stored:
                self._stored[run.uid] = turn.stored[run.name]
        self._look_up_one(turn.runs, now)
        samples = [*of_cluster(turn.runs, turn.server)]
        for run in turn.runs:
            samples += self._of_run(run, turn, now)
        metrics.SHOWN.replace(samples)

    def _look_up_one(self, runs: Sequence[TrainingRun], now: datetime) -> None:
        """After a start nothing is known of runs that just go on, or have ended. One a turn: no turn gets long."""
        self._again = {run.uid: self._again[run.uid] for run in runs if self._again.get(run.uid, now) > now}
        known = self._stored.keys() | self._again.keys()
        unknown = next((run for run in runs if run.spec and run.uid not in known), None)
        if unknown:
            try:
                self._stored[unknown.uid] = read_stored(self._store, unknown)
            except PyriteError as error:
                self._unreadable(unknown, error, now)

    def _of_run(self, run: TrainingRun, turn: Snapshot, now: datetime) -> list[Sample]:
        """A run of which the store holds nonsense is shown by its status alone, and holds up no other."""
        rest = turn.jobs.get(run.name, ()), run.name in turn.queued, turn.settings.cost, now
        try:
            return [*of_run(run, self._stored.get(run.uid), *rest)]
        except Exception as error:
            self._unreadable(run, error, now)
            return [*of_run(run, None, *rest)]

    def _unreadable(self, run: TrainingRun, error: Exception, now: datetime) -> None:
        metrics.CONTROLLER_ERRORS.labels("unreadable").inc()
        _log.warning("no metrics of what run %s has come to: %s: %s", run.name, type(error).__name__, error)
        self._stored.pop(run.uid, None)
        self._again[run.uid] = now + _PAUSE


def of_cluster(runs: Sequence[TrainingRun], server: Server | None) -> Iterator[Sample]:
    """What belongs to no one run."""
    phases = Counter(run.status.phase for run in runs)
    for phase in get_args(Phase):
        yield Sample(metrics.RUNS, (phase,), phases[phase])
    if server:
        yield Sample(metrics.SERVERS, ("wanted",), server.replicas)
        yield Sample(metrics.SERVERS, ("present",), server.present)
        yield Sample(metrics.SERVERS, ("ready",), server.ready)


def of_run(
    run: TrainingRun, stored: Stored | None, jobs: Sequence[Job], queued: bool, cost: CostSettings, now: datetime
) -> Iterator[Sample]:
    """All that is shown of a run; ``stored`` is None where the store was not asked yet, or holds nonsense."""
    yield from _of_status(run)
    yield Sample(metrics.RUN_QUEUED, (run.name,), queued)
    if stored is None or run.spec is None:
        return
    finished = {state.step.name for state in stored.states if state.state == "done"}
    manifests = {name: stored.manifests[name] for name in finished}
    yield from run_samples(run.name, [state.step for state in stored.states], manifests)
    if cost.dollars_per_hour:
        yield Sample(metrics.RUN_COST, (run.name,), _hours(manifests, jobs, now) * cost.dollars_per_hour)
        if cost.budget_dollars:
            yield Sample(metrics.RUN_BUDGET, (run.name,), cost.budget_dollars)


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


def _hours(manifests: Mapping[str, Any], jobs: Sequence[Job], now: datetime) -> float:
    """Hours of all steps, the running one too. What the store was last asked may be older than the Job that runs."""
    going = {_name(job): job for job in jobs if not job.ended and not job.queued}
    ended = sum(taken for name, taken in step_seconds(manifests).items() if name not in going)
    return (ended + sum((now - job.created).total_seconds() for job in going.values())) / 3600


def _name(job: Job) -> str:
    return job.stage if job.iteration is None else f"{job.stage}-{job.iteration}"
