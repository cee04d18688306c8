"""Every Prometheus metric, named and described once.

Units are base units: seconds, tokens, pairs, dollars. Workers count what they do; what a run has come to is shown by
who leads it, the controller or `pyrite train`, from the manifests that it reads. ``endpoint`` serves them.
docs/metrics.md is made from this file.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

# A second series for each counter and histogram, which no dashboard asks for.
disable_created_metrics()  # type: ignore[no-untyped-call]

REGISTRY = CollectorRegistry()

#: Every label, and why it is bounded.
LABELS = {
    "outcome": "what became of a pair; five words",
    "grade": "1 to 4",
    "reason": "one word for a kind of fault, of about ten; never a message",
    "server": "address of a judge's server; as many as the run names",
    "unit": "what is counted, such as `pairs judged`; one or two a stage",
    "kind": (
        "of an error: its class, or unreadable; of an example: hard, easy, accumulated; "
        "of a hard pair: positive, negative"
    ),
    "phase": "of a run: Pending, Waiting, Running, Suspended, Succeeded, Failed or Cancelled",
    "state": "of servers: wanted, present or ready",
    "run": "name of a TrainingRun that is in the cluster; its series go when it is deleted",
    "iteration": "number of an iteration, 0 for the base model; empty where a stage runs once",
    "stage": "one of the eight stages",
    "model": "base, tuned (an iteration's model) or best (ahead on validation, blends included)",
}


class Described(NamedTuple):
    """One metric, as a scrape names it."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...]


class Sample(NamedTuple):
    """One value of a metric of ``SHOWN``; ``labels`` in the metric's order."""

    metric: Described
    labels: tuple[str, ...]
    value: float


#: All of them, in the order of this file.
DESCRIBED: list[Described] = []


def _described(name: str, kind: str, text: str, labels: Sequence[str]) -> Described:
    DESCRIBED.append(Described(name, kind, text, tuple(labels)))
    return DESCRIBED[-1]


def _counter(name: str, text: str, *labels: str) -> Counter:
    _described(f"{name}_total", "counter", text, labels)
    return Counter(name, text, labels, registry=REGISTRY)


def _gauge(name: str, text: str, *labels: str) -> Gauge:
    _described(name, "gauge", text, labels)
    return Gauge(name, text, labels, registry=REGISTRY)


def _histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
    _described(name, "histogram", text, ())
    return Histogram(name, text, buckets=buckets, registry=REGISTRY)


def _shown(name: str, text: str, *labels: str) -> Described:
    return _described(name, "gauge", text, labels)


# --- a worker's step --------------------------------------------------------------------------------------------------

STEP_UNITS = _gauge("pyrite_step_units", "How much the step of this pod has to do, in units", "unit")
STEP_UNITS_DONE = _gauge(
    "pyrite_step_units_done", "How much of it is done, counting what an earlier try had done", "unit"
)
TRAINING_LOSS = _gauge("pyrite_finetune_loss", "Training loss, mean of the last few steps")

# --- judging ----------------------------------------------------------------------------------------------------------

PAIRS = _counter(
    "pyrite_judge_pairs",
    "Pairs by what became of them: judged, cached (known already), skipped (patience), not_selected (rank) or missing",
    "outcome",
)
MISSING_LIMIT = _gauge(
    "pyrite_judge_missing_pairs_limit",
    "Failure budget: with more pairs missing than this the shard fails (judge.max_missing)",
)
MISSING = _counter("pyrite_judge_missing_pairs", "Pairs that end without a grade, by what was wrong last", "reason")
GRADES = _counter("pyrite_judge_grades", "Judged pairs by grade, 1 (irrelevant) to 4 (answers it)", "grade")
TRUNCATED = _counter("pyrite_judge_truncated_passages", "Passages cut to fit the LLM's window")
LATENCY = _histogram(
    "pyrite_llm_request_seconds",
    "Time that a successful request took, from sending it to its whole answer",
    (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
)
RETRIES = _counter(
    "pyrite_llm_retries", "Requests that failed, by reason; each is sent again while its pair has tries left", "reason"
)
IN_FLIGHT = _gauge("pyrite_llm_requests_in_flight", "Requests on their way to a server", "server")
LIMIT = _gauge(
    "pyrite_llm_concurrency_limit", "Most requests that may be in flight now; it falls when a server is busy", "server"
)
UP = _gauge("pyrite_llm_server_up", "1 where a server is asked, 0 where it is set aside because it fails", "server")
PROMPT_TOKENS = _counter("pyrite_llm_prompt_tokens", "Tokens of the prompts")
CACHED_TOKENS = _counter(
    "pyrite_llm_cached_tokens", "Prompt tokens that the server found in its prefix cache, so did not compute"
)

# --- the controller ---------------------------------------------------------------------------------------------------

CONTROLLER_SYNC = _histogram(
    "pyrite_controller_sync_seconds",
    "Time that the controller took to look at everything once; it does so every few seconds",
    (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
CONTROLLER_CALLS = _counter("pyrite_controller_api_calls", "Calls to the Kubernetes API")
CONTROLLER_ERRORS = _counter(
    "pyrite_controller_errors",
    "Turns that failed, by kind of error; unreadable: what the store holds of a run cannot be shown",
    "kind",
)
RUNS = _shown("pyrite_controller_runs", "Training runs by phase", "phase")
SERVERS = _shown("pyrite_server_replicas", "Pods of the vLLM server: wanted now, present, and ready to answer", "state")

# --- runs, as the controller and `pyrite train` see them --------------------------------------------------------------

RUN_PHASE = _shown("pyrite_run_phase", "1 for the phase that the run is in, 0 for the others", "run", "phase")
RUN_QUEUED = _shown(
    "pyrite_run_queued",
    "1 where the run waits its turn: for another run to leave the GPUs, or for Kueue to admit its Job",
    "run",
)
RUN_STEPS = _shown("pyrite_run_steps", "Steps of the run, each shard counting as one", "run")
RUN_STEPS_DONE = _shown("pyrite_run_steps_done", "Steps that are finished", "run")
RUN_SHARDS = _shown("pyrite_run_shards", "Shards of the step that runs now", "run")
RUN_SHARDS_DONE = _shown("pyrite_run_shards_done", "Shards of it that are finished", "run")
RUN_ITERATIONS = _shown("pyrite_run_iterations", "Iterations that the run is to have", "run")
RUN_STARTED = _shown("pyrite_run_started_timestamp_seconds", "When the run began, in seconds since 1970", "run")
RUN_FINISHED = _shown("pyrite_run_finished_timestamp_seconds", "When it ended, in seconds since 1970", "run")
RUN_STAGE_SECONDS = _shown(
    "pyrite_run_stage_seconds",
    "Time in which at least one shard of a finished stage was at work; tries that failed do not count",
    "run",
    "stage",
    "iteration",
)
RUN_COST = _shown(
    "pyrite_run_cost_dollars",
    "Cost so far: hours of its steps, the running one too, times cost.dollarsPerHour; tries that failed do not count",
    "run",
)
RUN_BUDGET = _shown("pyrite_run_cost_budget_dollars", "What a run may cost before an alert says so", "run")
RUN_PAIRS = _shown(
    "pyrite_run_pairs",
    "Pairs of a judged iteration: judged, cached (known already), skipped (patience), not_selected (rank) or missing",
    "run",
    "iteration",
    "outcome",
)
RUN_GRADES = _shown("pyrite_run_grades", "Judgments of a judged iteration by grade", "run", "iteration", "grade")
RUN_EXAMPLES = _shown(
    "pyrite_run_examples",
    "Training examples of an iteration: hard, easy, or kept from earlier iterations",
    "run",
    "iteration",
    "kind",
)
RUN_HARD = _shown(
    "pyrite_run_hard_pairs",
    "What an iteration's hard examples are made of: positives that a negative outranks, and negatives that do",
    "run",
    "iteration",
    "kind",
)
RUN_LOSS = _shown("pyrite_run_training_loss", "Training loss at the end of an iteration", "run", "iteration")
RUN_MRR = _shown("pyrite_run_validation_mrr", "MRR@5 on the validation queries", "run", "model", "iteration")
RUN_DCG = _shown("pyrite_run_validation_dcg", "DCG@5 on the validation queries", "run", "model", "iteration")
RUN_GATE = _shown("pyrite_run_gate_passed", "1 where the gain on test meets evaluate.gate, 0 where it does not", "run")


class _Shown(Collector):
    """Gauges whose values are all replaced at once: a scrape never sees half of a turn."""

    def __init__(self) -> None:
        self._samples: tuple[Sample, ...] = ()

    def replace(self, samples: Iterable[Sample]) -> None:
        """Show ``samples``, and nothing that was shown before."""
        self._samples = tuple(samples)

    def collect(self) -> Iterator[Metric]:
        families: dict[Described, GaugeMetricFamily] = {}
        for metric, labels, value in self._samples:
            if metric not in families:
                families[metric] = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
            families[metric].add_metric(labels, value)
        yield from families.values()


SHOWN = _Shown()
REGISTRY.register(SHOWN)
