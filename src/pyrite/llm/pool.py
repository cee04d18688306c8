"""A pool of servers with the same model: server selection, retries and outage detection."""

import asyncio
import hashlib
import json
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, get_args

import aiohttp

from pyrite import metrics
from pyrite.errors import PyriteError, UserError
from pyrite.llm.client import CHAT_PATH, Client, read_api_key
from pyrite.llm.completion import Completion, parse_completion
from pyrite.llm.concurrency import backoff_delay
from pyrite.llm.errors import ContextLengthExceeded, ErrorKind, RequestRejected, TransientError
from pyrite.llm.server import Server
from pyrite.spec import JudgeServers

__all__ = ["Completion", "NoServerAvailable", "Pool", "RetriesExhausted"]

#: Attempts after which a request has failed, not counting those that failed with _SERVER_ERRORS.
_MAX_ATTEMPTS = 6

#: Errors caused by the server, whatever the request.
_SERVER_ERRORS = ("connection", "busy", "unavailable")

#: While no server is usable: seconds between two searches for one, and between two log messages.
_POLL_SECONDS, _LOG_SECONDS = 0.2, 30.0

_TOKENIZE_PATH = "/tokenize"

_log = logging.getLogger(__name__)

T = TypeVar("T")


class RetriesExhausted(PyriteError):
    """One request failed in all its attempts, or exceeds the context window. Other requests may still succeed."""

    def __init__(self, reason: str, attempts: int, kind: ErrorKind | Literal["window"]):
        """``kind``: of the last error."""
        super().__init__(f"The request failed after {attempts} attempts: {reason}")
        self.reason, self.attempts, self.kind = reason, attempts, kind


class NoServerAvailable(PyriteError):
    """No server gives a usable reply to any request."""

    def __init__(self, servers: JudgeServers, details: str, responds: bool = False):
        """``responds``: a server responds, but only with errors."""
        problem, advice = "responds", "Start one, or correct its address"
        if responds:
            problem, advice = "gives a usable reply", f"Check its log, its limits and {servers.model_setting}"
        super().__init__(
            f"No server in {servers.urls_setting} {problem} ({details}). {advice}. The replies received so far are "
            "saved."
        )


class Pool:
    """Sends requests to the servers of a model. Use it as an async context manager.

    Requests with the same affinity go to the same server while it works. Transient errors are retried with exponential
    backoff. A request that a server rejects raises RequestRejected at once.
    """

    def __init__(self, servers: JudgeServers, model: str, key: str | None = None):
        """Create a pool; nothing is sent.

        Args:
            servers: the servers; their key file and variable are not read.
            model: the name under which the servers serve the model.
            key: the API key, if the servers need one.
        """
        self.settings, self.model, self._key = servers, model, key
        self.urls, self.outage_seconds = list(servers.urls), servers.outage_seconds
        #: Maximum requests in flight or waiting. Each query is on one server, so queries are not spread evenly: with
        #: only as many as the servers admit, some servers would be idle while requests wait for others.
        self.max_pending = servers.concurrency * len(self.urls) * (2 if len(self.urls) > 1 else 1)
        self.servers: list[Server] = []
        self._session: aiohttp.ClientSession | None = None
        self._last_reply = self._last_log = 0.0
        self._last_error = ""  # of any request
        self._responds = False  # whether the last error was a reply
        #: The path and body of a short request, which a server that works accepts.
        self.test_request: tuple[str, Mapping[str, Any]] = (
            CHAT_PATH,
            {"messages": [{"role": "user", "content": "Say yes."}], "max_tokens": 1},
        )
        for kind in get_args(ErrorKind):
            metrics.REQUEST_FAILURES.labels(kind)  # so that the metric starts at 0

    @classmethod
    def open(cls, servers: JudgeServers, model: str | None) -> Self:
        """Create the pool for ``model`` on ``servers``, with their API key.

        Raises:
            UserError: there are no servers, the model is not set, or the API key cannot be read.
        """
        if not servers.urls:
            setting = servers.urls_setting
            raise UserError(f"{setting} is empty: list the servers, such as {setting}=[http://localhost:8000].")
        if not model:
            raise UserError(
                f"{servers.model_setting} is not set: set it to the name under which the server serves its model."
            )
        return cls(servers, model, read_api_key(servers))

    async def __aenter__(self) -> Self:
        # uvicorn closes idle connections after 5 seconds: closing them earlier avoids a request on a closed one.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=4)
        self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        settings = self.settings
        clients = [Client(self._session, url, self._key, settings) for url in self.urls]
        self.servers = [Server(client, settings.concurrency, settings.timeout) for client in clients]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del kind, error, trace
        if self._session:
            await self._session.close()

    async def chat(self, affinity: str, body: Mapping[str, Any]) -> Completion:
        """Return the completion of ``body``, a request to /v1/chat/completions without the model's name.

        Raises:
            RetriesExhausted: the request failed in all its attempts, or for ``outage_seconds`` although a server
                responds to a test request.
            NoServerAvailable: no server responded to any request for ``outage_seconds``.
            RequestRejected: a server rejects the request.
        """
        completion = await self.request(affinity, CHAT_PATH, body, parse_completion)
        metrics.LATENCY.observe(completion.latency)
        metrics.PROMPT_TOKENS.inc(completion.prompt_tokens)
        metrics.CACHED_TOKENS.inc(completion.cached_tokens)
        return completion

    async def count_tokens(self, affinity: str, messages: Sequence[Mapping[str, str]]) -> int:
        """Count the tokens of ``messages`` and the chat template, by vLLM's /tokenize. Raises as ``chat`` does."""
        return await self.request(affinity, _TOKENIZE_PATH, {"messages": messages}, _parse_count)

    async def request(
        self, affinity: str, path: str, body: Mapping[str, Any], parse: Callable[[Any, float, int], T]
    ) -> T:
        """Return what ``parse`` returns for the reply to ``body``, a request to ``path`` without the model's name.

        Args:
            parse: called with the reply, the start of the last attempt as a value of ``time.perf_counter``, and the
                number of attempts. If it raises TransientError, the request is sent again.

        Raises:
            As ``chat`` does.
        """
        content = json.dumps({"model": self.model, **body}).encode()
        order = rank_servers(affinity, self.urls)
        attempts = counted_failures = 0
        failing_since: float | None = None
        is_last_attempt = False
        while True:
            if failing_since and not is_last_attempt and self._is_outage(failing_since):
                if not attempts or not await self._any_server_responds():
                    urls, seconds = ", ".join(self.urls), f"{self.outage_seconds:g} s"
                    details = f"{urls}: no reply for {seconds}; last error: {self._last_error}"
                    raise NoServerAvailable(self.settings, details, self._responds)
                is_last_attempt = True
            server = self._select_server(order)
            if server is None:
                failing_since = failing_since or time.monotonic()
                self._log_waiting()
                await asyncio.sleep(_POLL_SECONDS)
                continue
            if not await server.acquire():
                continue
            attempts += 1
            epoch, started = server.limiter.epoch, time.perf_counter()
            try:
                result = parse(await server.client.post(path, content), started, attempts)
                server.record_success(None if path == _TOKENIZE_PATH else time.perf_counter() - started)
                self._last_reply = time.monotonic()
                return result
            except ContextLengthExceeded:
                server.breaker.release()
                raise RetriesExhausted("longer than the server's context window", attempts, "window") from None
            except TransientError as error:
                server.record_failure(error, epoch)
                metrics.REQUEST_FAILURES.labels(error.kind).inc()
                self._last_error, retry_after = error.reason, error.retry_after
                self._responds = error.responds
                counted_failures += error.kind not in _SERVER_ERRORS
                if counted_failures >= _MAX_ATTEMPTS or is_last_attempt:
                    raise RetriesExhausted(error.reason, attempts, error.kind) from None
            except RequestRejected as error:
                server.breaker.release()
                error.attempts = attempts
                raise
            except BaseException:
                server.breaker.release()
                raise
            finally:
                server.release()
            failing_since = failing_since or time.monotonic()
            await asyncio.sleep(backoff_delay(attempts, retry_after, random.random()))

    def _select_server(self, order: Sequence[int]) -> Server | None:
        now = time.monotonic()
        return next((self.servers[i] for i in order if self.servers[i].breaker.allows(now)), None)

    def _is_outage(self, failing_since: float) -> bool:
        return time.monotonic() - max(failing_since, self._last_reply) > self.outage_seconds

    async def _any_server_responds(self) -> bool:
        """Whether a server responds to a short test request. If so, the fault is in the failing request."""
        path, body = self.test_request
        for server in self.servers:
            try:
                await server.client.post(path, json.dumps({"model": self.model, **body}).encode())
                return True
            except RequestRejected as error:
                if error.concerns_content:  # such as an unsupported parameter
                    return True
            except (TransientError, UserError):
                pass
        return False

    def _log_waiting(self) -> None:
        now = time.monotonic()
        if now - self._last_log > _LOG_SECONDS:
            self._last_log = now
            _log.warning(
                "no server responds (%s; last error: %s); trying again", ", ".join(self.urls), self._last_error
            )


def rank_servers(affinity: str, urls: Sequence[str]) -> list[int]:
    """Positions in ``urls``, best first, by rendezvous hashing (Thaler and Ravishankar, 1998).

    The order depends on ``affinity`` (a query id), so all requests of a query use one server's prefix cache. If a
    server fails, its queries are distributed evenly over the others, and no other query moves.
    """
    weights = [hashlib.blake2b(f"{affinity}\0{url}".encode(), digest_size=8).digest() for url in urls]
    return sorted(range(len(urls)), key=weights.__getitem__, reverse=True)


def _parse_count(reply: Any, started: float, attempts: int) -> int:
    del started, attempts
    try:
        return int(reply["count"])
    except (KeyError, TypeError, ValueError):
        raise TransientError("garbled", "the reply was not a token count") from None
