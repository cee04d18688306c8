"""A Kubernetes API in memory, for thousands of turns with a fault at any call; tests/real has the real one.

It knows what the controller asks: runs, Jobs, pods, one StatefulSet. Jobs end when the test says so.
"""

import copy
import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from pyrite.controller.api import JOB_LABEL
from pyrite.controller.manifests import ASKING, RUN_LABEL, needs_gpu
from pyrite.controller.resource import TrainingRun, parse
from pyrite.plan import STAGES, Step, survey
from pyrite.spec import RunSpec

Object = dict[str, Any]


def now() -> str:
    """The time as Kubernetes writes it: the loop asks the real clock how long something has waited."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class CutOff(BaseException):
    """The controller died in the middle of a turn."""


class Broken(BaseException):
    """The controller did what it must never do; no Exception, for it would go on after one."""


def must(holds: object, words: str) -> None:
    if not holds:
        raise Broken(words)


class SmallStore:
    """The manifests of runs, as the real store gives them to a reader."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def __str__(self) -> str:
        return "s3://bucket/store"

    def keys(self, prefix: str) -> list[str]:
        return sorted(key for key in self.files if key.startswith(f"{prefix}/"))

    def read(self, key: str) -> bytes:
        return self.files[key]

    def manifests(self, run: str) -> dict[str, Object]:
        found = [json.loads(self.files[key]) for key in self.keys(f"runs/{run}/steps")]
        return {manifest["step"]: manifest for manifest in found}

    def finish(self, spec: RunSpec, steps: Sequence[Step]) -> None:
        """What workers do: the manifests of steps whose parents are done, with digests that only workers know."""
        outside = {name: f"the {name}" for stage in STAGES.values() for name in stage.external}
        for state in survey(spec, self.manifests(spec.name), outside):
            if state.step in steps:
                digest = hashlib.sha256(str(state.key).encode()).hexdigest()
                assert state.state != "waiting", f"{state.step.label} was begun before what it comes after"
                manifest = {
                    "step": state.step.name,
                    "key": state.key,
                    "external": {name: outside[name] for name in STAGES[state.step.stage].external},
                    "inputs": dict(state.inputs or {}),
                    "settings": {},
                    "outputs": [{"key": state.step.name, "sha256": digest}],
                    "summary": _summary(state.step),
                    "started": "2026-11-23T08:00:00+00:00",
                    "finished": "2026-11-23T08:30:00+00:00",
                }
                self.files[f"runs/{spec.name}/steps/{state.step.name}.json"] = json.dumps(manifest).encode()


def _summary(step: Step) -> Object:
    scores = {"mrr@5": 0.5 + 0.1 * (step.iteration or 0), "dcg@5": 0.6}
    if step.stage == "validate":
        return {"val": {f"iteration-{step.iteration}" if step.iteration else "base": scores}}
    if step.stage == "evaluate":
        return {"chosen": "iteration-1", "test": {"base": scores, "iteration-1": scores}, "passed": True}
    return {}


class FakeCluster:
    """The calls of ``pyrite.controller.api.Cluster``. ``die_after`` makes a later call fail.

    ``alone``: one controller serves it, so that at no time two Jobs of a run, or a Job and the server, want the same.
    """

    def __init__(self, store: SmallStore, alone: bool = True) -> None:
        self._store, self._alone = store, alone
        self._versions = itertools.count(1)
        self.resources: dict[str, Object] = {}
        self.made: dict[str, Object] = {}
        self.described: dict[str, Object] = {}
        self.replicas = self.present = 0
        self.die_after: int | None = None
        self.pods_seen: list[Object] = []
        self.server_pods_seen: list[Object] = []
        self.events_seen: dict[str, list[Object]] = {}
        #: What the API server answers to the creation of a run's Job, or to an Event.
        self.refuses: dict[str, Exception] = {}
        self.calls = 0

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
            for job in self.made.values()
            if not job["status"].get("conditions") and name in (None, job["metadata"]["labels"][RUN_LABEL])
        ]

    def end(self, job: Object, kind: str) -> None:
        job["status"]["conditions"] = [
            {"type": kind, "status": "True", "reason": "Test", "message": "as the test says"}
        ]

    def complete(self, job: Object) -> None:
        """Its pods do their work, if they have a node and somebody to ask."""
        if (needs_gpu(job) and self.present) or (self._asks(job) and not min(self.present, self.replicas)):
            return
        labels = job["metadata"]["labels"]
        spec = self.run(labels[RUN_LABEL]).spec
        assert spec is not None
        iteration = labels.get("pyrite.dev/iteration")
        number = None if iteration is None else int(iteration)
        indexed = job["spec"].get("completionMode") == "Indexed"
        shards = range(job["spec"]["completions"]) if indexed else [None]
        self._store.finish(spec, [Step(labels["pyrite.dev/stage"], number, shard) for shard in shards])
        self.end(job, "Complete")

    def reap(self) -> None:
        """Pods that were told to stop are gone, and with them their Jobs."""
        self.made = {name: job for name, job in self.made.items() if "deletionTimestamp" not in job["metadata"]}

    def settle(self) -> None:
        """The StatefulSet's pods come or go."""
        self.present = self.replicas

    # --- what the controller calls -----------------------------------------------------------------------------------

    def _call(self) -> None:
        self.calls += 1
        if self.die_after is not None:
            self.die_after -= 1
            if self.die_after < 0:
                raise CutOff

    def runs(self) -> list[Object]:
        self._call()
        return copy.deepcopy(list(self.resources.values()))

    def jobs(self, runs: Iterable[str]) -> list[Object]:
        self._call()
        wanted = set(runs)
        return [copy.deepcopy(job) for job in self.made.values() if job["metadata"]["labels"][RUN_LABEL] in wanted]

    def pods(self, run: str) -> list[Object]:
        self._call()
        del run
        return [pod for pod in self.pods_seen if pod["status"].get("phase") != "Failed"]

    def failed_pods(self, job: str) -> list[Object]:
        self._call()
        its = [pod for pod in self.pods_seen if pod["metadata"]["labels"][JOB_LABEL] == job]
        return [pod for pod in its if pod["status"].get("phase") == "Failed"]

    def server_pods(self, instance: str) -> list[Object]:
        self._call()
        del instance
        return self.server_pods_seen

    def events(self, name: str) -> list[Object]:
        self._call()
        return self.events_seen.get(name, [])

    def server(self, name: str) -> Object | None:
        self._call()
        del name
        status = {"replicas": self.present, "readyReplicas": min(self.present, self.replicas)}
        return {"spec": {"replicas": self.replicas}, "status": status}

    def scale(self, name: str, replicas: int) -> None:
        self._call()
        del name
        if replicas == 0:
            asking = [job for job in self.unfinished() if self._asks(job)]
            must(not (self._alone and asking), "the server is taken from under a run that asks it")
        self.replicas = replicas

    def create(self, manifest: Object) -> bool:
        self._call()
        name = manifest["metadata"]["name"]
        if manifest["kind"] == "ConfigMap":
            return self.described.setdefault(name, manifest) is manifest
        if name in self.made:
            return False
        run = manifest["metadata"]["labels"][RUN_LABEL]
        if run in self.refuses:
            raise self.refuses[run]
        if self._alone:
            must(not self.unfinished(run), "two Jobs of a run at once")
            must(not (needs_gpu(manifest) and self.present), "a Job waits for GPUs that the server holds")
        job = copy.deepcopy(manifest)
        job["metadata"]["creationTimestamp"] = now()
        job["status"] = {}
        self.made[name] = job
        return True

    def delete_job(self, name: str) -> None:
        self._call()
        if name in self.made:
            self.made[name]["metadata"]["deletionTimestamp"] = now()

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
        if "event" in self.refuses:
            raise self.refuses["event"]

    def _asks(self, job: Object) -> bool:
        labels = job["metadata"]["labels"]
        spec = self.run(labels[RUN_LABEL]).spec if labels[RUN_LABEL] in self.resources else None
        return labels["pyrite.dev/stage"] in ASKING and spec is not None and spec.judge.kind == "llm"


class StaleView:
    """The same cluster for a second controller, whose lists are as old as its last ``look``."""

    def __init__(self, cluster: FakeCluster) -> None:
        self._cluster = cluster
        self.look()

    def look(self) -> None:
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
