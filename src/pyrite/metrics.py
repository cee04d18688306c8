"""Every Prometheus metric, named and described once, and the endpoint that shows them.

A process serves them where PYRITE_METRICS_PORT is set. Units are base units: seconds, tokens, pairs.
"""

import logging
import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from pyrite.errors import UserError

PORT_VARIABLE = "PYRITE_METRICS_PORT"

REGISTRY = CollectorRegistry()

PAIRS = Counter(
    "pyrite_judge_pairs",
    "Pairs by what became of them: judged, kept (known already), skipped (patience) or missing (no grade)",
    ["outcome"],
    registry=REGISTRY,
)
GRADES = Counter("pyrite_judge_grades", "Judged pairs by grade, 1 to 4", ["grade"], registry=REGISTRY)
CUT = Counter("pyrite_judge_cut_passages", "Passages cut to fit the model's window", registry=REGISTRY)
LATENCY = Histogram(
    "pyrite_llm_request_seconds",
    "Time that a successful request took",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
    registry=REGISTRY,
)
RETRIES = Counter("pyrite_llm_retries", "Requests that failed and were sent again", ["reason"], registry=REGISTRY)
IN_FLIGHT = Gauge("pyrite_llm_requests_in_flight", "Requests on their way", ["server"], registry=REGISTRY)
LIMIT = Gauge("pyrite_llm_concurrency_limit", "Most requests that may be in flight now", ["server"], registry=REGISTRY)
UP = Gauge(
    "pyrite_llm_server_up", "1 where the server is asked, 0 where it is set aside", ["server"], registry=REGISTRY
)
PROMPT_TOKENS = Counter("pyrite_llm_prompt_tokens", "Tokens of the prompts", registry=REGISTRY)
CACHED_TOKENS = Counter("pyrite_llm_cached_tokens", "Prompt tokens found in the prefix cache", registry=REGISTRY)

_log = logging.getLogger(__name__)
_served: list[int] = []


def serve(port: int) -> None:
    """Serve /metrics on ``port`` from a thread, once in a process; a port that is taken is said and no error."""
    if port in _served:
        return
    try:
        start_http_server(port, registry=REGISTRY)
    except OSError as error:
        # Judge shards share a machine: one of them has the port, and none may fail for it.
        _log.warning("no metrics from this process: port %d cannot be used (%s)", port, error.strerror)
        return
    _served.append(port)


def serve_if_asked() -> None:
    """Serve on the port that PYRITE_METRICS_PORT names, if it does.

    Raises:
        UserError: it is not a port number.
    """
    text = os.environ.get(PORT_VARIABLE, "")
    if not text:
        return
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise UserError(f"{PORT_VARIABLE} is {text!r}; give a port number such as 9100.")
    serve(int(text))
