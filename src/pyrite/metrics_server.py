"""The HTTP endpoint that serves a process's metrics, and the wait for a last scrape before the process ends."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from pyrite.errors import Interrupted, PyriteError, UserError
from pyrite.metrics import REGISTRY

PORT_VARIABLE = "PYRITE_METRICS_PORT"

#: Longest wait for a last scrape, and the assumed scrape interval after a single scrape, which shows no interval.
_MAX_WAIT_SECONDS = 60.0
_DEFAULT_INTERVAL_SECONDS = 15.0

_log = logging.getLogger(__name__)
_served_ports: list[int] = []


class _ScrapeTimes(Collector):
    """A collector without metrics that records when it is scraped."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def describe(self) -> Iterator[Metric]:
        """No metrics; without this method the registry would call ``collect`` when the collector is registered."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        self.times = [*self.times[-20:], time.monotonic()]
        return iter(())


_scrapes = _ScrapeTimes()


def serve(port: int, registry: CollectorRegistry = REGISTRY) -> bool:
    """Serve /metrics on ``port`` from a thread, once per process. Returns False and logs a warning if it is in use."""
    if port in _served_ports:
        return True
    try:
        start_http_server(port, registry=registry)
    except OSError as error:
        # Judge shards started by hand share a machine: one of them gets the port, and the others must not fail.
        _log.warning("no metrics from this process: port %d cannot be used (%s)", port, error.strerror)
        return False
    registry.register(_scrapes)
    _served_ports.append(port)
    return True


def serve_from_env() -> None:
    """Serve on the port in PYRITE_METRICS_PORT, if it is set."""
    if port := port_from_env(PORT_VARIABLE):
        serve(port)


def port_from_env(variable: str) -> int | None:
    """The port in an environment variable; None if it is not set. Raises UserError if it is not a port number."""
    text = os.environ.get(variable, "")
    if text and (not text.isdecimal() or not 0 < int(text) < 65536):
        raise UserError(f"{variable} is {text!r}, which is not a port number. Set a port, such as 9100.")
    return int(text) if text else None


@contextmanager
def scraped_at_end() -> Iterator[None]:
    """Wait for a last scrape after the body, also if it fails: the last metrics show why. SIGTERM skips the wait."""
    try:
        yield
    except Interrupted:
        raise
    except PyriteError:
        wait_for_scrape()
        raise
    wait_for_scrape()


def wait_for_scrape() -> None:
    """Wait for the next scrape, for at most twice the longest interval so far. Without earlier scrapes, do not wait.

    Ctrl-C or SIGTERM ends the wait; all results are already in the store.
    """
    times = _scrapes.times
    if not times:
        return
    interval = max((b - a for a, b in pairwise(times)), default=_DEFAULT_INTERVAL_SECONDS)
    deadline = time.monotonic() + min(2 * interval, _MAX_WAIT_SECONDS)
    try:
        while _scrapes.times[-1] == times[-1] and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.5)  # for the response to arrive
    except KeyboardInterrupt:
        return
