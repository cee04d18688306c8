"""A fake cluster, a fake store and the controller, for tests of its syncs."""

from itertools import takewhile
from pathlib import Path
from typing import Any

from controller.fake_cluster import ControllerKilled, FakeCluster, FakeStore, StaleView
from pyrite.controller.controller import Controller
from pyrite.controller.resource import ENDED, Status
from pyrite.controller.settings import Settings
from pyrite.plan import chain

JOBS = Path(__file__).parents[2] / "jobs"
SETTINGS = """
instance: pyrite
worker:
  image: pyrite-worker:test
  stages: {finetune: {resources: {limits: {nvidia.com/gpu: 1}}}}
judge: {parallelism: 2, urls: [http://vllm:8000]}
server: {statefulSet: pyrite-vllm, replicas: 2}
cost: {dollarsPerHour: 2}
"""
LABELS: dict[str, Any] = {"source": {"kind": "sample"}, "iterations": 1, "judge": {"shards": 3}}
LLM: dict[str, Any] = {**LABELS, "iterations": 2, "judge": {"kind": "llm", "model": "m", "shards": 2}}


class Harness:
    """A fake cluster with runs, a fake store, the controller, and a second one that acts on a stale view."""

    def __init__(self, chart: Settings, single_controller: bool = True, **runs: dict[str, Any]):
        self.store = FakeStore()
        self.cluster = FakeCluster(self.store, single_controller)
        for name, spec in runs.items():
            self.cluster.add(name, dict(spec))
        self.controller = Controller(self.cluster, self.store, lambda: chart)  # type: ignore[arg-type]
        self.stale_view = StaleView(self.cluster)
        self.second_controller = Controller(self.stale_view, self.store, lambda: chart)  # type: ignore[arg-type]

    def use_chart(self, chart: Settings, **worker: Any) -> None:
        """Upgrade the chart with other settings of the workers."""
        changed = chart.model_copy(update={"worker": chart.worker.model_copy(update=worker)})
        self.controller = Controller(self.cluster, self.store, lambda: changed)  # type: ignore[arg-type]

    def sync(self, kill_after: int | None = None) -> None:
        self.cluster.kill_after = kill_after
        try:
            self.controller.sync()
        except ControllerKilled:
            assert kill_after is not None
        self.cluster.kill_after = None
        assert not self.cluster.violations, self.cluster.violations

    def finish_steps(self, name: str, before: str) -> None:
        """Finish the run's steps up to the first one of stage ``before``."""
        spec = self.cluster.run(name).spec
        assert spec
        for step in takewhile(lambda step: step.stage != before, chain(spec)):
            assert self.store.finish(spec, [step])

    def start_judging(self, name: str) -> dict[str, Any]:
        """The active Job of the run's first judge step."""
        self.finish_steps(name, before="judge")
        for _ in range(3):
            self.sync()
            self.cluster.scale_pods()
        (job,) = self.cluster.unfinished(name)
        return job

    def advance(self) -> None:
        """Sync, then let the cluster catch up and every Job complete."""
        self.sync()
        self.cluster.scale_pods()
        self.cluster.remove_deleted()
        for job in self.cluster.unfinished():
            self.cluster.complete(job)
        assert not self.cluster.violations, self.cluster.violations

    def run_to_end(self, max_syncs: int = 400) -> None:
        """Advance without faults until all runs have ended."""
        for _ in range(max_syncs):
            self.advance()
            if all(self.status(name).phase in ENDED for name in self.cluster.resources):
                return
        raise AssertionError(f"not ended: { ({name: self.status(name) for name in self.cluster.resources}) }")

    def status(self, name: str) -> Status:
        return self.cluster.run(name).status

    def degraded(self, name: str) -> str:
        """The message of the run's condition Degraded; empty if it is not degraded."""
        (found,) = [each for each in self.status(name).conditions if each.type == "Degraded"]
        return found.message if found.status == "True" else ""
