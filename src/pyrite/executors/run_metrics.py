"""The metrics of `pyrite train`: those of the run, and those of its steps' processes, in one registry."""

import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from pyrite import metrics
from pyrite.executors.local import Listener
from pyrite.manifest_metrics import label_value, step_samples
from pyrite.metrics import Sample
from pyrite.plan import Step, StepState

#: Seconds for which the metrics of an ended step are still shown: longer than a usual scrape interval.
_RETENTION_SECONDS = 60.0

_PHASES = ("Running", "Succeeded", "Failed")


class _StepCollector(Collector):
    """Shows the metrics of steps, with the labels that the chart's PodMonitor adds to those of pods.

    The metrics of an ended step are shown for another minute, and at least once, so that scrapes see short steps too.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._families: dict[Step, list[Any]] = {}
        self._ended: dict[Step, float] = {}
        self._lock = threading.Lock()

    def update(self, step: Step, families: list[Any]) -> None:
        with self._lock:
            self._families[step] = families

    def mark_ended(self, step: Step) -> None:
        with self._lock:
            self._ended[step] = time.monotonic()

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            steps, oldest = self._families, time.monotonic() - _RETENTION_SECONDS
            self._families = {step: own for step, own in steps.items() if self._ended.get(step, math.inf) > oldest}
        shown: dict[str, Metric] = {}
        for step, families in steps.items():
            labels = {"run": self._run, "stage": step.stage, "iteration": label_value(step.iteration)}
            labels |= {"shard": label_value(step.shard), "component": "worker", "pod": step.name}
            for name, kind, text, samples in families:
                family = shown.setdefault(name, Metric(name, text, kind))
                for sample, sample_labels, value in samples:
                    family.add_sample(sample, {**sample_labels, **labels}, value)
        yield from shown.values()


class RunMetrics:
    """A listener that updates the metrics of run ``name``, and passes on to ``inner`` all calls but metrics events."""

    def __init__(self, name: str, manifests: Mapping[str, Any], inner: Listener):
        self._name, self._manifests, self._inner = name, dict(manifests), inner
        self._steps: list[Step] = []
        self._running: list[Step] = []
        self._times: list[Sample] = []
        self._collector = _StepCollector(name)
        self.registry = CollectorRegistry()
        self.registry.register(metrics.SNAPSHOT_GAUGES)
        self.registry.register(self._collector)

    def planned(self, states: Sequence[StepState]) -> None:
        self._steps = [state.step for state in states]
        finished = {state.step.name for state in states if state.state == "done"}
        self._manifests = {name: manifest for name, manifest in self._manifests.items() if name in finished}
        self._times = [Sample(metrics.RUN_STARTED, (self._name,), time.time())]
        self._show("Running")
        self._inner.planned(states)

    def started(self, step: Step) -> None:
        self._running.append(step)
        self._show("Running")
        self._inner.started(step)

    def event(self, step: Step, event: dict[str, Any]) -> None:
        if event["event"] == "metrics":
            self._collector.update(step, event["families"])
        else:
            self._inner.event(step, event)

    def finished(self, step: Step, manifest: dict[str, Any]) -> None:
        self._manifests[step.name] = manifest
        self._collector.mark_ended(step)
        self._show("Running")
        self._inner.finished(step, manifest)

    def end(self, phase: str) -> None:
        """Show that the run has ended; ``phase`` is Succeeded or Failed."""
        self._running = []
        self._times.append(Sample(metrics.RUN_FINISHED, (self._name,), time.time()))
        self._show(phase)

    def _show(self, phase: str) -> None:
        phases = [Sample(metrics.RUN_PHASE, (self._name, each), each == phase) for each in _PHASES]
        metrics.SNAPSHOT_GAUGES.replace(
            [*phases, *self._times, *self._shards(), *step_samples(self._name, self._steps, self._manifests)]
        )

    def _shards(self) -> Iterator[Sample]:
        """The shards of the running stage and iteration, including those that wait for a process."""
        if not self._running:
            return
        current = self._running[-1][:2]
        shards = [step.name in self._manifests for step in self._steps if step[:2] == current]
        yield Sample(metrics.RUN_SHARDS, (self._name,), len(shards))
        yield Sample(metrics.RUN_SHARDS_DONE, (self._name,), sum(shards))
