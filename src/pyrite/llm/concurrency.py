"""How many requests one server should have in flight: additive increase, multiplicative decrease. Pure."""

_START = 4

#: A round is calm while it takes at most so many times as long as the fastest round did.
_CALM = 2.0

#: Beyond that, more requests must bring so many times the best throughput.
_PAYS = 1.05

#: What is best fades, so that a server that has become slower or faster is tried again.
_FADE = 0.999


class Limiter:
    """Says how many requests may be in flight, from what became of the earlier ones.

    A round is ``limit`` answers. The limit grows after each round that was full and calm: twice as much until the
    server first pushes back, then by one. It is halved when the server pushes back, once for all the requests that
    were in flight together, as TCP does it (Chiu and Jain, 1989).
    """

    def __init__(self, cap: int, slow: float):
        """``cap``: never more than this. ``slow``: seconds; while answers take longer, the limit does not grow."""
        self._cap, self._slow = cap, slow
        self.limit = min(_START, cap)
        #: Counts the times that the server pushed back. A request remembers the epoch in which it was sent.
        self.epoch = 0
        self._count = 0
        self._seconds = 0.0
        self._fastest = float("inf")
        self._best_rate = 0.0

    def answered(self, latency: float, full: bool) -> None:
        """A request was answered after ``latency`` seconds; ``full``: others had to wait for a place."""
        self._count += 1
        self._seconds += latency
        if self._count >= self.limit:
            self._end_round(max(self._seconds / self._count, 1e-6), full)

    def pushed_back(self, epoch: int) -> None:
        """The server refused a request that was sent in ``epoch`` because it is busy, or let it time out."""
        if epoch == self.epoch:
            self.epoch += 1
            self.limit = max(1, self.limit // 2)
            self._count, self._seconds = 0, 0.0

    def _end_round(self, latency: float, full: bool) -> None:
        rate = self.limit / latency  # Little's law
        calm = latency <= _CALM * self._fastest
        pays = rate >= _PAYS * self._best_rate
        self._fastest = min(latency, self._fastest / _FADE)
        self._best_rate = max(rate, self._best_rate * _FADE)
        if full and latency < self._slow and (calm or pays):
            self.limit = min(self._cap, self.limit * 2 if self.epoch == 0 else self.limit + 1)
        self._count, self._seconds = 0, 0.0
