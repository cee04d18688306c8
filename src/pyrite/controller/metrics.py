"""The controller's metrics: computed by pure functions from a snapshot, and exported after each sync."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import get_args

from pyrite import metrics
from pyrite.controller.observed import Server, Snapshot, Stored, read_stored, read_time
from pyrite.controller.resource import Phase, TrainingRun
from pyrite.controller.settings import CostSettings
from pyrite.controller.status import active_hours, budget
from pyrite.errors import PyriteError
from pyrite.manifest_metrics import step_samples
from pyrite.metrics import Sample
from pyrite.store import Store

#: How long to wait before an unreadable run is read again.
_RETRY_DELAY = timedelta(minutes=1)

_log = logging.getLogger(__name__)


class Exporter:
    """Exports each snapshot as metrics. It caches the steps of runs, because most syncs do not read the store."""

    def __init__(self, store: Store):
        self._store = store
        self._stored: dict[str, Stored] = {}
        self._retry_at: dict[str, datetime] = {}  # by the uid of a run that could not be read

    def update(self, snapshot: Snapshot, now: datetime) -> None:
        """Replace the exported samples by those of ``snapshot``. A deleted run has none."""
        self._stored = {run.uid: self._stored[run.uid] for run in snapshot.runs if run.uid in self._stored}
        for run in snapshot.runs:
            if run.name in snapshot.stored:
                self._stored[run.uid] = snapshot.stored[run.name]
        self._read_next(snapshot.runs, now)
        samples = [*cluster_samples(snapshot.runs, snapshot.server)]
        for run in snapshot.runs:
            samples += self._samples(run, snapshot, now)
        metrics.SNAPSHOT_GAUGES.replace(samples)

    def _read_next(self, runs: Sequence[TrainingRun], now: datetime) -> None:
        """After a restart, read the runs that are not cached: one per sync, so that no sync takes long."""
        self._retry_at = {run.uid: self._retry_at[run.uid] for run in runs if self._retry_at.get(run.uid, now) > now}
        skip = self._stored.keys() | self._retry_at.keys()
        missing = next((run for run in runs if run.spec and run.uid not in skip), None)
        if missing:
            try:
                self._stored[missing.uid] = read_stored(self._store, missing)
            except PyriteError as error:
                self._unreadable(missing, error, now)

    def _samples(self, run: TrainingRun, snapshot: Snapshot, now: datetime) -> list[Sample]:
        """The samples of a run. If its manifests cannot be used, only those of its status."""
        inputs = run.name in snapshot.queued, snapshot.settings.cost, now
        try:
            return [*run_samples(run, self._stored.get(run.uid), *inputs)]
        except Exception as error:
            self._unreadable(run, error, now)
            return [*run_samples(run, None, *inputs)]

    def _unreadable(self, run: TrainingRun, error: Exception, now: datetime) -> None:
        metrics.CONTROLLER_ERRORS.labels("unreadable_run").inc()
        _log.warning("run %s: no metrics of its steps: %s: %s", run.name, type(error).__name__, error)
        self._stored.pop(run.uid, None)
        self._retry_at[run.uid] = now + _RETRY_DELAY


def cluster_samples(runs: Sequence[TrainingRun], server: Server | None) -> Iterator[Sample]:
    """Samples that belong to no single run."""
    phases = Counter(run.status.phase for run in runs)
    for phase in get_args(Phase):
        yield Sample(metrics.RUNS, (phase,), phases[phase])
    if server:
        yield Sample(metrics.SERVERS, ("desired",), server.replicas)
        yield Sample(metrics.SERVERS, ("current",), server.present)
        yield Sample(metrics.SERVERS, ("ready",), server.ready)


def run_samples(
    run: TrainingRun, stored: Stored | None, queued: bool, cost: CostSettings, now: datetime
) -> Iterator[Sample]:
    """Samples of one run; ``stored`` is None if its steps were not read yet, or cannot be used."""
    yield from _status_samples(run)
    yield Sample(metrics.RUN_QUEUED, (run.name,), queued)
    if cost.dollars_per_hour:
        yield Sample(metrics.RUN_COST, (run.name,), active_hours(run.status, now) * cost.dollars_per_hour)
        if limit := budget(run, cost):
            yield Sample(metrics.RUN_BUDGET, (run.name,), limit)
    if stored and run.spec:
        yield from step_samples(run.name, [state.step for state in stored.states], stored.manifests)


def _status_samples(run: TrainingRun) -> Iterator[Sample]:
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
