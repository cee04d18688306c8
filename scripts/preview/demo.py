"""Synthetic samples of a run, with the names and labels of a real scrape.

Two hours: two finished iterations and a third that is being judged by four workers and four vLLM servers. One server
hangs for a while in the second iteration.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, get_args

import numpy as np

from preview.queries import SCRAPE_INTERVAL
from pyrite.llm.errors import ErrorKind

SECONDS = 7200
NAMESPACE, RUN = "ml", "sample"

Values = np.ndarray[Any, np.dtype[np.float64]]

_SHARDS, _SERVERS = 4, 4
_PAIRS = 15_000  # per shard
_STEPS = 27
_DOLLARS_PER_HOUR, _BUDGET = 5.67, 15.0
_PHASES = ("Pending", "Waiting", "Running", "Suspended", "Probed", "Succeeded", "Failed", "Cancelled")
_LE = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, math.inf)
_HANG = (4500, 4860)  # of the last server

_UNITS = {
    "prepare": ("records read", 9_400),
    "embed": ("passages encoded", 38_000),
    "retrieve": ("queries joined with their passages", 2_400),
    "mine": ("queries mined", 2_400),
    "finetune": ("training steps", 900),
    "validate": ("passages encoded", 9_000),
}


class _Iteration(NamedTuple):
    grades: tuple[float, float, float, float]
    outcomes: dict[str, float]
    examples: dict[str, int]
    hard: dict[str, int]
    loss: tuple[float, float]
    mrr: float
    dcg: float


_BASE = (0.612, 2.31)
_ITERATIONS = {
    1: _Iteration(
        (0.52, 0.22, 0.15, 0.11),
        {"judged": 0.86, "cached": 0.0, "skipped": 0.14, "not_selected": 0.31, "missing": 0.0002},
        {"hard": 5210, "easy": 1740, "accumulated": 0},
        {"positives": 4030, "negatives": 7650},
        (1.42, 0.61),
        0.671,
        2.58,
    ),
    2: _Iteration(
        (0.45, 0.23, 0.18, 0.14),
        {"judged": 0.55, "cached": 0.34, "skipped": 0.11, "not_selected": 0.29, "missing": 0.0006},
        {"hard": 3180, "easy": 1060, "accumulated": 2600},
        {"positives": 2510, "negatives": 4270},
        (0.93, 0.47),
        0.709,
        2.71,
    ),
    3: _Iteration(
        (0.41, 0.22, 0.20, 0.17),
        {"judged": 0.49, "cached": 0.42, "skipped": 0.09, "not_selected": 0.28, "missing": 0.0003},
        {},
        {},
        (0, 0),
        0,
        0,
    ),
}

#: Stage, iteration, start and end in seconds since the first sample; the last stage is still running.
_STAGES = (
    ("prepare", None, 240, 390),
    ("validate", 0, 405, 480),
    ("retrieve", 1, 495, 600),
    ("judge", 1, 900, 3045),
    ("mine", 1, 3060, 3105),
    ("finetune", 1, 3120, 3600),
    ("validate", 1, 3615, 3705),
    ("retrieve", 2, 3720, 3825),
    ("judge", 2, 3930, 5415),
    ("mine", 2, 5430, 5475),
    ("finetune", 2, 5490, 5970),
    ("validate", 2, 5985, 6075),
    ("retrieve", 3, 6090, 6195),
    ("judge", 3, 6300, 7520),
)
_at = np.arange(0, SECONDS + SCRAPE_INTERVAL, SCRAPE_INTERVAL, dtype=float)


def lines(end: float) -> Iterator[str]:
    """OpenMetrics text of the two hours before ``end`` (Unix time)."""
    start = end - SECONDS
    for name, labels, values in _all(np.random.default_rng(7), start):
        inside = ",".join(f'{key}="{value}"' for key, value in labels.items())
        for at, value in zip(start + _at, values, strict=True):
            if value == value:
                yield f"{name}{{{inside}}} {value:.12g} {at:.3f}\n"
    yield "# EOF\n"


_Samples = tuple[str, dict[str, str], Values]


def _all(rng: np.random.Generator, start: float) -> Iterator[_Samples]:
    yield from _controller(rng)
    yield from _run(start)
    for stage, iteration, begin, end in _STAGES:
        if stage == "judge":
            assert iteration
            yield from _judging(rng, iteration, begin, end)
            for server in range(_SERVERS):
                speed = _PAIRS * _SHARDS * _ITERATIONS[iteration].outcomes["judged"] / (end - begin) / _SERVERS
                yield from _server(rng, server, begin, end, speed)
        else:
            yield from _step(rng, stage, iteration, begin, end)


def _controller(rng: np.random.Generator) -> Iterator[_Samples]:
    syncs = np.cumsum(np.full(len(_at), 3.0))
    slow = np.where((_at > 2900) & (_at < 3400), 2.4, 1.0) * rng.uniform(0.8, 1.3, len(_at))
    yield from _histogram("pyrite_controller_sync_seconds", _CONTROLLER, np.full(len(_at), 3.0), 0.32 * slow)
    yield "pyrite_controller_api_calls_total", _CONTROLLER, 7 * syncs
    errors = np.cumsum(np.where((_at > 3000) & (_at < 3180), 1.0, 0.0))
    for error_type in ("ApiException", "MaxRetryError", "UserError", "unreadable_run"):
        yield (
            "pyrite_controller_errors_total",
            {**_CONTROLLER, "error_type": error_type},
            errors * (error_type == "ApiException"),
        )
    for phase in _PHASES:
        number = {"Running": _during(240, math.inf), "Succeeded": np.full(len(_at), 2.0)}.get(phase, np.zeros(len(_at)))
        yield "pyrite_controller_runs", {**_CONTROLLER, "phase": phase}, number
    desired, ready = np.zeros(len(_at)), np.zeros(len(_at))
    for stage, iteration, begin, end in _STAGES:
        if stage == "judge":
            loading = 300 if iteration == 1 else 90
            desired += _SERVERS * _during(begin - loading, end)
            ready += _SERVERS * _during(begin, end)
    ready -= _during(*_HANG)
    for state, pods in (("desired", desired), ("current", desired), ("ready", ready)):
        yield "pyrite_server_replicas", {**_CONTROLLER, "state": state}, pods


def _run(start: float) -> Iterator[_Samples]:
    """The controller's metrics of the run."""
    run_labels = {**_CONTROLLER, "run": RUN}
    started = _or_missing(_during(240, math.inf))
    waiting = _during(600, 900) + _during(3825, 3930) + _during(6195, 6300)
    for phase in _PHASES:
        now = {"Waiting": waiting, "Running": 1 - waiting}.get(phase, np.zeros(len(_at)))
        yield "pyrite_run_phase", {**run_labels, "phase": phase}, now * started
    done, cost = np.zeros(len(_at)), np.zeros(len(_at))
    for stage, iteration, begin, end in _STAGES:
        pods = _SHARDS if stage == "judge" else 1
        done += pods * _during(end, math.inf)
        cost += np.clip(_at - begin, 0, end - begin) / 3600 * _DOLLARS_PER_HOUR
        at = {**run_labels, "stage": stage, **({} if iteration is None else {"iteration": str(iteration)})}
        yield "pyrite_run_stage_seconds", at, (end - begin) * _or_missing(_during(end, math.inf))
    shards = sum(_SHARDS * _during(begin, end) for stage, _, begin, end in _STAGES if stage == "judge")
    yield "pyrite_run_shards", run_labels, np.maximum(shards, 1) * started
    yield "pyrite_run_shards_done", run_labels, 0 * started
    yield "pyrite_run_queued", run_labels, 0 * started
    yield "pyrite_run_steps", run_labels, _STEPS * started
    yield "pyrite_run_steps_done", run_labels, done * started
    yield "pyrite_run_iterations", run_labels, 3 * started
    yield "pyrite_run_started_timestamp_seconds", run_labels, (start + 240) * started
    yield "pyrite_run_cost_dollars", run_labels, cost * started
    yield "pyrite_run_cost_budget_dollars", run_labels, _BUDGET * started
    ends = {(stage, iteration): _or_missing(_during(end, math.inf)) for stage, iteration, _, end in _STAGES}
    for iteration, iteration_data in _ITERATIONS.items():
        at = {**run_labels, "iteration": str(iteration)}
        if ("mine", iteration) not in ends:
            continue
        judged = ends["judge", iteration] * _PAIRS * _SHARDS
        for outcome, share in iteration_data.outcomes.items():
            yield "pyrite_run_pairs", {**at, "outcome": outcome}, np.round(judged * share)
        for grade, share in enumerate(iteration_data.grades, 1):
            yield "pyrite_run_grades", {**at, "grade": str(grade)}, np.round(judged * 0.88 * share)
        for example_type, count in iteration_data.examples.items():
            yield "pyrite_run_examples", {**at, "type": example_type}, count * ends["mine", iteration]
        for role, count in iteration_data.hard.items():
            yield f"pyrite_run_hard_{role}", at, count * ends["mine", iteration]
        yield "pyrite_run_training_loss", at, iteration_data.loss[1] * ends["finetune", iteration]
    yield from _validation(run_labels, ends)


def _validation(run_labels: dict[str, str], ends: dict[tuple[str, int | None], Values]) -> Iterator[_Samples]:
    for index, metric in enumerate(("mrr", "dcg")):
        name = f"pyrite_run_validation_{metric}"
        yield name, {**run_labels, "model": "base", "iteration": "0"}, _BASE[index] * ends["validate", 0]
        for i in (1, 2):
            score = (_ITERATIONS[i].mrr, _ITERATIONS[i].dcg)[index]
            yield name, {**run_labels, "model": "tuned", "iteration": str(i)}, score * ends["validate", i]
            later = ends.get(("validate", i + 1), np.full(len(_at), np.nan))
            best = np.where(np.isnan(later), score * ends["validate", i], np.nan)
            yield name, {**run_labels, "model": "best", "iteration": str(i)}, best


def _step(rng: np.random.Generator, stage: str, iteration: int | None, begin: float, end: float) -> Iterator[_Samples]:
    """A step with one pod, except judging."""
    pod = _pod(stage, iteration, 0)
    unit, work = _UNITS[stage]
    exists = _or_missing(_during(begin, end))
    share = np.clip((_at - begin) / (end - begin - SCRAPE_INTERVAL), 0, 1)
    if stage != "prepare":  # the number of records is unknown until the end
        yield "pyrite_step_units", {**pod, "unit": unit}, work * exists
    yield "pyrite_step_units_done", {**pod, "unit": unit}, np.round(work * share) * exists
    if stage == "finetune" and iteration:
        first, last = _ITERATIONS[iteration].loss
        noise = 1 + 0.015 * rng.standard_normal(len(_at))
        yield "pyrite_finetune_loss", pod, (last + (first - last) * np.exp(-5 * share)) * noise * exists
        yield from _gpu(pod["pod"], 0, 0.9 * noise * exists)


def _judging(rng: np.random.Generator, iteration: int, begin: float, end: float) -> Iterator[_Samples]:
    iteration_data = _ITERATIONS[iteration]
    for shard in range(_SHARDS):
        pod = _pod("judge", iteration, shard)
        ended = end if end > SECONDS else end - 40 * shard
        exists = _during(begin, ended + SCRAPE_INTERVAL)
        speed = (
            exists
            * np.clip((_at - begin + SCRAPE_INTERVAL) / 90, 0.15, 1)
            * _judging_speed()
            * rng.uniform(0.92, 1.08, len(_at))
        )
        growth = _PAIRS * min(1.0, (SECONDS - begin) / (ended - begin)) * speed / speed.sum()
        yield from _pairs(pod, iteration_data, growth, exists)
        yield from _requests(rng, pod, growth * iteration_data.outcomes["judged"], exists, begin)


def _pairs(pod: dict[str, str], iteration_data: _Iteration, growth: Values, exists: Values) -> Iterator[_Samples]:
    """Pairs of a worker by outcome; ``growth`` is the number of pairs done between scrapes."""
    alive = _or_missing(exists)
    done = np.cumsum(growth)
    work = {**pod, "unit": "pairs judged"}
    yield "pyrite_step_units", work, _PAIRS * alive
    yield "pyrite_step_units_done", work, np.floor(done) * alive
    for outcome in ("judged", "cached", "skipped", "missing"):
        yield (
            "pyrite_judge_pairs_total",
            {**pod, "outcome": outcome},
            np.floor(done * iteration_data.outcomes[outcome]) * alive,
        )
    not_selected = round(_PAIRS * iteration_data.outcomes["not_selected"])
    yield "pyrite_judge_pairs_total", {**pod, "outcome": "not_selected"}, not_selected * alive
    missing = np.floor(done * iteration_data.outcomes["missing"])
    yield "pyrite_judge_missing_pairs_total", {**pod, "reason": "timeout"}, missing * alive
    yield "pyrite_judge_missing_pairs_limit", pod, _PAIRS * 0.001 * alive
    drift = 1 + 0.15 * np.sin(done / 1900)
    shares = np.array(iteration_data.grades)[:, None] * np.stack([1 / drift, np.ones_like(drift), drift, drift])
    for grade, share in enumerate(shares / shares.sum(axis=0), 1):
        graded = np.cumsum(growth * iteration_data.outcomes["judged"] * share)
        yield "pyrite_judge_grades_total", {**pod, "grade": str(grade)}, np.floor(graded) * alive
    yield "pyrite_judge_truncated_passages_total", pod, np.floor(done / 900) * alive


def _requests(
    rng: np.random.Generator, pod: dict[str, str], judged: Values, exists: Values, begin: float
) -> Iterator[_Samples]:
    """LLM request metrics of a worker; ``judged`` is the number of pairs between scrapes."""
    alive = _or_missing(exists)
    hang = _during(*_HANG)
    for name, labels, values in _histogram("pyrite_llm_request_seconds", pod, judged, 0.9 + 0.8 * hang):
        yield name, labels, values * alive
    tokens = np.cumsum(judged * 430)
    yield "pyrite_llm_prompt_tokens_total", pod, np.floor(tokens) * alive
    yield "pyrite_llm_cached_tokens_total", pod, np.floor(np.cumsum(judged * 430 * (0.62 - 0.1 * hang))) * alive
    fails = {"busy": 0.5, "timeout": 9 * hang, "connection": 4 * hang, "unparsable": 0.04}
    for reason in (*get_args(ErrorKind), "unparsable"):
        rate = fails.get(reason, 0)
        growth = rng.poisson(rate * exists)
        yield "pyrite_llm_request_failures_total", {**pod, "reason": reason}, np.cumsum(growth) * alive
    for server in range(_SERVERS):
        at = {**pod, "server": f"http://pyrite-vllm-{server}.pyrite-vllm:8000"}
        unavailable = hang if server == _SERVERS - 1 else np.zeros(len(_at))
        raised = np.clip(4 + (_at - begin) / 40, 4, 16) - 3 * (rng.random(len(_at)) < 0.08)
        limit = np.where(unavailable > 0, 2, np.maximum(raised, 2))
        yield "pyrite_llm_concurrency_limit", at, np.floor(limit) * alive
        in_flight = np.where(unavailable > 0, 0, np.floor(limit * rng.uniform(0.8, 1, len(_at))))
        yield "pyrite_llm_requests_in_flight", at, in_flight * alive
        yield "pyrite_llm_server_up", at, (1 - unavailable) * alive


def _server(rng: np.random.Generator, number: int, begin: float, end: float, speed: float) -> Iterator[_Samples]:
    """A vLLM server's own metrics while it exists; it completes ``speed`` requests per second."""
    pod = {"namespace": NAMESPACE, "component": "vllm", "pod": f"pyrite-vllm-{number}"}
    pod |= {"engine": "0", "model_name": "judge"}
    exists = _during(begin - 15, end + 30)
    alive = _or_missing(exists)
    busy = _during(begin, end) * np.clip((_at - begin) / 90, 0.1, 1)
    if number == _SERVERS - 1:
        busy = busy * (1 - _during(*_HANG))
    busy = busy * rng.uniform(0.9, 1, len(_at))
    new_requests = busy * speed * SCRAPE_INTERVAL
    yield from _gpu(pod["pod"], number, busy * alive)
    yield "vllm:num_requests_running", pod, np.round(52 * busy) * alive
    yield "vllm:num_requests_waiting", pod, np.round(9 * busy * rng.uniform(0.2, 1, len(_at))) * alive
    yield "vllm:kv_cache_usage_perc", pod, (0.05 + 0.72 * busy) * alive
    yield "vllm:prefix_cache_queries_total", pod, np.cumsum(new_requests * 430) * alive
    yield "vllm:prefix_cache_hits_total", pod, np.cumsum(new_requests * 430 * (0.64 - 0.03 * number)) * alive
    yield "vllm:prompt_tokens_total", pod, np.cumsum(new_requests * 430) * alive
    yield "vllm:generation_tokens_total", pod, np.cumsum(new_requests) * alive
    yield "vllm:num_preemptions_total", pod, np.cumsum(rng.poisson(0.12 * busy)) * alive
    for reason, share in (("length", 0.985), ("stop", 0.01), ("abort", 0.005)):
        ended = np.cumsum(np.floor(new_requests * share + rng.random(len(_at)) * (share < 1)))
        yield "vllm:request_success_total", {**pod, "finished_reason": reason}, ended * alive
    for name, median in (
        ("vllm:time_to_first_token_seconds", 0.74),
        ("vllm:e2e_request_latency_seconds", 0.8),
        ("vllm:request_queue_time_seconds", 0.09),
    ):
        for key, labels, values in _histogram(name, pod, new_requests, median * (0.7 + 0.4 * busy)):
            yield key, labels, values * alive


def _gpu(pod: str, number: int, busy: Values) -> Iterator[_Samples]:
    """The DCGM exporter's metrics of a GPU that ``pod`` claims; ``busy`` is from 0 to 1."""
    own = {"exported_namespace": NAMESPACE, "exported_pod": pod, "gpu": str(number), "Hostname": "node-1"}
    labels = {**own, "namespace": "gpu-operator", "pod": "nvidia-dcgm-exporter-9hx2c"}
    used = 22_600 * (busy >= 0)
    for name, values in (
        ("GPU_UTIL", 100 * np.minimum(busy, 1)),
        ("FB_USED", np.where(np.isnan(busy), np.nan, used)),
        ("FB_FREE", np.where(np.isnan(busy), np.nan, 23_028 - used)),
        ("POWER_USAGE", 60 + 220 * busy),
    ):
        yield f"DCGM_FI_DEV_{name}", labels, values


_CONTROLLER = {"namespace": NAMESPACE, "component": "controller", "pod": "pyrite-controller-6c9f7d8b5-x2k4p"}


def _pod(stage: str, iteration: int | None, index: int) -> dict[str, str]:
    """Labels of a worker, with a pod name as created by a Job."""
    at = "" if iteration is None else f"-{iteration}"
    ending = ("x7k2p", "q4n8d", "m2v6t", "b9c5w")[index]
    labels = {"namespace": NAMESPACE, "component": "worker", "run": RUN, "stage": stage}
    labels["pod"] = f"{RUN}-{stage}{at}-8d41f0c{iteration or 0}-{index}-{ending}"
    if stage == "judge":
        labels["shard"] = str(index)
    return labels if iteration is None else {**labels, "iteration": str(iteration)}


def _histogram(name: str, labels: dict[str, str], growth: Values, median: Values) -> Iterator[_Samples]:
    """A histogram of durations around ``median``, with ``growth`` new observations per scrape."""
    for le in _LE:
        below = np.array([_share_below(le, one) for one in np.broadcast_to(median, growth.shape)])
        bound = "+Inf" if le == math.inf else str(le)
        yield f"{name}_bucket", {**labels, "le": bound}, np.cumsum(growth * below)
    yield f"{name}_count", labels, np.cumsum(growth)
    yield f"{name}_sum", labels, np.cumsum(growth * median)


def _share_below(bound: float, median: float) -> float:
    """Share of log-normal durations below ``bound``; sigma is 0.5."""
    return 1.0 if bound == math.inf else 0.5 * (1 + math.erf(math.log(bound / median) / 0.5 / math.sqrt(2)))


def _judging_speed() -> Values:
    """Relative judging speed; lower while a server hangs."""
    return 1 - 0.35 * _during(*_HANG)


def _during(begin: float, end: float) -> Values:
    """1 from ``begin`` until ``end`` (exclusive), 0 otherwise."""
    return ((_at >= begin) & (_at < end)).astype(float)


def _or_missing(exists: Values) -> Values:
    """1 where ``exists`` is positive, else NaN: no sample."""
    return np.where(exists > 0, np.maximum(exists, 1), np.nan)
