"""A pool of servers that serve the same model: who is asked, how often, and when to give up."""

import asyncio
import json
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, get_args

import aiohttp

from pyrite import metrics
from pyrite.errors import PyriteError, UserError
from pyrite.llm.api_key import read_key
from pyrite.llm.backoff import pause
from pyrite.llm.client import CHAT, Client, Completion, ContextLengthExceeded, Kind, TransientError, parse_completion
from pyrite.llm.placement import first_usable, ranked
from pyrite.llm.server import Server
from pyrite.spec import RunSpec

__all__ = ["Completion", "NoServerAvailable", "Pool", "RetriesExhausted"]

#: Seconds without any answer, to whatever request, after which the servers are not waited for any more.
PATIENCE = 600.0

#: So often may a server answer a request wrongly, or not at all, before the request is to blame.
STRIKES = 6

#: Seconds between two looks for a server while all are set aside, and between two lines that say so.
_LOOK, _SAY = 0.2, 30.0

#: TransientError that say nothing of the request itself.
_NOT_ITS_FAULT = ("connection", "busy", "unavailable")

_log = logging.getLogger(__name__)

T = TypeVar("T")


class RetriesExhausted(PyriteError):
    """One request failed as often as it may, or does not fit the model's window. Others may still be answered."""

    def __init__(self, reason: str, attempts: int, kind: Kind | Literal["window"]):
        """``kind``: of the last error."""
        super().__init__(f"gave up after {attempts} attempts: {reason}")
        self.reason, self.attempts, self.kind = reason, attempts, kind


class NoServerAvailable(PyriteError):
    """An outage, which is no request's fault."""

    def __init__(self, told: str):
        super().__init__(
            f"no server of resources.judge_urls answers ({told}). Start it, or mend its address; what was answered is "
            "kept."
        )


class Pool:
    """Sends requests to the servers at ``urls``, to be used as an async context manager.

    Requests of one affinity go to one server as long as it is well. What may pass is tried again, with growing pauses;
    what cannot be mended by trying again is a UserError at once.
    """

    def __init__(
        self,
        urls: Sequence[str],
        model: str,
        key: str | None,
        concurrency: int,
        timeout: float,
        patience: float = PATIENCE,
        window: int | None = None,
    ):
        """``concurrency``: most requests in flight per server. ``timeout``: seconds for one answer.

        ``patience``: seconds without any answer after which that is an outage. ``window``: tokens of the model's
        window, where a person has set it.
        """
        self.urls = list(urls)
        self.model, self.patience, self.window = model, patience, window
        self._key, self._concurrency, self._timeout = key, concurrency, timeout
        self.servers: list[Server] = []
        self._session: aiohttp.ClientSession | None = None
        self._said = self._answered = 0.0
        self._trouble = ""  # the last one, of whatever request
        for kind in get_args(Kind):
            metrics.REQUEST_FAILURES.labels(kind)  # 0, not absent: one failure in a series that it begins is no growth

    @classmethod
    def from_spec(cls, spec: RunSpec, model: str | None) -> Self:
        """The pool that a run's settings describe, of servers that serve ``model``. None of them is asked yet.

        Raises:
            UserError: no address or no model is named, or the key cannot be read.
        """
        resources = spec.resources
        if not resources.judge_urls:
            raise UserError(
                "resources.judge_urls is empty: name the servers to ask, such as resources.judge_urls=[http://localhost:8000]."
            )
        if not model:
            raise UserError("judge.model is not set: give the name under which the server serves its model.")
        return cls(
            resources.judge_urls,
            model,
            read_key(resources.judge_key_file),
            resources.judge_concurrency,
            resources.judge_timeout,
            window=resources.judge_window,
        )

    async def __aenter__(self) -> Self:
        # Below the 5 seconds after which uvicorn closes an idle connection: else a request may meet its end.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=4)
        self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        clients = [Client(self._session, url, self._key, self._timeout) for url in self.urls]
        self.servers = [Server(client, self._concurrency, self._timeout) for client in clients]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del kind, error, trace
        if self._session:
            await self._session.close()

    async def chat(self, affinity: str, body: Mapping[str, Any]) -> Completion:
        """What the model says to ``body`` (of /v1/chat/completions, without the model's name).

        Raises:
            RetriesExhausted: no server responded within the request's attempts; or none to this one for as long as
                the pool is patient, though there is one that answers.
            NoServerAvailable: no server has answered anything for as long as the pool is patient.
            UserError: a server refuses it, and would again.
        """
        answer = await self._ask(affinity, CHAT, body, parse_completion)
        metrics.LATENCY.observe(answer.latency)
        metrics.PROMPT_TOKENS.inc(answer.prompt_tokens)
        metrics.CACHED_TOKENS.inc(answer.cached_tokens)
        return answer

    async def count_tokens(self, affinity: str, messages: Sequence[Mapping[str, str]]) -> int:
        """How many tokens the messages make, chat template included (vLLM's /tokenize). Raises as ``chat`` does."""
        return await self._ask(affinity, "/tokenize", {"messages": messages}, _read_count)

    async def _ask(self, affinity: str, path: str, body: Mapping[str, Any], read: Callable[[Any, float, int], T]) -> T:
        content = json.dumps({"model": self.model, **body}).encode()
        order = ranked(affinity, self.urls)
        attempts = strikes = 0
        since: float | None = None
        last_try = False
        while True:
            if since and not last_try and self._is_over(since):
                if not attempts or not await self._any_answers():
                    raise NoServerAvailable(
                        f"{', '.join(self.urls)}: nothing for {self.patience:g} s; last: {self._trouble}"
                    )
                last_try = True
            server = self._find(order)
            if server is None:
                since = since or time.monotonic()
                self._say_waiting()
                await asyncio.sleep(_LOOK)
                continue
            server.breaker.asked()
            if not await self._enter(server):
                continue
            attempts += 1
            epoch, started = server.limiter.epoch, time.perf_counter()
            try:
                answer = read(await server.client.post(path, content), started, attempts)
                server.answered(time.perf_counter() - started if path == CHAT else None)
                self._answered = time.monotonic()
                return answer
            except ContextLengthExceeded:
                server.breaker.abandoned()
                raise RetriesExhausted(
                    "it does not fit the model's window, says the server", attempts, "window"
                ) from None
            except TransientError as error:
                server.failed(error, epoch)
                self._trouble, asked = error.reason, error.asked
                metrics.REQUEST_FAILURES.labels(error.kind).inc()
                strikes += error.kind not in _NOT_ITS_FAULT
                if strikes >= STRIKES or last_try:
                    raise RetriesExhausted(error.reason, attempts, error.kind) from None
            except BaseException:
                server.breaker.abandoned()
                raise
            finally:
                server.admission.leave()
            since = since or time.monotonic()
            await asyncio.sleep(pause(attempts, asked, random.random()))

    def _find(self, order: Sequence[int]) -> Server | None:
        now = time.monotonic()
        place = first_usable(order, [server.breaker.usable(now) for server in self.servers])
        return None if place is None else self.servers[place]

    async def _enter(self, server: Server) -> bool:
        """Take a place at ``server``. False: it was set aside meanwhile."""
        entered = False
        try:
            entered = await server.admission.enter()
        finally:
            if not entered:
                server.breaker.abandoned()
        return entered

    def _is_over(self, since: float) -> bool:
        """Whether nothing has been answered for as long as the pool is patient, to a request that fails ``since``."""
        return time.monotonic() - max(since, self._answered) > self.patience

    async def _any_answers(self) -> bool:
        """Whether a server answers something plain: then it is there, and what fails again is to blame itself."""
        body = {"model": self.model, "messages": [{"role": "user", "content": "Say yes."}], "max_tokens": 1}
        for server in self.servers:
            with suppress(TransientError, UserError):
                await server.client.post(CHAT, json.dumps(body).encode())
                return True
        return False

    def _say_waiting(self) -> None:
        now = time.monotonic()
        if now - self._said > _SAY:
            self._said = now
            _log.warning("no server answers (%s; last: %s); still trying", ", ".join(self.urls), self._trouble)


def _read_count(reply: Any, started: float, attempts: int) -> int:
    del started, attempts
    try:
        return int(reply["count"])
    except (KeyError, TypeError, ValueError):
        raise TransientError("garbled", "the answer was not a token count") from None
