"""The loop: list, decide, act. Every turn starts from nothing, so that it may be killed at any point, or run twice."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from pyrite import metrics
from pyrite.controller import pods, reconcile
from pyrite.controller.api import Cluster, error_message
from pyrite.controller.manifests import ASKING, RUN_LABEL, needs_gpu, uses_server
from pyrite.controller.observed import Job, Server, Snapshot, Stored, read_job, read_server, read_stored
from pyrite.controller.reconcile import Actions, Observed
from pyrite.controller.resource import Status, TrainingRun, parse
from pyrite.controller.settings import Settings
from pyrite.errors import PyriteError, UserError
from pyrite.store import Store

_log = logging.getLogger(__name__)


class Controller:
    """Serves the TrainingRuns of one namespace.

    ``settings`` reads the chart's settings anew, so that an upgrade of the chart needs no restart.
    """

    def __init__(self, cluster: Cluster, store: Store, settings: Callable[[], Settings]):
        self._cluster, self._store, self._settings = cluster, store, settings
        # Of this turn: what was read, why the store is away, and calls for a run that were not answered.
        self._stored: dict[str, Stored] = {}
        self._away: PyriteError | None = None
        self._unanswered = 0

    def sync(self) -> Snapshot:
        """Look at everything once and do what is to be done; what was seen.

        Raises:
            ApiException, urllib3.exceptions.HTTPError: the API server refuses, or does not answer.
            UserError: the chart's settings are wrong.
        """
        self._stored, self._away, self._unanswered = {}, None, 0
        settings = self._settings()
        found = [each for each in self._cluster.runs() if "deletionTimestamp" not in each["metadata"]]
        runs = sorted(map(parse, found), key=lambda run: (run.created, run.name))
        open_runs = [run for run in runs if not reconcile.is_settled(run)]
        jobs = self._jobs(open_runs)
        server = self._server(settings) if settings.server else None
        asking = {run.name for run in open_runs if _asks(run, run.status, settings)}
        on_gpus = {name for name, its in jobs.items() if any(job.gpu and not job.ended for job in its)}
        queued: set[str] = set()
        up = down = soon = False
        for run in open_runs:
            others = {"asking": asking - {run.name}, "on_gpus": on_gpus - {run.name}}
            decision = self._do(run, jobs[run.name], settings, server, others)
            queued |= {run.name} if decision.queued else set()
            asking -= {run.name}
            if _asks(run, decision.status, settings):
                asking |= {run.name}
            if any(needs_gpu(made) for made in decision.create if made["kind"] == "Job"):
                on_gpus |= {run.name}
            up, down = up or decision.server is True, down or decision.server is False
            soon = soon or _will_ask(run, decision.status, settings)
        if server:
            used = any(_uses(run, job, settings) for run in open_runs for job in jobs[run.name])
            self._scale(settings, server, up, not used and (down or not soon))
        return Snapshot(runs, jobs, self._stored, queued, server, settings)

    def _do(
        self, run: TrainingRun, jobs: Sequence[Job], settings: Settings, server: Server | None, others: dict[str, Any]
    ) -> Actions:
        """Decide and act. Whatever is wrong with one run is shown with it, and does not stop the others."""
        try:
            decision = self._reconcile(run, jobs, settings, server, others)
            self._act(run, decision)
            return decision
        except HTTPError:
            self._unanswered += 1
            if self._unanswered > 1:
                raise  # it is not this run: the API server is away, and each call would wait for it
            return Actions(run.status)
        except Exception as error:
            return self._held_up(run, error)

    def _held_up(self, run: TrainingRun, error: Exception) -> Actions:
        if isinstance(error, ApiException):
            message = f"the cluster refuses what the run needs, and it waits: {error_message(error)}"
        elif isinstance(error, UserError):
            message = str(error)
        else:
            metrics.CONTROLLER_ERRORS.labels(type(error).__name__).inc()
            _log.exception("run %s", run.name)
            what = f"{type(error).__name__}: {error}"
            message = f"the controller cannot look after the run, and tries again; its log has more: {what}"
        _log.warning("run %s: %s", run.name, message)
        decision = reconcile.held_up(run, message, datetime.now(UTC))
        try:
            self._act(run, decision)
        except (ApiException, HTTPError) as again:
            _log.warning("run %s: this cannot be shown: %s", run.name, error_message(again))
        return decision

    def _reconcile(
        self, run: TrainingRun, jobs: Sequence[Job], settings: Settings, server: Server | None, others: dict[str, Any]
    ) -> Actions:
        now = datetime.now(UTC)
        seen = Observed(jobs=jobs, pods=pods.look(self._cluster, run, jobs, now), server=server, **others)
        if run.spec and reconcile.needs_store(run, jobs, seen.pods):
            try:
                seen = replace(seen, stored=self._read(run))
            except PyriteError as error:
                _log.warning("run %s: %s", run.name, error)
                return reconcile.held_up(run, f"the store cannot be read, and the run waits for it: {error}", now)
        return reconcile.reconcile(run, seen, settings, str(self._store), now)

    def _read(self, run: TrainingRun) -> Stored:
        """What the store holds of ``run``. A store that does not answer is asked once a turn: each time takes long."""
        if self._away:
            raise self._away
        try:
            found = self._stored[run.name] = read_stored(self._store, run)
        except UserError:
            raise  # an answer
        except PyriteError as error:
            self._away = error
            raise
        return found

    def _jobs(self, runs: Sequence[TrainingRun]) -> dict[str, list[Job]]:
        found: dict[str, list[Job]] = {run.name: [] for run in runs}
        uids = {run.name: run.uid for run in runs}
        for each in self._cluster.jobs(found) if found else ():
            name, job = each["metadata"]["labels"][RUN_LABEL], read_job(each)
            if job.owner == uids[name] or not job.ended:  # those of an earlier run count until they have ended
                found[name].append(job)
        return found

    def _server(self, settings: Settings) -> Server | None:
        assert settings.server
        found = self._cluster.server(settings.server.stateful_set)
        if found is None:
            return None
        waits = found["spec"]["replicas"] > ((found.get("status") or {}).get("readyReplicas") or 0)
        name, now = settings.server.stateful_set, datetime.now(UTC)
        return read_server(found, pods.of_server(self._cluster, settings.instance, name, now) if waits else "")

    def _scale(self, settings: Settings, server: Server, up: bool, down: bool) -> None:
        assert settings.server
        wanted = settings.server.replicas if up else 0 if down else server.replicas
        if wanted != server.replicas:
            _log.info("%s: %d replicas, now %d", settings.server.stateful_set, server.replicas, wanted)
            self._cluster.scale(settings.server.stateful_set, wanted)

    def _act(self, run: TrainingRun, decision: Actions) -> None:
        for name in decision.delete:
            _log.info("run %s: deleting %s", run.name, name)
            self._cluster.delete_job(name)
        for manifest in decision.create:
            if self._cluster.create(manifest):
                _log.info("run %s: created %s %s", run.name, manifest["kind"], manifest["metadata"]["name"])
        before, after = run.status, decision.status
        if after == before or not self._cluster.patch_status(run, after.model_dump(mode="json", by_alias=True)):
            return
        if (after.phase, after.step) != (before.phase, before.step):
            self._tell(run, after)

    def _tell(self, run: TrainingRun, status: Status) -> None:
        """Put an Event beside the run, for whoever looks: that it cannot be is no reason to do anything else."""
        kind = "Warning" if status.phase == "Failed" else "Normal"
        reason = "StepStarted" if status.phase == "Running" else status.phase
        _log.info("run %s: %s. %s", run.name, status.phase, status.message)
        at = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        try:
            self._cluster.record_event(run, kind, reason, status.message, at)
        except (ApiException, HTTPError) as error:
            _log.warning("run %s: no event: %s", run.name, error_message(error))


def _asks(run: TrainingRun, status: Status, settings: Settings) -> bool:
    """Whether a run asks the server, or waits for it."""
    return (
        run.spec is not None
        and status.phase in ("Waiting", "Running")
        and uses_server(run.spec, status.stage, settings)
    )


def _will_ask(run: TrainingRun, status: Status, settings: Settings) -> bool:
    """Whether a run that goes on asks the server at some of its steps."""
    return (
        run.spec is not None
        and status.phase in ("Waiting", "Running")
        and any(uses_server(run.spec, stage, settings) for stage in ASKING)
    )


def _uses(run: TrainingRun, job: Job, settings: Settings) -> bool:
    """Whether the pods of ``job`` may be asking the server now."""
    return run.spec is not None and not job.ended and uses_server(run.spec, job.stage, settings)
