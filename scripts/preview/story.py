"""Invented samples of a run, with the names and labels that scrapes of a real one have.

Two hours: two iterations that are finished and a third that is being judged, by four workers and four vLLM servers, one
of which hangs for a while in the second. Every number is an invention.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, get_args

import numpy as np

from preview.asking import SCRAPE
from pyrite.llm.client import Kind

SECONDS = 7200
NAMESPACE, RUN = "ml", "sample"

Values = np.ndarray[Any, np.dtype[np.float64]]

_SHARDS, _SERVERS = 4, 4
_PAIRS = 15_000  # of a shard
_STEPS = 27
_DOLLARS_PER_HOUR, _BUDGET = 5.67, 15.0
_PHASES = ("Pending", "Waiting", "Running", "Suspended", "Succeeded", "Failed", "Cancelled")
_LE = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, math.inf)
_HANGS = (4500, 4860)  # when the last server does

_UNITS = {
    "prepare": ("records read", 9_400),
    "retrieve": ("passages encoded", 38_000),
    "mine": ("queries mined", 2_400),
    "finetune": ("training steps", 900),
    "validate": ("passages encoded", 38_000),
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
        {"positive": 4030, "negative": 7650},
        (1.42, 0.61),
        0.671,
        2.58,
    ),
    2: _Iteration(
        (0.45, 0.23, 0.18, 0.14),
        {"judged": 0.55, "cached": 0.34, "skipped": 0.11, "not_selected": 0.29, "missing": 0.0006},
        {"hard": 3180, "easy": 1060, "accumulated": 2600},
        {"positive": 2510, "negative": 4270},
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

#: Stage, iteration, and when it began and ended, in seconds since the first sample; the last one is not over yet.
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
_at = np.arange(0, SECONDS + SCRAPE, SCRAPE, dtype=float)


def lines(end: float) -> Iterator[str]:
    """OpenMetrics text of the two hours up to ``end`` (seconds since 1970)."""
    start = end - SECONDS
    for name, labels, values in _all(np.random.default_rng(7), start):
        inside = ",".join(f'{key}="{value}"' for key, value in labels.items())
        for at, value in zip(start + _at, values, strict=True):
            if value == value:
                yield f"{name}{{{inside}}} {value:.12g} {at:.3f}\n"
    yield "# EOF\n"


_Found = tuple[str, dict[str, str], Values]


def _all(rng: np.random.Generator, start: float) -> Iterator[_Found]:
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


def _controller(rng: np.random.Generator) -> Iterator[_Found]:
    turns = np.cumsum(np.full(len(_at), 3.0))
    slow = np.where((_at > 2900) & (_at < 3400), 2.4, 1.0) * rng.uniform(0.8, 1.3, len(_at))
    yield from _histogram("pyrite_controller_sync_seconds", _SHOWN, np.full(len(_at), 3.0), 0.32 * slow)
    yield "pyrite_controller_api_calls_total", _SHOWN, 7 * turns
    errors = np.cumsum(np.where((_at > 3000) & (_at < 3180), 1.0, 0.0))
    for kind in ("ApiException", "MaxRetryError", "UserError", "unreadable"):
        yield "pyrite_controller_errors_total", {**_SHOWN, "kind": kind}, errors * (kind == "ApiException")
    for phase in _PHASES:
        number = {"Running": _during(240, math.inf), "Succeeded": np.full(len(_at), 2.0)}.get(phase, np.zeros(len(_at)))
        yield "pyrite_controller_runs", {**_SHOWN, "phase": phase}, number
    wanted, ready = np.zeros(len(_at)), np.zeros(len(_at))
    for stage, iteration, begin, end in _STAGES:
        if stage == "judge":
            loading = 300 if iteration == 1 else 90
            wanted += _SERVERS * _during(begin - loading, end)
            ready += _SERVERS * _during(begin, end)
    ready -= _during(*_HANGS)
    for state, pods in (("wanted", wanted), ("present", wanted), ("ready", ready)):
        yield "pyrite_server_replicas", {**_SHOWN, "state": state}, pods


def _run(start: float) -> Iterator[_Found]:
    """What the controller shows of the run."""
    mine = {**_SHOWN, "run": RUN}
    begun = _or_gone(_during(240, math.inf))
    waiting = _during(600, 900) + _during(3825, 3930) + _during(6195, 6300)
    for phase in _PHASES:
        now = {"Waiting": waiting, "Running": 1 - waiting}.get(phase, np.zeros(len(_at)))
        yield "pyrite_run_phase", {**mine, "phase": phase}, now * begun
    done, cost = np.zeros(len(_at)), np.zeros(len(_at))
    for stage, iteration, begin, end in _STAGES:
        pods = _SHARDS if stage == "judge" else 1
        done += pods * _during(end, math.inf)
        cost += np.clip(_at - begin, 0, end - begin) / 3600 * _DOLLARS_PER_HOUR
        at = {**mine, "stage": stage, **({} if iteration is None else {"iteration": str(iteration)})}
        yield "pyrite_run_stage_seconds", at, (end - begin) * _or_gone(_during(end, math.inf))
    shards = sum(_SHARDS * _during(begin, end) for stage, _, begin, end in _STAGES if stage == "judge")
    yield "pyrite_run_shards", mine, np.maximum(shards, 1) * begun
    yield "pyrite_run_shards_done", mine, 0 * begun
    yield "pyrite_run_queued", mine, 0 * begun
    yield "pyrite_run_steps", mine, _STEPS * begun
    yield "pyrite_run_steps_done", mine, done * begun
    yield "pyrite_run_iterations", mine, 3 * begun
    yield "pyrite_run_started_timestamp_seconds", mine, (start + 240) * begun
    yield "pyrite_run_cost_dollars", mine, cost * begun
    yield "pyrite_run_cost_budget_dollars", mine, _BUDGET * begun
    ends = {(stage, iteration): _or_gone(_during(end, math.inf)) for stage, iteration, _, end in _STAGES}
    for iteration, found in _ITERATIONS.items():
        at = {**mine, "iteration": str(iteration)}
        if ("mine", iteration) not in ends:
            continue
        judged = ends["judge", iteration] * _PAIRS * _SHARDS
        for outcome, share in found.outcomes.items():
            yield "pyrite_run_pairs", {**at, "outcome": outcome}, np.round(judged * share)
        for grade, share in enumerate(found.grades, 1):
            yield "pyrite_run_grades", {**at, "grade": str(grade)}, np.round(judged * 0.88 * share)
        for kind, number in found.examples.items():
            yield "pyrite_run_examples", {**at, "kind": kind}, number * ends["mine", iteration]
        for kind, number in found.hard.items():
            yield "pyrite_run_hard_pairs", {**at, "kind": kind}, number * ends["mine", iteration]
        yield "pyrite_run_training_loss", at, found.loss[1] * ends["finetune", iteration]
    yield from _validation(mine, ends)


def _validation(mine: dict[str, str], ends: dict[tuple[str, int | None], Values]) -> Iterator[_Found]:
    for place, metric in enumerate(("mrr", "dcg")):
        name = f"pyrite_run_validation_{metric}"
        yield name, {**mine, "model": "base", "iteration": "0"}, _BASE[place] * ends["validate", 0]
        for i in (1, 2):
            score = (_ITERATIONS[i].mrr, _ITERATIONS[i].dcg)[place]
            yield name, {**mine, "model": "tuned", "iteration": str(i)}, score * ends["validate", i]
            later = ends.get(("validate", i + 1), np.full(len(_at), np.nan))
            best = np.where(np.isnan(later), score * ends["validate", i], np.nan)
            yield name, {**mine, "model": "best", "iteration": str(i)}, best


def _step(rng: np.random.Generator, stage: str, iteration: int | None, begin: float, end: float) -> Iterator[_Found]:
    """A step of one pod, that is no judging."""
    pod = _pod(stage, iteration, 0)
    unit, work = _UNITS[stage]
    there = _or_gone(_during(begin, end))
    share = np.clip((_at - begin) / (end - begin - SCRAPE), 0, 1)
    if stage != "prepare":  # how many records there are is not known before
        yield "pyrite_step_units", {**pod, "unit": unit}, work * there
    yield "pyrite_step_units_done", {**pod, "unit": unit}, np.round(work * share) * there
    if stage == "finetune" and iteration:
        first, last = _ITERATIONS[iteration].loss
        noise = 1 + 0.015 * rng.standard_normal(len(_at))
        yield "pyrite_finetune_loss", pod, (last + (first - last) * np.exp(-5 * share)) * noise * there


def _judging(rng: np.random.Generator, iteration: int, begin: float, end: float) -> Iterator[_Found]:
    found = _ITERATIONS[iteration]
    for shard in range(_SHARDS):
        pod = _pod("judge", iteration, shard)
        ended = end if end > SECONDS else end - 40 * shard
        there = _during(begin, ended + SCRAPE)
        speed = there * np.clip((_at - begin + SCRAPE) / 90, 0.15, 1) * _hampered() * rng.uniform(0.92, 1.08, len(_at))
        growth = _PAIRS * min(1.0, (SECONDS - begin) / (ended - begin)) * speed / speed.sum()
        yield from _pairs(pod, found, growth, there)
        yield from _requests(rng, pod, growth * found.outcomes["judged"], there, begin)


def _pairs(pod: dict[str, str], found: _Iteration, growth: Values, there: Values) -> Iterator[_Found]:
    """Pairs of a worker by what became of them; ``growth`` is how many each scrape finds done."""
    alive = _or_gone(there)
    done = np.cumsum(growth)
    work = {**pod, "unit": "pairs judged"}
    yield "pyrite_step_units", work, _PAIRS * alive
    yield "pyrite_step_units_done", work, np.floor(done) * alive
    for outcome in ("judged", "cached", "skipped", "missing"):
        yield (
            "pyrite_judge_pairs_total",
            {**pod, "outcome": outcome},
            np.floor(done * found.outcomes[outcome]) * alive,
        )
    not_selected = round(_PAIRS * found.outcomes["not_selected"])
    yield "pyrite_judge_pairs_total", {**pod, "outcome": "not_selected"}, not_selected * alive
    missing = np.floor(done * found.outcomes["missing"])
    yield "pyrite_judge_missing_pairs_total", {**pod, "reason": "timeout"}, missing * alive
    yield "pyrite_judge_missing_pairs_limit", pod, _PAIRS * 0.001 * alive
    drift = 1 + 0.15 * np.sin(done / 1900)
    shares = np.array(found.grades)[:, None] * np.stack([1 / drift, np.ones_like(drift), drift, drift])
    for grade, share in enumerate(shares / shares.sum(axis=0), 1):
        graded = np.cumsum(growth * found.outcomes["judged"] * share)
        yield "pyrite_judge_grades_total", {**pod, "grade": str(grade)}, np.floor(graded) * alive
    yield "pyrite_judge_truncated_passages_total", pod, np.floor(done / 900) * alive


def _requests(
    rng: np.random.Generator, pod: dict[str, str], judged: Values, there: Values, begin: float
) -> Iterator[_Found]:
    """The servers as a worker sees them; ``judged`` pairs are asked about between two scrapes."""
    alive = _or_gone(there)
    hangs = _during(*_HANGS)
    for name, labels, values in _histogram("pyrite_llm_request_seconds", pod, judged, 0.9 + 0.8 * hangs):
        yield name, labels, values * alive
    tokens = np.cumsum(judged * 430)
    yield "pyrite_llm_prompt_tokens_total", pod, np.floor(tokens) * alive
    yield "pyrite_llm_cached_tokens_total", pod, np.floor(np.cumsum(judged * 430 * (0.62 - 0.1 * hangs))) * alive
    fails = {"busy": 0.5, "timeout": 9 * hangs, "connection": 4 * hangs, "unparsable": 0.04}
    for reason in (*get_args(Kind), "unparsable"):
        often = fails.get(reason, 0)
        growth = rng.poisson(often * there)
        yield "pyrite_llm_retries_total", {**pod, "reason": reason}, np.cumsum(growth) * alive
    for server in range(_SERVERS):
        at = {**pod, "server": f"http://pyrite-vllm-{server}.pyrite-vllm:8000"}
        aside = hangs if server == _SERVERS - 1 else np.zeros(len(_at))
        grown = np.clip(4 + (_at - begin) / 40, 4, 16) - 3 * (rng.random(len(_at)) < 0.08)
        limit = np.where(aside > 0, 2, np.maximum(grown, 2))
        yield "pyrite_llm_concurrency_limit", at, np.floor(limit) * alive
        flying = np.where(aside > 0, 0, np.floor(limit * rng.uniform(0.8, 1, len(_at))))
        yield "pyrite_llm_requests_in_flight", at, flying * alive
        yield "pyrite_llm_server_up", at, (1 - aside) * alive


def _server(rng: np.random.Generator, number: int, begin: float, end: float, speed: float) -> Iterator[_Found]:
    """A vLLM server by its own metrics, while it is there; it answers ``speed`` requests a second."""
    pod = {"namespace": NAMESPACE, "component": "vllm", "pod": f"pyrite-vllm-{number}"}
    pod |= {"engine": "0", "model_name": "judge"}
    there = _during(begin - 15, end + 30)
    alive = _or_gone(there)
    busy = _during(begin, end) * np.clip((_at - begin) / 90, 0.1, 1)
    if number == _SERVERS - 1:
        busy = busy * (1 - _during(*_HANGS))
    busy = busy * rng.uniform(0.9, 1, len(_at))
    asked = busy * speed * SCRAPE
    yield "vllm:num_requests_running", pod, np.round(52 * busy) * alive
    yield "vllm:num_requests_waiting", pod, np.round(9 * busy * rng.uniform(0.2, 1, len(_at))) * alive
    yield "vllm:kv_cache_usage_perc", pod, (0.05 + 0.72 * busy) * alive
    yield "vllm:prefix_cache_queries_total", pod, np.cumsum(asked * 430) * alive
    yield "vllm:prefix_cache_hits_total", pod, np.cumsum(asked * 430 * (0.64 - 0.03 * number)) * alive
    yield "vllm:prompt_tokens_total", pod, np.cumsum(asked * 430) * alive
    yield "vllm:generation_tokens_total", pod, np.cumsum(asked) * alive
    yield "vllm:num_preemptions_total", pod, np.cumsum(rng.poisson(0.12 * busy)) * alive
    for reason, share in (("length", 0.985), ("stop", 0.01), ("abort", 0.005)):
        ended = np.cumsum(np.floor(asked * share + rng.random(len(_at)) * (share < 1)))
        yield "vllm:request_success_total", {**pod, "finished_reason": reason}, ended * alive
    for name, median in (
        ("vllm:time_to_first_token_seconds", 0.74),
        ("vllm:e2e_request_latency_seconds", 0.8),
        ("vllm:request_queue_time_seconds", 0.09),
    ):
        for key, labels, values in _histogram(name, pod, asked, median * (0.7 + 0.4 * busy)):
            yield key, labels, values * alive


_SHOWN = {"namespace": NAMESPACE, "component": "controller", "pod": "pyrite-controller-6c9f7d8b5-x2k4p"}


def _pod(stage: str, iteration: int | None, index: int) -> dict[str, str]:
    """Labels of a worker, with a pod's name as a Job makes it."""
    at = "" if iteration is None else f"-{iteration}"
    ending = ("x7k2p", "q4n8d", "m2v6t", "b9c5w")[index]
    labels = {"namespace": NAMESPACE, "component": "worker", "run": RUN, "stage": stage}
    labels["pod"] = f"{RUN}-{stage}{at}-8d41f0c{iteration or 0}-{index}-{ending}"
    if stage == "judge":
        labels["shard"] = str(index)
    return labels if iteration is None else {**labels, "iteration": str(iteration)}


def _histogram(name: str, labels: dict[str, str], growth: Values, median: Values) -> Iterator[_Found]:
    """The buckets of times that spread around ``median``, ``growth`` more of them each scrape."""
    for le in _LE:
        below = np.array([_share_below(le, one) for one in np.broadcast_to(median, growth.shape)])
        bound = "+Inf" if le == math.inf else str(le)
        yield f"{name}_bucket", {**labels, "le": bound}, np.cumsum(growth * below)
    yield f"{name}_count", labels, np.cumsum(growth)
    yield f"{name}_sum", labels, np.cumsum(growth * median)


def _share_below(bound: float, median: float) -> float:
    """Of times that are log-normal, half an e-fold wide."""
    return 1.0 if bound == math.inf else 0.5 * (1 + math.erf(math.log(bound / median) / 0.5 / math.sqrt(2)))


def _hampered() -> Values:
    """Speed of judging while one of the servers hangs."""
    return 1 - 0.35 * _during(*_HANGS)


def _during(begin: float, end: float) -> Values:
    """1 from ``begin`` to before ``end``, 0 otherwise."""
    return ((_at >= begin) & (_at < end)).astype(float)


def _or_gone(there: Values) -> Values:
    """1 where ``there`` is, else not a number: no sample."""
    return np.where(there > 0, np.maximum(there, 1), np.nan)
