"""One server of a pool: how to speak to it, how much it takes, and whether it is well."""

import logging
import time

from pyrite import metrics
from pyrite.llm.admission import AdmissionQueue
from pyrite.llm.circuit_breaker import CircuitBreaker
from pyrite.llm.client import Client, TransientError
from pyrite.llm.concurrency import Limiter

_log = logging.getLogger(__name__)


class Server:
    """Keeps a server's limiter, gate and health in step with what its requests meet."""

    def __init__(self, client: Client, cap: int, timeout: float):
        self.client, self.url = client, client.url
        # A limit that makes answers take a good part of the timeout would soon make them time out.
        self.limiter = Limiter(cap, slow=timeout / 4)
        self.admission = AdmissionQueue(self.limiter)
        self.breaker = CircuitBreaker()
        self._limit = metrics.LIMIT.labels(self.url)
        self._up = metrics.UP.labels(self.url)
        self._in_flight = metrics.IN_FLIGHT.labels(self.url)
        self._limit.set(self.limiter.limit)
        self._up.set(1)
        self._in_flight.set_function(lambda: self.admission.in_flight)

    def answered(self, latency: float | None) -> None:
        """A request was answered, after ``latency`` seconds; None: it was of a kind that tells nothing of the load."""
        before = self.limiter.limit
        if latency is not None:
            self.limiter.answered(latency, self.admission.full)
        if self.limiter.limit != before:
            self._limit.set(self.limiter.limit)
        if self.breaker.answered():
            self._up.set(1)
            _log.warning("%s answers again", self.url)

    def failed(self, error: TransientError, epoch: int) -> None:
        """A request that was sent in ``epoch`` failed."""
        if error.kind in ("busy", "unavailable", "timeout"):
            self.limiter.pushed_back(epoch)
            self._limit.set(self.limiter.limit)
        if error.kind in ("busy", "garbled", "conflict"):
            self.breaker.abandoned()  # it is up
            return
        pause = self.breaker.failed(time.monotonic(), gone=error.kind == "connection")
        if pause is not None:
            self._up.set(0)
            self.admission.turn_away()
            _log.warning("%s is set aside: %s; it is tried again in %g s", self.url, error.reason, pause)
