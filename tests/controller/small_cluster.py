"""A Kubernetes API in memory, for thousands of turns with a fault at any call; tests/real has the real one.

It knows what the controller asks: runs, Jobs, pods, one StatefulSet. Jobs end when the test says so.
"""

import copy
import hashlib
import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from pyrite.controller.manifests import ASKING, RUN_LABEL, needs_gpu
from pyrite.controller.resource import TrainingRun, parse
from pyrite.plan import Step, survey
from pyrite.spec import RunSpec

Object = dict[str, Any]


def now() -> str:
    """The time as Kubernetes writes it: the loop asks the real clock how long something has waited."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class CutOff(Exception):
    """The controller died, or the API server did, in the middle of a turn."""


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
        """What workers do: the manifests of steps whose parents are done."""
        for state in survey(spec, self.manifests(spec.name), {}):
            if state.step in steps:
                digest = hashlib.sha256(str(state.key).encode()).hexdigest()
                assert state.state != "waiting", f"{state.step.label} was begun before what it comes after"
                manifest = {
                    "step": state.step.name,
                    "key": state.key,
                    "external": {},
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


class SmallCluster:
    """The calls of ``pyrite.controller.api.Cluster``. ``die_after`` makes a later call fail."""

    def __init__(self, store: SmallStore) -> None:
        self._store = store
        self.resources: dict[str, Object] = {}
        self.made: dict[str, Object] = {}
        self.described: dict[str, Object] = {}
        self.replicas = self.present = 0
        self.die_after: int | None = None
        self.pods_seen: list[Object] = []
        self.calls = 0

    def add(self, name: str, spec: Object) -> None:
        metadata = {"name": name, "uid": f"uid-{name}", "generation": 1, "creationTimestamp": now()}
        self.resources[name] = {"metadata": metadata, "spec": spec}

    def edit(self, name: str, **changes: Any) -> None:
        found = self.resources[name]
        if found["spec"] != {**found["spec"], **changes}:
            found["spec"] |= changes
            found["metadata"]["generation"] += 1

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
        """Its pods do their work."""
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
        return self.pods_seen

    def server_pods(self, instance: str) -> list[Object]:
        self._call()
        del instance
        return []

    def refusals(self, job: str) -> list[str]:
        self._call()
        del job
        return ["refused"]

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
            assert not asking, "the server is taken from under a run that asks it"
        self.replicas = replicas

    def create(self, manifest: Object) -> bool:
        self._call()
        name = manifest["metadata"]["name"]
        if manifest["kind"] == "ConfigMap":
            return self.described.setdefault(name, manifest) is manifest
        if name in self.made:
            return False
        assert not self.unfinished(manifest["metadata"]["labels"][RUN_LABEL]), "two Jobs of a run at once"
        assert not (needs_gpu(manifest) and self.present), "a Job waits for GPUs that the server holds"
        job = copy.deepcopy(manifest)
        job["metadata"]["creationTimestamp"] = now()
        job["status"] = {}
        self.made[name] = job
        return True

    def delete_job(self, name: str) -> None:
        self._call()
        if name in self.made:
            self.made[name]["metadata"]["deletionTimestamp"] = now()

    def show(self, run: TrainingRun, status: Object) -> None:
        self._call()
        self.resources[run.name]["status"] = json.loads(json.dumps(status))

    def tell(self, *_: Any) -> None:
        self._call()

    def _asks(self, job: Object) -> bool:
        labels = job["metadata"]["labels"]
        spec = self.run(labels[RUN_LABEL]).spec
        return labels["pyrite.dev/stage"] in ASKING and spec is not None and spec.judge.kind == "vllm"


def names(jobs: Sequence[Object]) -> list[str]:
    return [job["metadata"]["name"] for job in jobs]
