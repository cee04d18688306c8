"""The endpoint where a process shows its metrics, and the wait for one last look at them."""

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

#: The wait for a last look: never longer, and so long where there was only one look to go by, which says no interval.
_MOST_SECONDS = 60.0
_FIRST_SECONDS = 15.0

_log = logging.getLogger(__name__)
_served: list[int] = []


class _Looks(Collector):
    """Shows nothing, and remembers when it was asked for it."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def describe(self) -> Iterator[Metric]:
        """Nothing: a registry that is given this collector does not ask it at once."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        self.times = [*self.times[-20:], time.monotonic()]
        return iter(())


_looks = _Looks()


def serve(port: int, registry: CollectorRegistry = REGISTRY) -> bool:
    """Serve /metrics on ``port`` from a thread, once in a process. Whether it does: a port that is taken is said."""
    if port in _served:
        return True
    try:
        start_http_server(port, registry=registry)
    except OSError as error:
        # Judge shards by hand share a machine: one of them has the port, and none may fail for it.
        _log.warning("no metrics from this process: port %d cannot be used (%s)", port, error.strerror)
        return False
    registry.register(_looks)
    _served.append(port)
    return True


def serve_from_env() -> None:
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


@contextmanager
def scraped_at_end() -> Iterator[None]:
    """Linger after what is done here, where it fails too: its last numbers say why. Not where it was told to stop."""
    try:
        yield
    except Interrupted:
        raise
    except PyriteError:
        wait_for_scrape()
        raise
    wait_for_scrape()


def wait_for_scrape() -> None:
    """Wait until what this process shows now was scraped, where somebody scrapes it: at most twice the longest gap.

    Told to stop meanwhile, it returns: all that is worth keeping is in the store.
    """
    seen = _looks.times
    if not seen:
        return
    gap = max((b - a for a, b in pairwise(seen)), default=_FIRST_SECONDS)
    deadline = time.monotonic() + min(2 * gap, _MOST_SECONDS)
    try:
        while _looks.times[-1] == seen[-1] and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.5)  # the answer is on its way
    except KeyboardInterrupt:
        return
