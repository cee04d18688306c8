"""A generation session: sends the requests of one step concurrently, caches replies and limits failures."""

import asyncio
import uuid
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa

from pyrite.append_log import AppendLog, WriteBuffer
from pyrite.errors import PyriteError
from pyrite.generation.prompt import Request
from pyrite.llm.errors import RequestRejected
from pyrite.llm.parameters import REASONING_TOKENS, Parameters, negotiate, with_reasoning
from pyrite.llm.pool import Completion, Pool, RetriesExhausted
from pyrite.progress import Progress
from pyrite.store import Store

#: Saved replies. ``key`` is the digest of the request; ``latency`` is in seconds.
REPLIES = pa.schema(
    [
        ("key", pa.string()),
        ("text", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("cached_tokens", pa.int32()),
        ("latency", pa.float32()),
        ("attempts", pa.int16()),
    ]
)

#: The session fails if more than this many requests fail, and also more than this share.
_MAX_FAILED, _MAX_FAILED_SHARE = 5, 0.05

#: The session fails at once if the server rejects this many requests, and has accepted none before.
_MAX_REJECTED = 5


class GenerationSession:
    """Sends requests to a pool and saves the replies. Replies that any run has saved are not requested again."""

    def __init__(self, pool: Pool, store: Store, fingerprint: str, writer: str, progress: Progress):
        """Replies are stored in ``generated/<fingerprint>/``; ``writer`` as in AppendLog."""
        self._pool, self._progress = pool, progress
        self._log = AppendLog(store, f"generated/{fingerprint}", REPLIES, "key", writer, uuid.uuid4().hex[:12])
        self._buffer = WriteBuffer()
        self._errors: list[str] = []
        self._parameters: Parameters | None = None  # None before the first reply
        #: Numbers of requests and of those with a saved reply, and the tokens of all replies.
        self.stats = Counter({"requested": 0, "cached": 0, "prompt_tokens": 0, "cached_tokens": 0})

    async def generate(self, requests: Sequence[Request], unit: str) -> dict[str, str]:
        """Return the replies by request name; failed requests have none. ``unit``: the unit of the progress display.

        Raises:
            PyriteError: too many requests fail, or no server is available.
            UserError: the server rejects the first requests.
        """
        cached = await asyncio.to_thread(self._read_cached, {request.key for request in requests})
        replies = {request.name: cached[request.key]["text"] for request in requests if request.key in cached}
        pending = [request for request in requests if request.key not in cached]
        self.stats.update(requested=len(requests), cached=len(replies))
        for row in cached.values():
            self._count_tokens(row)
        self._progress.begin(len(requests), unit)
        self._progress.advance(len(replies))
        if pending:
            queue = iter(pending)
            async with self._pool, asyncio.TaskGroup() as group:
                if self._parameters is None:
                    await self._negotiate(queue, replies, len(pending))
                for _ in range(min(len(pending), self._pool.max_pending)):
                    group.create_task(self._worker(queue, replies, len(pending)))
        await self.flush()
        return replies

    async def flush(self) -> None:
        """Save the replies received since the last flush."""
        await self._buffer.flush(self._log.add)

    def merge(self) -> None:
        """Merge this writer's files into one. Call it after the last flush."""
        self._log.merge()

    def _read_cached(self, keys: Collection[str]) -> dict[str, dict[str, Any]]:
        """Rows of REPLIES by key. If a key has several, always the same one is selected."""
        order = [(name, "descending") for name in ("attempts", "latency", "text")]
        return {row["key"]: row for row in self._log.read(keys).sort_by(order).to_pylist()}

    async def _negotiate(self, queue: Iterator[Request], replies: dict[str, str], total: int) -> None:
        """Send requests one by one until the server accepts one, and use its parameters for all others.

        Raises:
            RequestRejected: the server rejects the first requests whatever their parameters.
        """
        rejected = 0
        for request in queue:
            send = partial(self._pool.chat, request.name)
            try:
                completion, parameters = await negotiate(send, request.body)
                adapted = partial(self._send, request.name, parameters)
                completion, reasons = await with_reasoning(adapted, request.body, completion)
            except RetriesExhausted as error:
                self._record_failure(error.reason, total)
            except RequestRejected as error:
                rejected += 1
                if not error.concerns_content or (rejected >= _MAX_REJECTED and not self.stats["cached"]):
                    raise
                self._record_failure(error.reason, total)
            else:
                self._parameters = replace(parameters, min_tokens=REASONING_TOKENS) if reasons else parameters
                self._record_reply(request, completion, replies, total)
            self._progress.advance()
            if self._parameters:
                return

    async def _send(self, name: str, parameters: Parameters, body: Mapping[str, Any]) -> Completion:
        return await self._pool.chat(name, parameters.apply(body))

    async def _worker(self, queue: Iterator[Request], replies: dict[str, str], total: int) -> None:
        parameters = self._parameters or Parameters()
        for request in queue:
            try:
                completion = await self._send(request.name, parameters, request.body)
            except RetriesExhausted as error:
                self._record_failure(error.reason, total)
            except RequestRejected as error:
                if not error.concerns_content:
                    raise
                self._record_failure(error.reason, total)
            else:
                self._record_reply(request, completion, replies, total)
            self._progress.advance()

    def _record_reply(self, request: Request, completion: Completion, replies: dict[str, str], total: int) -> None:
        """Save the reply. A reply without text is a failure: another run may get a better one."""
        if completion.problem or not completion.text.strip():
            self._record_failure(completion.problem or "the reply is empty", total)
            return
        replies[request.name] = completion.text
        row = _row(request, completion)
        self._buffer.rows.append(row)
        self._count_tokens(row)

    def _record_failure(self, reason: str, total: int) -> None:
        self._errors.append(reason)
        if len(self._errors) > max(_MAX_FAILED, _MAX_FAILED_SHARE * total):
            frequent, times = Counter(self._errors).most_common(1)[0]
            raise PyriteError(
                f"{len(self._errors)} of {total} requests for a question failed; most frequent error ({times} times): "
                f"{frequent}. Check the server, then run the same command again: it continues from here."
            )

    def _count_tokens(self, row: Mapping[str, Any]) -> None:
        self.stats.update({name: row[name] for name in ("prompt_tokens", "cached_tokens")})


def _row(request: Request, completion: Completion) -> dict[str, Any]:
    return {"key": request.key} | {name: getattr(completion, name) for name in REPLIES.names if name != "key"}
