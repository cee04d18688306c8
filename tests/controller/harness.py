"""A cluster in memory, a store and the controller, for tests of the loop."""

from itertools import takewhile
from pathlib import Path
from typing import Any

from controller.fake_cluster import CutOff, FakeCluster, SmallStore, StaleView
from pyrite.controller.controller import Controller
from pyrite.controller.resource import ENDED, Status
from pyrite.controller.settings import Settings
from pyrite.plan import chain

JOBS = Path(__file__).parents[2] / "jobs"
WITH_GPUS = """
instance: pyrite
worker:
  image: pyrite-worker:test
  stages: {finetune: {resources: {limits: {nvidia.com/gpu: 1}}}}
judge: {parallelism: 2, urls: [http://vllm:8000]}
server: {statefulSet: pyrite-vllm, replicas: 2}
cost: {dollarsPerHour: 2}
"""
LABELS: dict[str, Any] = {"source": {"kind": "sample"}, "iterations": 1, "judge": {"shards": 3}}
VLLM: dict[str, Any] = {**LABELS, "iterations": 2, "judge": {"kind": "llm", "model": "m", "shards": 2}}


class Harness:
    """A cluster, a store and the controller. Not ``alone``: a second one acts on what it saw a while ago."""

    def __init__(self, chart: Settings, alone: bool = True, **runs: dict[str, Any]):
        self.store = SmallStore()
        self.cluster = FakeCluster(self.store, alone)
        for name, spec in runs.items():
            self.cluster.add(name, dict(spec))
        self.loop = Controller(self.cluster, self.store, lambda: chart)  # type: ignore[arg-type]
        self.behind = StaleView(self.cluster)
        self.second = Controller(self.behind, self.store, lambda: chart)  # type: ignore[arg-type]

    def sync(self, die_after: int | None = None) -> None:
        self.cluster.die_after = die_after
        try:
            self.loop.sync()
        except CutOff:
            assert die_after is not None
        self.cluster.die_after = None

    def happens(self, kind: str, number: int | None) -> None:
        cluster = self.cluster
        jobs = cluster.unfinished()
        job = jobs[number % len(jobs)] if jobs and number is not None else None
        name = list(cluster.resources)[(number or 0) % 3]
        match kind:
            case "sync" | "cut off":
                self.sync(die_after=number)
            case "go on":
                for _ in range(number or 0):
                    self.go_on_once()
            case "complete" if job:
                cluster.complete(job)
            case "fail" if job:
                cluster.end(job, "Failed")
            case "delete" if job:
                cluster.delete_job(job["metadata"]["name"])
            case "delete finished":
                cluster.made = {n: job for n, job in cluster.made.items() if job in cluster.unfinished()}
            case "reap":
                cluster.reap()
            case "settle":
                cluster.settle()
            case "scale":
                cluster.replicas = (number or 0) % 3
            case "suspend" | "resume":
                cluster.edit(name, suspend=kind == "suspend")
            case "retry":
                cluster.edit(name, retry=cluster.resources[name]["spec"].get("retry", 0) + 1)
            case "edit":
                cluster.edit(name, mine={"num_negatives": 1 + (number or 0) % 3})
            case "look":
                self.behind.look()
            case "second":
                self.second.sync()

    def has_done(self, name: str, before: str) -> None:
        """The run's steps up to the first of stage ``before`` are finished."""
        spec = self.cluster.run(name).spec
        assert spec
        for step in takewhile(lambda step: step.stage != before, chain(spec)):
            self.store.finish(spec, [step])

    def go_on_once(self) -> None:
        self.sync()
        self.cluster.settle()
        self.cluster.reap()
        for job in self.cluster.unfinished():
            self.cluster.complete(job)

    def go_on(self, most: int = 400) -> None:
        """Everything goes well from here, until all runs have ended."""
        for _ in range(most):
            self.go_on_once()
            if all(self.cluster.run(name).status.phase in ENDED for name in self.cluster.resources):
                return
        phases = {name: self.cluster.run(name).status for name in self.cluster.resources}
        raise AssertionError(f"not ended: {phases}")

    def status(self, name: str) -> Status:
        return self.cluster.run(name).status

    def judging(self, name: str) -> dict[str, Any]:
        """The Job of the run's first judging, which goes on."""
        self.has_done(name, before="judge")
        for _ in range(3):
            self.sync()
            self.cluster.settle()
        (job,) = self.cluster.unfinished(name)
        return job
