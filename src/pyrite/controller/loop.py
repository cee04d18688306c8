"""The loop: list, decide, act. Every turn starts from nothing, so that it may be killed at any point, or run twice."""

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from kubernetes.client.exceptions import ApiException

from pyrite.controller import deciding, words
from pyrite.controller.api import Cluster, said
from pyrite.controller.deciding import Decision, Seen
from pyrite.controller.manifests import RUN_LABEL, needs_gpu, uses_server
from pyrite.controller.resource import Status, TrainingRun, parse
from pyrite.controller.seen import Job, Server, Stored, Turn, read_job, read_server, read_stored
from pyrite.controller.settings import Settings
from pyrite.errors import PyriteError
from pyrite.store import Store

_SERVERS_FAULT = 500

#: Kubernetes' own label of a Job's pods.
JOB_LABEL = "batch.kubernetes.io/job-name"

_log = logging.getLogger(__name__)


class Loop:
    """Serves the TrainingRuns of one namespace.

    ``settings`` reads the chart's settings anew, so that an upgrade of the chart needs no restart.
    """

    def __init__(self, cluster: Cluster, store: Store, settings: Callable[[], Settings]):
        self._cluster, self._store, self._settings = cluster, store, settings
        self._stored: dict[str, Stored] = {}  # of this turn

    def turn(self) -> Turn:
        """Look at everything once and do what is to be done; what was seen.

        Raises:
            ApiException, urllib3.exceptions.HTTPError: the API server refuses, or does not answer.
            UserError: the chart's settings are wrong.
        """
        self._stored = {}
        settings = self._settings()
        runs = sorted((parse(found) for found in self._cluster.runs()), key=lambda run: (run.created, run.name))
        open_runs = [run for run in runs if not deciding.is_settled(run)]
        jobs = self._jobs(open_runs)
        server = self._server(settings) if settings.server else None
        asking = {run.name for run in open_runs if _asks(run, run.status, settings)}
        on_gpus = {name for name, its in jobs.items() if any(job.gpu and not job.ended for job in its)}
        up = down = False
        for run in open_runs:
            others = {"asking": asking - {run.name}, "on_gpus": on_gpus - {run.name}}
            decision = self._do(run, jobs[run.name], settings, server, others)
            asking -= {run.name}
            if _asks(run, decision.status, settings):
                asking |= {run.name}
            if any(needs_gpu(made) for made in decision.create if made["kind"] == "Job"):
                on_gpus |= {run.name}
            up, down = up or decision.server is True, down or decision.server is False
        if server:
            self._scale(settings, server, up, down or not open_runs, bool(asking))
        return Turn(runs, jobs, self._stored, server, settings)

    def _do(
        self, run: TrainingRun, jobs: Sequence[Job], settings: Settings, server: Server | None, others: dict[str, Any]
    ) -> Decision:
        """Decide and act; what the API server will not have is shown with the run, and does not stop the others."""
        decision = self._decide(run, jobs, settings, server, others)
        try:
            self._act(run, decision)
        except ApiException as error:
            if error.status is None or error.status >= _SERVERS_FAULT:
                raise
            _log.warning("run %s: %s", run.name, said(error))
            message = f"the cluster refuses what the run needs, and it waits: {said(error)}"
            decision = deciding.held_up(run, message, datetime.now(UTC))
            self._act(run, decision)
        return decision

    def _decide(
        self, run: TrainingRun, jobs: Sequence[Job], settings: Settings, server: Server | None, others: dict[str, Any]
    ) -> Decision:
        now = datetime.now(UTC)
        stuck, said = self._pods(run, jobs, now)
        stored = None
        try:
            if run.spec and deciding.needs_store(run, jobs, stuck):
                stored = self._stored[run.name] = read_stored(self._store, run)
        except PyriteError as error:
            _log.warning("run %s: %s", run.name, error)
            return deciding.held_up(run, f"the store cannot be read, and the run waits for it: {error}", now)
        seen = Seen(jobs=jobs, trouble=stuck, last_words=said, stored=stored, server=server, **others)
        return deciding.decide(run, seen, settings, str(self._store), now)

    def _pods(self, run: TrainingRun, jobs: Sequence[Job], now: datetime) -> tuple[str, str]:
        """Why the run's pods do not run, and what the last one that failed said."""
        if not jobs:
            return "", ""
        pods = self._cluster.pods(run.name)
        of = {job.name: [pod for pod in pods if pod["metadata"]["labels"].get(JOB_LABEL) == job.name] for job in jobs}
        going = [job for job in jobs if not job.ended]
        stuck = words.trouble([pod for job in going for pod in of[job.name]], now)
        for job in going:
            age = (now - job.created).total_seconds()
            if not of[job.name] and not job.queued and not job.done and age > deciding.SECONDS_WITHOUT_POD:
                refused = self._cluster.refusals(job.name)
                stuck = f"no pod of {job.name} can be made: {refused[-1]}" if refused else stuck
        return stuck, words.last_words([pod for job in jobs if job.ended for pod in of[job.name]])

    def _jobs(self, runs: Sequence[TrainingRun]) -> dict[str, list[Job]]:
        found: dict[str, list[Job]] = {run.name: [] for run in runs}
        for job in self._cluster.jobs(found) if found else ():
            found[job["metadata"]["labels"][RUN_LABEL]].append(read_job(job))
        return found

    def _server(self, settings: Settings) -> Server | None:
        assert settings.server
        found = self._cluster.server(settings.server.stateful_set)
        if found is None:
            return None
        waits = found["spec"]["replicas"] and not (found.get("status") or {}).get("readyReplicas")
        pods = self._cluster.server_pods(settings.instance) if waits else []
        return read_server(found, words.trouble(pods, datetime.now(UTC)))

    def _scale(self, settings: Settings, server: Server, up: bool, down: bool, asked: bool) -> None:
        """Up where a run asks; to zero where nobody does and somebody needs its GPUs, or no run is left."""
        assert settings.server
        wanted = settings.server.replicas if up else 0 if down and not asked else server.replicas
        if wanted != server.replicas:
            _log.info("%s: %d replicas, now %d", settings.server.stateful_set, server.replicas, wanted)
            self._cluster.scale(settings.server.stateful_set, wanted)

    def _act(self, run: TrainingRun, decision: Decision) -> None:
        for name in decision.delete:
            _log.info("run %s: deleting %s", run.name, name)
            self._cluster.delete_job(name)
        for manifest in decision.create:
            if self._cluster.create(manifest):
                _log.info("run %s: created %s %s", run.name, manifest["kind"], manifest["metadata"]["name"])
        before, after = run.status, decision.status
        if after == before:
            return
        self._cluster.show(run, after.model_dump(mode="json", by_alias=True))
        if (after.phase, after.step) != (before.phase, before.step):
            kind = "Warning" if after.phase == "Failed" else "Normal"
            reason = "StepStarted" if after.phase == "Running" else after.phase
            _log.info("run %s: %s. %s", run.name, after.phase, after.message)
            at = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
            self._cluster.tell(run, kind, reason, after.message, at)


def _asks(run: TrainingRun, status: Status, settings: Settings) -> bool:
    """Whether a run asks the server, or waits for it."""
    return (
        run.spec is not None
        and status.phase in ("Waiting", "Running")
        and uses_server(run.spec, status.stage, settings)
    )
