"""One server of a pool: how to speak to it, how much it takes, and whether it is well."""

import logging
import time

from pyrite import metrics
from pyrite.llm.concurrency import Limiter
from pyrite.llm.gate import Gate
from pyrite.llm.health import Health
from pyrite.llm.wire import Trouble, Wire

_log = logging.getLogger(__name__)


class Server:
    """Keeps a server's limiter, gate and health in step with what its requests meet."""

    def __init__(self, wire: Wire, cap: int, timeout: float):
        self.wire, self.url = wire, wire.url
        # A limit that makes answers take a good part of the timeout would soon make them time out.
        self.limiter = Limiter(cap, slow=timeout / 4)
        self.gate = Gate(self.limiter)
        self.health = Health()
        self._limit = metrics.LIMIT.labels(self.url)
        self._up = metrics.UP.labels(self.url)
        self._in_flight = metrics.IN_FLIGHT.labels(self.url)
        self._limit.set(self.limiter.limit)
        self._up.set(1)
        self._in_flight.set_function(lambda: self.gate.in_flight)

    def answered(self, latency: float | None) -> None:
        """A request was answered, after ``latency`` seconds; None: it was of a kind that tells nothing of the load."""
        before = self.limiter.limit
        if latency is not None:
            self.limiter.answered(latency, self.gate.full)
        if self.limiter.limit != before:
            self._limit.set(self.limiter.limit)
        if self.health.answered():
            self._up.set(1)
            _log.warning("%s answers again", self.url)

    def failed(self, trouble: Trouble, epoch: int) -> None:
        """A request that was sent in ``epoch`` failed."""
        if trouble.kind in ("busy", "unavailable", "timeout"):
            self.limiter.pushed_back(epoch)
            self._limit.set(self.limiter.limit)
        if trouble.kind in ("busy", "garbled", "conflict"):
            self.health.abandoned()  # it is up
            return
        pause = self.health.failed(time.monotonic(), gone=trouble.kind == "connection")
        if pause is not None:
            self._up.set(0)
            self.gate.turn_away()
            _log.warning("%s is set aside: %s; it is tried again in %g s", self.url, trouble.reason, pause)
