"""An in-memory Kubernetes API. A real one is too slow for thousands of syncs, and cannot fail at a chosen call.

It has the objects that the controller uses: runs, Jobs, pods and one StatefulSet. Jobs end when a test ends them.
tests/real/cluster uses a real API.
"""

import copy
import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import yaml

from pyrite.controller.api import JOB_LABEL
from pyrite.controller.manifests import ITERATION_LABEL, LLM_STAGES, RUN_CONFIG_LABEL, RUN_LABEL, STAGE_LABEL, needs_gpu
from pyrite.controller.resource import TrainingRun, parse
from pyrite.plan import STAGES, Step, probe_key, survey
from pyrite.spec import RunSpec

Object = dict[str, Any]


def now() -> str:
    """A Kubernetes timestamp. The controller compares timestamps with the real clock."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class ControllerKilled(BaseException):
    """The controller died during a sync. Not an Exception, because the controller handles those."""


class FakeStore:
    """The manifests of runs, with the read methods of a Store."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        #: The number of candidates that a retrieve step finds.
        self.candidates = 100

    def __str__(self) -> str:
        return "s3://bucket/store"

    def keys(self, prefix: str) -> list[str]:
        return sorted(key for key in self.files if key.startswith(f"{prefix}/"))

    def exists(self, key: str) -> bool:
        return key in self.files

    def read(self, key: str) -> bytes:
        return self.files[key]

    def manifests(self, run: str) -> dict[str, Object]:
        found = [json.loads(self.files[key]) for key in self.keys(f"runs/{run}/steps")]
        return {manifest["step"]: manifest for manifest in found}

    def finish(self, spec: RunSpec, steps: Sequence[Step]) -> bool:
        """Write the steps' manifests as workers do, with external digests; False if a step lacks its inputs."""
        external = {name: f"digest of {name}" for stage in STAGES.values() for name in stage.external}
        states = [state for state in survey(spec, self.manifests(spec.name), external) if state.step in steps]
        if any(state.state == "waiting" for state in states):
            return False
        for state in states:
            digest = hashlib.sha256(str(state.key).encode()).hexdigest()
            manifest = {
                "step": state.step.name,
                "key": state.key,
                "external": {name: external[name] for name in STAGES[state.step.stage].external},
                "inputs": dict(state.inputs or {}),
                "settings": {},
                "outputs": [{"key": state.step.name, "sha256": digest}],
                "summary": {"candidates": self.candidates} if state.step.stage == "retrieve" else _summary(state.step),
                "started": "2026-11-23T08:00:00+00:00",
                "finished": "2026-11-23T08:30:00+00:00",
            }
            self.files[f"runs/{spec.name}/steps/{state.step.name}.json"] = json.dumps(manifest).encode()
        return True


def probe(spec: RunSpec, go: bool | None, finished: str) -> bytes:
    """The fields of probe.json that the controller reads. `pyrite probe` on the cluster is in tests/real."""
    checks = [
        {"name": "not flat", "passed": bool(go), "found": "shares of 25%"},
        {"name": "other", "passed": True, "found": "-"},
    ]
    return json.dumps({"key": probe_key(spec), "go": go, "checks": checks, "finished": finished}).encode()


def _summary(step: Step) -> Object:
    scores = {"mrr@5": 0.5 + 0.1 * (step.iteration or 0), "dcg@5": 0.6}
    if step.stage == "validate":
        return {"val": {f"iteration-{step.iteration}" if step.iteration else "base": scores}}
    if step.stage == "evaluate":
        return {"chosen": "iteration-1", "test": {"base": scores, "iteration-1": scores}, "passed": True}
    return {}


class FakeCluster:
    """The methods of ``pyrite.controller.api.Cluster``, in memory.

    ``violations`` lists the controller's violations of rules. Two controllers may break some rules for a moment, so
    those are checked only with ``single_controller``.
    """

    def __init__(self, store: FakeStore, single_controller: bool = True) -> None:
        self._store, self._single_controller = store, single_controller
        self._versions = itertools.count(1)
        self.violations: list[str] = []
        self.resources: dict[str, Object] = {}
        self.created_jobs: dict[str, Object] = {}
        self.run_configs: dict[str, Object] = {}
        self.replicas = self.present = 0
        self.renewed = datetime.fromtimestamp(0, UTC)
        #: Calls until the controller is killed.
        self.kill_after: int | None = None
        self.pod_list: list[Object] = []
        self.server_pod_list: list[Object] = []
        self.event_lists: dict[str, list[Object]] = {}
        #: Errors at the creation of a Job, by its run, or of an Event ("event").
        self.errors: dict[str, Exception] = {}
        self.calls = 0
        #: The results of the probes to come.
        self.probes: list[bool | None] = []

    def add(self, name: str, spec: Object) -> None:
        version = str(next(self._versions))
        metadata = {"name": name, "uid": f"uid-{version}", "generation": 1, "creationTimestamp": now()}
        self.resources[name] = {"metadata": {**metadata, "resourceVersion": version}, "spec": spec}

    def edit(self, name: str, **changes: Any) -> None:
        found = self.resources[name]
        if found["spec"] != {**found["spec"], **changes}:
            found["spec"] |= changes
            found["metadata"]["generation"] += 1
            found["metadata"]["resourceVersion"] = str(next(self._versions))

    def run(self, name: str) -> TrainingRun:
        return parse(copy.deepcopy(self.resources[name]))

    def unfinished(self, name: str | None = None) -> list[Object]:
        return [
            job
            for job in self.created_jobs.values()
            if not job["status"].get("conditions") and name in (None, job["metadata"]["labels"][RUN_LABEL])
        ]

    def end(self, job: Object, condition: str, reason: str = "Test") -> None:
        job["status"]["conditions"] = [
            {"type": condition, "status": "True", "reason": reason, "message": "by the test"}
        ]

    def complete(self, job: Object) -> None:
        """The Job's pods finish its steps, if they can be scheduled and a judge is ready."""
        if job["spec"].get("suspend"):
            return
        if (needs_gpu(job) and self.present) or (self._needs_server(job) and not min(self.present, self.replicas)):
            return
        labels = job["metadata"]["labels"]
        if labels[STAGE_LABEL] == "probe":
            go = self.probes.pop(0)
            self._store.files[f"runs/{labels[RUN_LABEL]}/probe/probe.json"] = probe(self._spec(job), go, str(uuid4()))
            self.end(job, "Complete" if go else "Failed")
            return
        iteration = labels.get(ITERATION_LABEL)
        number = None if iteration is None else int(iteration)
        indexed = job["spec"].get("completionMode") == "Indexed"
        shards = range(job["spec"]["completions"]) if indexed else [None]
        if self._store.finish(self._spec(job), [Step(labels[STAGE_LABEL], number, shard) for shard in shards]):
            self.end(job, "Complete")
        else:
            self.violations.append(f"{job['metadata']['name']} was started before its inputs were ready")
            self.end(job, "Failed")

    def _spec(self, job: Object) -> RunSpec:
        """The spec that the Job's pods mount. The run may have been edited after the Job was created."""
        config = self.run_configs[job["metadata"]["labels"][RUN_CONFIG_LABEL]]
        return RunSpec.model_validate(yaml.safe_load(config["data"]["run.yaml"]))

    def remove_deleted(self) -> None:
        """The pods of deleted Jobs end, and the Jobs are gone."""
        jobs = self.created_jobs.items()
        self.created_jobs = {name: job for name, job in jobs if "deletionTimestamp" not in job["metadata"]}

    def remove_ended(self) -> None:
        """Ended Jobs are gone, as after their ttlSecondsAfterFinished."""
        self.created_jobs = {job["metadata"]["name"]: job for job in self.unfinished()}

    def scale_pods(self) -> None:
        """The StatefulSet's pods start or end."""
        self.present = self.replicas

    # --- the methods of Cluster --------------------------------------------------------------------------------------

    def _call(self) -> None:
        self.calls += 1
        if self.kill_after is not None:
            self.kill_after -= 1
            if self.kill_after < 0:
                raise ControllerKilled

    def runs(self) -> list[Object]:
        self._call()
        return copy.deepcopy(list(self.resources.values()))

    def jobs(self, runs: Iterable[str]) -> list[Object]:
        self._call()
        wanted = set(runs)
        jobs = self.created_jobs.values()
        return [copy.deepcopy(job) for job in jobs if job["metadata"]["labels"][RUN_LABEL] in wanted]

    def pods(self, run: str) -> list[Object]:
        self._call()
        del run
        return [pod for pod in self.pod_list if pod["status"].get("phase") != "Failed"]

    def failed_pods(self, job: str) -> list[Object]:
        self._call()
        pods = [pod for pod in self.pod_list if pod["metadata"]["labels"][JOB_LABEL] == job]
        return [pod for pod in pods if pod["status"].get("phase") == "Failed"]

    def server_pods(self, instance: str) -> list[Object]:
        self._call()
        del instance
        return self.server_pod_list

    def events(self, name: str) -> list[Object]:
        self._call()
        return self.event_lists.get(name, [])

    def server(self, name: str) -> Object | None:
        self._call()
        del name
        status = {"replicas": self.present, "readyReplicas": min(self.present, self.replicas)}
        return {"spec": {"replicas": self.replicas}, "status": status}

    def scale(self, name: str, replicas: int) -> None:
        self._call()
        del name
        admitted = [job for job in self.unfinished() if not job["spec"].get("suspend")]
        if replicas == 0 and any(map(self._needs_server, admitted)):
            self._forbid("the server is scaled down while a run uses it")
        if replicas and datetime.now(UTC) - self.renewed > timedelta(minutes=5):
            self.violations.append("the server is scaled up under an expired lease")
        self.replicas = replicas

    def renew_lease(self, name: str, now: datetime) -> None:
        self._call()
        del name
        self.renewed = now

    def lease(self, name: str) -> datetime:
        self._call()
        del name
        return self.renewed

    def create(self, manifest: Object) -> bool:
        self._call()
        name = manifest["metadata"]["name"]
        if manifest["kind"] == "ConfigMap":
            return self.run_configs.setdefault(name, manifest) is manifest
        if name in self.created_jobs:
            return False
        run = manifest["metadata"]["labels"][RUN_LABEL]
        if run in self.errors:
            raise self.errors[run]
        if self.unfinished(run):
            self._forbid(f"run {run} has two Jobs at once")
        if needs_gpu(manifest) and self.present:
            self._forbid(f"{name} waits for GPUs that the server holds")
        job = copy.deepcopy(manifest)
        job["metadata"]["creationTimestamp"] = now()
        job["status"] = {}
        self.created_jobs[name] = job
        return True

    def delete_job(self, name: str) -> None:
        self._call()
        if name in self.created_jobs:
            self.created_jobs[name]["metadata"]["deletionTimestamp"] = now()

    def expire_job(self, name: str) -> None:
        self._call()
        if name in self.created_jobs:
            self.end(self.created_jobs[name], "Failed", "DeadlineExceeded")

    def patch_status(self, run: TrainingRun, status: Object) -> bool:
        self._call()
        found = self.resources.get(run.name)
        if not found or found["metadata"]["resourceVersion"] != run.version:
            return False
        found["metadata"]["resourceVersion"] = str(next(self._versions))
        found["status"] = json.loads(json.dumps(status))
        return True

    def record_event(self, *_: Any) -> None:
        self._call()
        if "event" in self.errors:
            raise self.errors["event"]

    def _forbid(self, violation: str) -> None:
        if self._single_controller:
            self.violations.append(violation)

    def _needs_server(self, job: Object) -> bool:
        return job["metadata"]["labels"][STAGE_LABEL] in LLM_STAGES and self._spec(job).judge.kind == "llm"


class StaleView:
    """The same cluster for a second controller, whose lists are as old as the last ``refresh``."""

    def __init__(self, cluster: FakeCluster) -> None:
        self._cluster = cluster
        self.refresh()

    def refresh(self) -> None:
        cluster = self._cluster
        self._runs, self._jobs = cluster.runs(), cluster.jobs(cluster.resources)
        self._server = cluster.server("")

    def runs(self) -> list[Object]:
        return copy.deepcopy(self._runs)

    def jobs(self, runs: Iterable[str]) -> list[Object]:
        wanted = set(runs)
        return copy.deepcopy([job for job in self._jobs if job["metadata"]["labels"][RUN_LABEL] in wanted])

    def server(self, name: str) -> Object | None:
        del name
        return self._server

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cluster, name)


def names(jobs: Sequence[Object]) -> list[str]:
    return [job["metadata"]["name"] for job in jobs]
