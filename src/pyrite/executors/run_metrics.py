"""Metrics of `pyrite train`: of the run, and of its steps, each a process of its own, at one address."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from pyrite import metrics
from pyrite.executors.local import Listener
from pyrite.manifest_metrics import number, of_steps
from pyrite.metrics import Sample
from pyrite.plan import Step, StepState

#: Seconds for which a step that has ended is shown: longer than a usual scrape interval.
_STAYS = 60.0

_PHASES = ("Running", "Succeeded", "Failed")


@dataclass
class _Told:
    """What a step last told, and when it ended, on the clock of this process."""

    families: list[Any]
    ended: float | None = None


class _Relay(Collector):
    """Shows the metrics of steps with the labels that the chart's PodMonitor gives to pods.

    Those of a step that has ended are shown for a minute more, and once at least: a short step is seen by a scrape that
    comes later, be there others who look.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._told: dict[Step, _Told] = {}
        self._lock = threading.Lock()

    def told(self, step: Step, families: list[Any]) -> None:
        with self._lock:
            self._told[step] = _Told(families)

    def ended(self, step: Step) -> None:
        with self._lock:
            if step in self._told:
                self._told[step].ended = time.monotonic()

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            told, before = dict(self._told), time.monotonic() - _STAYS
            self._told = {s: found for s, found in told.items() if found.ended is None or found.ended > before}
        shown: dict[str, Metric] = {}
        for step, found in told.items():
            labels = {"run": self._run, "stage": step.stage, "iteration": number(step.iteration)}
            labels["shard"] = number(step.shard)
            labels |= {"component": "worker", "pod": step.name}
            for name, kind, text, samples in found.families:
                family = shown.setdefault(name, Metric(name, text, kind))
                for sample, its, value in samples:
                    family.add_sample(sample, {**its, **labels}, value)
        yield from shown.values()


class RunMetrics:
    """A listener that passes on what it is told, and keeps the metrics of run ``name`` in step with it."""

    def __init__(self, name: str, manifests: Mapping[str, Any], other: Listener):
        self._name, self._manifests, self._other = name, dict(manifests), other
        self._steps: list[Step] = []
        self._running: list[Step] = []
        self._times: list[Sample] = []
        self._relay = _Relay(name)
        self.registry = CollectorRegistry()
        self.registry.register(metrics.SNAPSHOT_GAUGES)
        self.registry.register(self._relay)

    def planned(self, states: Sequence[StepState]) -> None:
        self._steps = [state.step for state in states]
        finished = {state.step.name for state in states if state.state == "done"}
        self._manifests = {name: manifest for name, manifest in self._manifests.items() if name in finished}
        self._times = [Sample(metrics.RUN_STARTED, (self._name,), time.time())]
        self._show("Running")
        self._other.planned(states)

    def started(self, step: Step) -> None:
        self._running.append(step)
        self._show("Running")
        self._other.started(step)

    def event(self, step: Step, event: dict[str, Any]) -> None:
        if event["event"] == "metrics":
            self._relay.told(step, event["families"])
        else:
            self._other.event(step, event)

    def finished(self, step: Step, manifest: dict[str, Any]) -> None:
        self._manifests[step.name] = manifest
        self._relay.ended(step)
        self._show("Running")
        self._other.finished(step, manifest)

    def over(self, phase: str) -> None:
        """The run is over: Succeeded or Failed."""
        self._running = []
        self._times.append(Sample(metrics.RUN_FINISHED, (self._name,), time.time()))
        self._show(phase)

    def _show(self, phase: str) -> None:
        phases = [Sample(metrics.RUN_PHASE, (self._name, each), each == phase) for each in _PHASES]
        metrics.SNAPSHOT_GAUGES.replace(
            [*phases, *self._times, *self._shards(), *of_steps(self._name, self._steps, self._manifests)]
        )

    def _shards(self) -> Iterator[Sample]:
        """Of the step that runs now, all shards, those too that wait for a process."""
        if not self._running:
            return
        at = self._running[-1][:2]
        shards = [step.name in self._manifests for step in self._steps if step[:2] == at]
        yield Sample(metrics.RUN_SHARDS, (self._name,), len(shards))
        yield Sample(metrics.RUN_SHARDS_DONE, (self._name,), sum(shards))
