"""The reconcile loop: list, decide, act. It may be killed at any point, or run twice: no sync needs an earlier one."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import dropwhile

from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from pyrite import metrics
from pyrite.controller import pods, reconcile
from pyrite.controller.api import Cluster, error_message
from pyrite.controller.manifests import RUN_LABEL, needs_gpu, uses_server
from pyrite.controller.observed import Job, Observed, Server, Snapshot, Stored, read_job, read_server, read_stored
from pyrite.controller.reconcile import Actions
from pyrite.controller.resource import Status, TrainingRun, parse
from pyrite.controller.settings import Settings
from pyrite.errors import PyriteError, UserError
from pyrite.plan import chain
from pyrite.store import Store

#: The shortest lease is five minutes.
_RENEW_INTERVAL = timedelta(minutes=1)

_log = logging.getLogger(__name__)


class Controller:
    """Serves the TrainingRuns of one namespace.

    ``settings`` reads the chart's settings at each sync, so that an upgrade of the chart needs no restart.
    """

    def __init__(self, cluster: Cluster, store: Store, settings: Callable[[], Settings]):
        self._cluster, self._store, self._settings = cluster, store, settings
        self._renewed: datetime | None = None
        # Of the current sync: the steps read, the store's error, and how many runs' API calls timed out.
        self._stored: dict[str, Stored] = {}
        self._store_error: PyriteError | None = None
        self._timeouts = 0

    def sync(self) -> Snapshot:
        """Observe all runs once and act on them; returns what was observed.

        Raises:
            ApiException, urllib3.exceptions.HTTPError: the API server refuses, or does not respond.
            UserError: the chart's settings are wrong.
        """
        self._stored, self._store_error, self._timeouts = {}, None, 0
        settings = self._settings()
        found = [each for each in self._cluster.runs() if "deletionTimestamp" not in each["metadata"]]
        runs = sorted(map(parse, found), key=lambda run: (run.created, run.name))
        open_runs = [run for run in runs if not reconcile.is_settled(run)]
        jobs = self._jobs(open_runs)
        server = self._server(settings) if settings.server else None
        # Runs whose Job Kueue has not admitted use neither the server nor GPUs.
        queued = {name for name, owned in jobs.items() if any(job.queued and not job.ended for job in owned)}
        server_users = {run.name for run in open_runs if _uses_server(run, run.status, settings)} - queued
        gpu_users = {name for name, owned in jobs.items() if any(job.gpu and not job.ended for job in owned)} - queued
        decided: list[tuple[TrainingRun, Actions]] = []
        for run in open_runs:
            own = {run.name}
            observed = Observed(
                jobs[run.name], server=server, server_users=server_users - own, gpu_users=gpu_users - own
            )
            actions = self._sync_run(run, observed, settings)
            decided.append((run, actions))
            server_users.discard(run.name)
            if run.name not in queued and _uses_server(run, actions.status, settings):
                server_users.add(run.name)
            if any(needs_gpu(manifest) for manifest in actions.create if manifest["kind"] == "Job"):
                gpu_users.add(run.name)
        if server:
            wanted = {actions.want_server for _, actions in decided}
            active = [(run, actions) for run, actions in decided if run.name not in queued]
            needed = any(_may_use_server(run, actions.status, settings) for run, actions in active)
            in_use = any(_job_uses_server(run, job, settings) for run, _ in active for job in jobs[run.name])
            in_use |= any(actions.create and _uses_server(run, actions.status, settings) for run, actions in decided)
            self._scale(settings, server, True in wanted, not in_use and (False in wanted or not needed))
        waiting = {run.name for run, actions in decided if actions.queued}
        return Snapshot(runs, self._stored, waiting, server, settings)

    def _sync_run(self, run: TrainingRun, observed: Observed, settings: Settings) -> Actions:
        """Decide and act for one run. An error is shown in its status and does not stop the other runs."""
        try:
            actions = self._decide(run, observed, settings)
            self._apply(run, actions)
            return actions
        except HTTPError:
            self._timeouts += 1
            if self._timeouts > 1:
                raise  # the API server is down: do not wait for a timeout for each run
            return Actions(run.status)
        except Exception as error:
            return self._report_error(run, error)

    def _report_error(self, run: TrainingRun, error: Exception) -> Actions:
        if isinstance(error, ApiException):
            message = f"waiting: the API server refuses a request for the run: {error_message(error)}"
        elif isinstance(error, UserError):
            message = str(error)
        else:
            metrics.CONTROLLER_ERRORS.labels(type(error).__name__).inc()
            _log.exception("run %s", run.name)
            cause = f"{type(error).__name__}: {error}"
            message = f"the controller failed on this run ({cause}) and will retry; its log shows the traceback."
        _log.warning("run %s: %s", run.name, message)
        actions = reconcile.report_error(run, message, datetime.now(UTC))
        try:
            self._apply(run, actions)
        except (ApiException, HTTPError) as status_error:
            _log.warning("run %s: cannot update its status: %s", run.name, error_message(status_error))
        return actions

    def _decide(self, run: TrainingRun, observed: Observed, settings: Settings) -> Actions:
        """The actions for a run, after reading its pods and, if needed, the store."""
        now = datetime.now(UTC)
        observed = replace(observed, pods=pods.diagnose(self._cluster, run, observed.jobs, now))
        if reconcile.needs_store(run, observed.jobs, observed.pods, settings, now):
            try:
                observed = replace(observed, stored=self._read_stored(run))
            except PyriteError as error:
                _log.warning("run %s: %s", run.name, error)
                return reconcile.report_error(run, f"waiting: the store cannot be read: {error}", now)
        return reconcile.reconcile(run, observed, settings, str(self._store), now)

    def _read_stored(self, run: TrainingRun) -> Stored:
        """Read the run's steps. If the store does not respond, the other runs of this sync do not try it again."""
        if self._store_error:
            raise self._store_error
        try:
            found = self._stored[run.name] = read_stored(self._store, run)
        except UserError:
            raise  # the store responds; only this run is affected
        except PyriteError as error:
            self._store_error = error
            raise
        return found

    def _jobs(self, runs: Sequence[TrainingRun]) -> dict[str, list[Job]]:
        found: dict[str, list[Job]] = {run.name: [] for run in runs}
        uids = {run.name: run.uid for run in runs}
        for each in self._cluster.jobs(found) if found else ():
            name, job = each["metadata"]["labels"][RUN_LABEL], read_job(each)
            if job.owner == uids[name] or not job.ended:  # an earlier run's Jobs count until they end
                found[name].append(job)
        return found

    def _server(self, settings: Settings) -> Server | None:
        assert settings.server
        name = settings.server.stateful_set
        found = self._cluster.server(name)
        if found is None:
            return None
        server = read_server(found)
        if server.ready >= server.replicas:
            return server
        coming, problem = pods.diagnose_server(self._cluster, settings.instance, name, datetime.now(UTC))
        return replace(server, coming=coming, problem=problem)

    def _scale(self, settings: Settings, server: Server, up: bool, down: bool) -> None:
        assert settings.server
        wanted = settings.server.replicas if up else 0 if down else server.replicas
        if wanted:
            self._renew_lease(settings.server.stateful_set)
        if wanted != server.replicas:
            _log.info("%s: scaling from %d to %d replicas", settings.server.stateful_set, server.replicas, wanted)
            self._cluster.scale(settings.server.stateful_set, wanted)

    def _renew_lease(self, name: str) -> None:
        """Renew the server's lease. It expires if this controller dies: see ``pyrite.controller.lease``."""
        now = datetime.now(UTC)
        if self._renewed is None or now - self._renewed > _RENEW_INTERVAL:
            self._cluster.renew_lease(name, now)
            self._renewed = now

    def _apply(self, run: TrainingRun, actions: Actions) -> None:
        for name in actions.delete:
            _log.info("run %s: deleting %s", run.name, name)
            self._cluster.delete_job(name)
        for name in actions.expire:
            _log.info("run %s: %s has exceeded its deadline", run.name, name)
            self._cluster.expire_job(name)
        for manifest in actions.create:
            if self._cluster.create(manifest):
                _log.info("run %s: created %s %s", run.name, manifest["kind"], manifest["metadata"]["name"])
        before, after = run.status, actions.status
        if after == before or not self._cluster.patch_status(run, after.model_dump(mode="json", by_alias=True)):
            return
        if (after.phase, after.step) != (before.phase, before.step):
            self._record_event(run, after)

    def _record_event(self, run: TrainingRun, status: Status) -> None:
        """Record an Event of the run. An error is only logged, because nothing depends on Events."""
        kind = "Warning" if status.phase == "Failed" else "Normal"
        reason = "StepStarted" if status.phase == "Running" else status.phase
        _log.info("run %s: %s. %s", run.name, status.phase, status.message)
        at = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        try:
            self._cluster.record_event(run, kind, reason, status.message, at)
        except (ApiException, HTTPError) as error:
            _log.warning("run %s: cannot record an Event: %s", run.name, error_message(error))


def _uses_server(run: TrainingRun, status: Status, settings: Settings) -> bool:
    """Whether a run uses the vLLM server now, or waits for it."""
    return run.spec is not None and _is_active(status) and uses_server(run.spec, status.stage, settings)


def _may_use_server(run: TrainingRun, status: Status, settings: Settings) -> bool:
    """Whether the current or a later step of an active run uses the vLLM server."""
    if run.spec is None or not _is_active(status):
        return False
    current = (status.stage, status.iteration)
    remaining = dropwhile(lambda step: status.stage and step[:2] != current, chain(run.spec))
    return any(uses_server(run.spec, step.stage, settings) for step in remaining)


def _is_active(status: Status) -> bool:
    return status.phase in ("Waiting", "Running")


def _job_uses_server(run: TrainingRun, job: Job, settings: Settings) -> bool:
    """Whether the Job's pods may be sending requests to the vLLM server."""
    return run.spec is not None and not job.ended and uses_server(run.spec, job.stage, settings)
