"""Definitions of all Prometheus metrics.

Units are base units: seconds, tokens, pairs, dollars. Workers export metrics of their own work. The process that
drives a run (the controller or `pyrite train`) derives run metrics from manifests. ``metrics_server`` serves both.
docs/metrics.md is generated from this file.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

# No `_created` series: they would double the number of series, and no dashboard reads them.
disable_created_metrics()  # type: ignore[no-untyped-call]

REGISTRY = CollectorRegistry()

#: Every label and its possible values. Each has a bounded number of values.
LABELS = {
    "outcome": "result for a pair: judged, cached, skipped, not_selected or missing",
    "grade": "relevance grade, 1 to 4",
    "reason": "failure type, one of about ten fixed words; never an error message",
    "server": "address of a judge server",
    "unit": "unit of progress, such as `pairs judged`; one or two per stage",
    "error_type": "exception class, or `unreadable_run`",
    "type": "training example type: hard, easy, accumulated or title_pairs",
    "phase": "run phase: Pending, Waiting, Running, Suspended, Probed, Succeeded, Failed or Cancelled",
    "state": "server replica state: desired, current or ready",
    "run": "name of a TrainingRun in the cluster; its series end when the run is deleted",
    "iteration": "iteration number; 0 is the base model; empty for stages outside the iterations",
    "stage": "one of the eight stages",
    "model": "base, tuned (the iteration's model) or best (best validation score so far, including blends)",
}


class MetricDefinition(NamedTuple):
    """One metric, named as in a scrape."""

    name: str
    type: str
    help: str
    labels: tuple[str, ...]


class Sample(NamedTuple):
    """One value for ``SNAPSHOT_GAUGES``, with the label values in the metric's order."""

    metric: MetricDefinition
    labels: tuple[str, ...]
    value: float


#: All metrics, in the order of this file.
DEFINITIONS: list[MetricDefinition] = []


def _define(name: str, metric_type: str, text: str, labels: Sequence[str]) -> MetricDefinition:
    DEFINITIONS.append(MetricDefinition(name, metric_type, text, tuple(labels)))
    return DEFINITIONS[-1]


def _counter(name: str, text: str, *labels: str) -> Counter:
    _define(f"{name}_total", "counter", text, labels)
    return Counter(name, text, labels, registry=REGISTRY)


def _gauge(name: str, text: str, *labels: str) -> Gauge:
    _define(name, "gauge", text, labels)
    return Gauge(name, text, labels, registry=REGISTRY)


def _histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
    _define(name, "histogram", text, ())
    return Histogram(name, text, buckets=buckets, registry=REGISTRY)


def _run_gauge(name: str, text: str, *labels: str) -> MetricDefinition:
    return _define(name, "gauge", text, ("run", *labels))


# --- steps, exported by workers ---------------------------------------------------------------------------------------

STEP_UNITS = _gauge("pyrite_step_units", "Total work of this pod's step, in units", "unit")
STEP_UNITS_DONE = _gauge(
    "pyrite_step_units_done", "Completed work of this pod's step, in units, including work of earlier attempts", "unit"
)
TRAINING_LOSS = _gauge("pyrite_finetune_loss", "Training loss, averaged over the last few steps")

# --- judging, exported by workers -------------------------------------------------------------------------------------

PAIRS = _counter(
    "pyrite_judge_pairs",
    "Pairs by outcome: judged, cached (judged before), skipped (patience, stop), not_selected (rank), missing (no "
    "grade) or by_first (decided by the first judge of a cascade)",
    "outcome",
)
MISSING_LIMIT = _gauge(
    "pyrite_judge_missing_pairs_limit", "Missing pairs allowed in this shard (judge.max_missing); it fails above this"
)
MISSING = _counter("pyrite_judge_missing_pairs", "Pairs without a grade, by reason of the last failure", "reason")
GRADES = _counter("pyrite_judge_grades", "Judged pairs by grade, from 1 (irrelevant) to 4 (answers the query)", "grade")
TRUNCATED = _counter("pyrite_judge_truncated_passages", "Passages truncated to fit the LLM's context window")
LATENCY = _histogram(
    "pyrite_llm_request_seconds",
    "Duration of successful LLM requests in seconds, excluding retries",
    (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
)
REQUEST_FAILURES = _counter(
    "pyrite_llm_request_failures",
    "Failed LLM requests by reason; each is retried until its pair has no attempts left",
    "reason",
)
IN_FLIGHT = _gauge("pyrite_llm_requests_in_flight", "LLM requests in flight", "server")
LIMIT = _gauge(
    "pyrite_llm_concurrency_limit", "Current limit of requests in flight; it decreases when a server is busy", "server"
)
UP = _gauge("pyrite_llm_server_up", "1 if the server receives requests, 0 if the circuit breaker is open", "server")
PROMPT_TOKENS = _counter("pyrite_llm_prompt_tokens", "Prompt tokens, including cached ones")
CACHED_TOKENS = _counter("pyrite_llm_cached_tokens", "Prompt tokens found in the server's prefix cache")

# --- the controller ---------------------------------------------------------------------------------------------------

CONTROLLER_SYNC = _histogram(
    "pyrite_controller_sync_seconds",
    "Duration of a controller sync in seconds; the controller syncs every few seconds",
    (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
CONTROLLER_CALLS = _counter("pyrite_controller_api_calls", "Calls to the Kubernetes API")
CONTROLLER_ERRORS = _counter(
    "pyrite_controller_errors",
    "Failed syncs by error type; unreadable_run counts runs whose stored results could not be read",
    "error_type",
)
RUNS = _define("pyrite_controller_runs", "gauge", "Training runs by phase", ("phase",))
SERVERS = _define(
    "pyrite_server_replicas", "gauge", "Replicas of the vLLM server by state: desired, current or ready", ("state",)
)

# --- runs, exported by the controller and `pyrite train` --------------------------------------------------------------

RUN_PHASE = _run_gauge("pyrite_run_phase", "1 for the run's current phase, 0 for the others", "phase")
RUN_QUEUED = _run_gauge(
    "pyrite_run_queued", "1 if the run is waiting for another run to release the GPUs, or for Kueue to admit it"
)
RUN_STEPS = _run_gauge("pyrite_run_steps", "Steps of the run; each shard is one step")
RUN_STEPS_DONE = _run_gauge("pyrite_run_steps_done", "Finished steps of the run")
RUN_SHARDS = _run_gauge("pyrite_run_shards", "Shards of the current step")
RUN_SHARDS_DONE = _run_gauge("pyrite_run_shards_done", "Finished shards of the current step")
RUN_ITERATIONS = _run_gauge("pyrite_run_iterations", "Planned iterations of the run")
RUN_STARTED = _run_gauge(
    "pyrite_run_started_timestamp_seconds", "Start time of the run, in seconds since the Unix epoch"
)
RUN_FINISHED = _run_gauge(
    "pyrite_run_finished_timestamp_seconds", "End time of the run, in seconds since the Unix epoch"
)
RUN_STAGE_SECONDS = _run_gauge(
    "pyrite_run_stage_seconds",
    "Time in seconds during which at least one shard of a finished stage was running; excludes failed attempts",
    "stage",
    "iteration",
)
RUN_COST = _run_gauge(
    "pyrite_run_cost_dollars",
    "Estimated cost in dollars: hours in which the run had pods or needed the server, times cost.dollarsPerHour",
)
RUN_BUDGET = _run_gauge(
    "pyrite_run_cost_budget_dollars", "Budget in dollars (spec.budget_dollars or cost.budgetDollars)"
)
RUN_PAIRS = _run_gauge(
    "pyrite_run_pairs",
    "Pairs of a judged iteration by outcome: judged, cached (judged before), skipped (patience, stop), not_selected "
    "(rank), missing (no grade) or by_first (decided by the first judge of a cascade)",
    "iteration",
    "outcome",
)
RUN_GRADES = _run_gauge("pyrite_run_grades", "Judgments of a judged iteration by grade", "iteration", "grade")
RUN_EXAMPLES = _run_gauge(
    "pyrite_run_examples",
    "Training examples of an iteration by type: hard, easy, accumulated (reused from earlier iterations), or "
    "title_pairs (mine.title_pairs)",
    "iteration",
    "type",
)
RUN_HARD_POSITIVES = _run_gauge(
    "pyrite_run_hard_positives",
    "Hard positives of an iteration: relevant passages ranked below a negative",
    "iteration",
)
RUN_HARD_NEGATIVES = _run_gauge(
    "pyrite_run_hard_negatives",
    "Hard negatives of an iteration: irrelevant passages ranked above a positive",
    "iteration",
)
RUN_LOSS = _run_gauge("pyrite_run_training_loss", "Training loss at the end of an iteration", "iteration")
RUN_MRR = _run_gauge("pyrite_run_validation_mrr", "MRR@5 on the validation queries", "model", "iteration")
RUN_DCG = _run_gauge("pyrite_run_validation_dcg", "DCG@5 on the validation queries", "model", "iteration")
RUN_GATE = _run_gauge("pyrite_run_gate_passed", "1 if the gain on the test set meets evaluate.gate, else 0")


class _SnapshotGauges(Collector):
    """Gauges that are replaced together, so that a scrape never mixes two snapshots."""

    def __init__(self) -> None:
        self._samples: tuple[Sample, ...] = ()

    def replace(self, samples: Iterable[Sample]) -> None:
        """Export ``samples`` and remove all earlier ones."""
        self._samples = tuple(samples)

    def collect(self) -> Iterator[Metric]:
        families: dict[MetricDefinition, GaugeMetricFamily] = {}
        for metric, labels, value in self._samples:
            if metric not in families:
                families[metric] = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
            families[metric].add_metric(labels, value)
        yield from families.values()


SNAPSHOT_GAUGES = _SnapshotGauges()
REGISTRY.register(SNAPSHOT_GAUGES)
