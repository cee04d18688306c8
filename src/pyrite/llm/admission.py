"""A door that lets in as many requests as a limiter allows, in the order in which they came."""

import asyncio
from collections import deque

from pyrite.llm.concurrency import Limiter


class AdmissionQueue:
    """Counts the requests that are in flight to one server, and keeps the others waiting."""

    def __init__(self, limiter: Limiter):
        self._limiter = limiter
        self._waiting: deque[asyncio.Future[bool]] = deque()
        self.in_flight = 0

    @property
    def full(self) -> bool:
        """Whether a further request would have to wait."""
        return self.in_flight >= self._limiter.limit or bool(self._waiting)

    async def enter(self) -> bool:
        """Wait for a place. False: turned away, there will be none here for a while. True: ``leave`` must follow."""
        if not self.full:
            self.in_flight += 1
            return True
        place: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.result():
                self.leave()  # the place was given in the moment in which nobody wanted it any more
            raise

    def leave(self) -> None:
        """A request is over."""
        self.in_flight -= 1
        while self._waiting and self.in_flight < self._limiter.limit:
            place = self._waiting.popleft()
            if not place.done():
                self.in_flight += 1
                place.set_result(True)

    def turn_away(self) -> None:
        """Send all who wait elsewhere."""
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(False)
