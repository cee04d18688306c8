"""Congestion control: the limit of requests in flight, and the delay before a retry. Pure."""

#: The limit at the start.
_INITIAL_LIMIT = 4

#: While latency is below this multiple of the lowest one, the limit grows. Above it, only if throughput grows too.
_LATENCY_TOLERANCE = 2.0

#: By this factor the throughput must then exceed the best one so far.
_THROUGHPUT_GAIN = 1.05

#: The best latency and throughput decay by this factor in each round, because a server's speed changes.
_DECAY = 0.999

_BASE_DELAY, _MAX_DELAY = 0.5, 30.0

#: A longer Retry-After is cut to this.
_MAX_RETRY_AFTER = 120.0


class ConcurrencyLimiter:
    """Limits the requests in flight by additive increase, multiplicative decrease (Chiu and Jain, 1989).

    A round is ``limit`` replies. After a round in which requests had to wait and latency was low, the limit grows: it
    doubles until the first overload (slow start), then increases by one. An overload halves it, but only once for all
    requests that were in flight together, as in TCP.
    """

    def __init__(self, max_limit: int, max_latency: float):
        """``max_latency``: the limit does not grow while replies take longer than this, in seconds."""
        self._max_limit, self._max_latency = max_limit, max_latency
        self.limit = min(_INITIAL_LIMIT, max_limit)
        #: The number of overloads so far. A request carries the epoch in which it was sent.
        self.epoch = 0
        self._replies = 0
        self._seconds = 0.0
        self._best_latency = float("inf")
        self._best_throughput = 0.0

    def record_success(self, latency: float, saturated: bool) -> None:
        """Record a reply after ``latency`` seconds; ``saturated``: other requests waited for admission."""
        self._replies += 1
        self._seconds += latency
        if self._replies >= self.limit:
            self._end_round(max(self._seconds / self._replies, 1e-6), saturated)

    def record_overload(self, epoch: int) -> None:
        """Record that a request sent in ``epoch`` timed out, or was rejected because the server is busy."""
        if epoch == self.epoch:
            self.epoch += 1
            self.limit = max(1, self.limit // 2)
            self._replies, self._seconds = 0, 0.0

    def _end_round(self, latency: float, saturated: bool) -> None:
        throughput = self.limit / latency  # Little's law
        low_latency = latency <= _LATENCY_TOLERANCE * self._best_latency
        pays_off = throughput >= _THROUGHPUT_GAIN * self._best_throughput
        self._best_latency = min(latency, self._best_latency / _DECAY)
        self._best_throughput = max(throughput, self._best_throughput * _DECAY)
        if saturated and latency < self._max_latency and (low_latency or pays_off):
            self.limit = min(self._max_limit, self.limit * 2 if self.epoch == 0 else self.limit + 1)
        self._replies, self._seconds = 0, 0.0


def backoff_delay(failures: int, retry_after: float | None, jitter: float) -> float:
    """Seconds to wait after the ``failures``-th failure in a row, and at least ``retry_after``.

    Exponential with full jitter (Brooker, "Exponential Backoff And Jitter", 2015). ``jitter`` is uniform in [0, 1).
    """
    delay = jitter * min(_MAX_DELAY, _BASE_DELAY * 2.0 ** min(failures - 1, 16))
    return delay if retry_after is None else min(retry_after, _MAX_RETRY_AFTER) + delay
