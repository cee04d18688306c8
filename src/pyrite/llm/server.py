"""One server of a pool: its client, its admission queue and its circuit breaker."""

import asyncio
import logging
import time
from collections import deque
from typing import Literal

from pyrite import metrics
from pyrite.llm.client import Client
from pyrite.llm.concurrency import ConcurrencyLimiter
from pyrite.llm.errors import TransientError

#: Consecutive failures that open the circuit.
_FAILURE_THRESHOLD = 3

_FIRST_OPEN_SECONDS = 1.0
_MAX_OPEN_SECONDS = 30.0

_log = logging.getLogger(__name__)


class AdmissionQueue:
    """Admits as many requests as a limiter allows, first in, first out."""

    def __init__(self, limiter: ConcurrencyLimiter):
        self._limiter = limiter
        self._waiters: deque[asyncio.Future[bool]] = deque()
        self.in_flight = 0

    @property
    def saturated(self) -> bool:
        """Whether the next request would have to wait."""
        return self.in_flight >= self._limiter.limit or bool(self._waiters)

    async def acquire(self) -> bool:
        """Wait for admission. True: admitted, and ``release`` must follow. False: rejected by ``reject_waiters``."""
        if not self.saturated:
            self.in_flight += 1
            return True
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.result():
                self.release()  # admitted at the moment of its cancellation
            raise

    def release(self) -> None:
        """End an admitted request, and admit the next ones."""
        self.in_flight -= 1
        while self._waiters and self.in_flight < self._limiter.limit:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self.in_flight += 1
                waiter.set_result(True)

    def reject_waiters(self) -> None:
        """Reject all waiting requests, so that they try another server."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(False)


class CircuitBreaker:
    """Stops requests to a failing server (Nygard, "Release It!", 2007).

    closed: requests pass. open: no request passes until a delay is over; the delay doubles with each failed probe.
    half-open: one request, the probe, is in flight; its result closes or opens the circuit. Pure: callers pass the
    time, in seconds of a monotonic clock.
    """

    def __init__(self) -> None:
        self.state: Literal["closed", "open", "half-open"] = "closed"
        self._failures = 0
        self._delay = 0.0
        self._open_until = 0.0

    def allows(self, now: float) -> bool:
        """Whether a request may be sent: the circuit is closed, or open and due for a probe."""
        return self.state == "closed" or (self.state == "open" and now >= self._open_until)

    def acquire(self) -> None:
        """Start a request that ``allows`` permits. If the circuit is open, it is the probe."""
        if self.state == "open":
            self.state = "half-open"

    def release(self) -> None:
        """End a request whose outcome does not show whether the server works. The next request may be the probe."""
        if self.state == "half-open":
            self.state = "open"

    def record_success(self) -> bool:
        """Close the circuit. Returns True if it was not closed."""
        recovered = self.state != "closed"
        self.state, self._failures, self._delay = "closed", 0, 0.0
        return recovered

    def record_failure(self, now: float, unreachable: bool) -> float | None:
        """Record a failure. ``unreachable``: no connection was established, which opens the circuit at once.

        Returns:
            The seconds until the next probe if this failure opens the circuit, else None.
        """
        self._failures += 1
        if self.state == "open":
            return None  # the request was in flight when the circuit opened
        if self.state == "closed" and not unreachable and self._failures < _FAILURE_THRESHOLD:
            return None
        self._delay = min(_MAX_OPEN_SECONDS, self._delay * 2 or _FIRST_OPEN_SECONDS)
        self.state, self._open_until = "open", now + self._delay
        return self._delay


class Server:
    """One server. The outcomes of its requests update its limiter, its circuit breaker and its metrics."""

    def __init__(self, client: Client, max_concurrency: int, timeout: float):
        self.client, self.url = client, client.url
        # If replies take longer than a quarter of the timeout, a higher limit would soon cause timeouts.
        self.limiter = ConcurrencyLimiter(max_concurrency, max_latency=timeout / 4)
        self.admission = AdmissionQueue(self.limiter)
        self.breaker = CircuitBreaker()
        self._limit = metrics.LIMIT.labels(self.url)
        self._up = metrics.UP.labels(self.url)
        self._in_flight = metrics.IN_FLIGHT.labels(self.url)
        self._limit.set(self.limiter.limit)
        self._up.set(1)
        self._in_flight.set_function(lambda: self.admission.in_flight)

    async def acquire(self) -> bool:
        """Wait to send a request. True: ``release`` must follow. False: the circuit opened while it waited."""
        self.breaker.acquire()
        admitted = False
        try:
            admitted = await self.admission.acquire()
        finally:
            if not admitted:
                self.breaker.release()
        return admitted

    def release(self) -> None:
        """End a request that ``acquire`` admitted."""
        self.admission.release()

    def record_success(self, latency: float | None) -> None:
        """Record a reply after ``latency`` seconds; None if the request does not measure the load."""
        if latency is not None:
            self.limiter.record_success(latency, self.admission.saturated)
            self._limit.set(self.limiter.limit)
        if self.breaker.record_success():
            self._up.set(1)
            _log.warning("%s responds again", self.url)

    def record_failure(self, error: TransientError, epoch: int) -> None:
        """Record the failure of a request that was sent in ``epoch``."""
        if error.kind in ("busy", "unavailable", "timeout"):
            self.limiter.record_overload(epoch)
            self._limit.set(self.limiter.limit)
        if error.kind in ("busy", "garbled", "conflict"):
            self.breaker.release()  # the server is up
            return
        delay = self.breaker.record_failure(time.monotonic(), unreachable=error.kind == "connection")
        if delay is not None:
            self._up.set(0)
            self.admission.reject_waiters()
            _log.warning("%s gets no requests for %g s, because they fail: %s", self.url, delay, error.reason)
