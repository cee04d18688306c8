"""Asking an LLM many things at once, and keeping what it answers."""

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pyrite.append_log import WriteBuffer
from pyrite.errors import PyriteError
from pyrite.generation.prompt import Request
from pyrite.generation.reply_cache import ReplyCache
from pyrite.llm.pool import Completion, Pool, RetriesExhausted
from pyrite.stages.context import StepContext

#: So many requests, and this share of them, may stay without an answer before the shard stops.
_FEW_UNANSWERED, _SHARE_UNANSWERED = 5, 0.05


class Replies:
    """The model behind a pool of servers. What is kept is not asked again."""

    def __init__(self, ctx: StepContext, pool: Pool, kept: ReplyCache):
        self._ctx, self._pool, self._kept = ctx, pool, kept
        self._fresh = WriteBuffer()
        self._unanswered: list[str] = []
        #: Requests made, how many of them were answered before, and the tokens of all answers.
        self.counts = Counter({"requested": 0, "cached": 0, "prompt_tokens": 0, "cached_tokens": 0})

    async def ask(self, requests: Sequence[Request], unit: str) -> dict[str, str]:
        """The replies by request name; without those that were not to be had.

        Raises:
            PyriteError: too many were not to be had, or the server cannot be used.
        """
        known = await asyncio.to_thread(self._kept.read, {request.key for request in requests})
        replies = {request.name: known[request.key]["text"] for request in requests if request.key in known}
        todo = [request for request in requests if request.key not in known]
        self.counts.update(asked=len(requests), kept=len(replies))
        for row in known.values():
            self._count_tokens(row)
        self._ctx.progress.begin(len(requests), unit)
        self._ctx.progress.advance(len(replies))
        if todo:
            await self._ask_all(todo, replies)
        await self.flush()
        return replies

    async def _ask_all(self, todo: Sequence[Request], replies: dict[str, str]) -> None:
        waiting = iter(todo)
        at_once = self._ctx.spec.resources.judge_concurrency * len(self._pool.urls)
        async with self._pool as pool, asyncio.TaskGroup() as group:
            for _ in range(min(len(todo), at_once)):
                group.create_task(self._worker(pool, waiting, replies, len(todo)))

    async def _worker(self, pool: Pool, waiting: Iterator[Request], replies: dict[str, str], total: int) -> None:
        for request in waiting:
            try:
                answer = await pool.chat(request.name, request.body)
            except RetriesExhausted as error:
                self._gave_up(error, total)
            else:
                replies[request.name] = answer.text
                row = _row(request, answer)
                self._fresh.rows.append(row)
                self._count_tokens(row)
            self._ctx.progress.advance()

    def _gave_up(self, error: RetriesExhausted, total: int) -> None:
        self._unanswered.append(error.reason)
        if len(self._unanswered) > max(_FEW_UNANSWERED, _SHARE_UNANSWERED * total):
            reason, times = Counter(self._unanswered).most_common(1)[0]
            raise PyriteError(
                f"{len(self._unanswered)} of {total} requests for a question stayed without an answer; {times} times: "
                f"{reason}. Look at the server. The same command goes on from here."
            )

    def _count_tokens(self, row: Mapping[str, Any]) -> None:
        self.counts.update({name: row[name] for name in ("prompt_tokens", "cached_tokens")})

    async def flush(self) -> None:
        """Keep what was answered since the last time."""
        await self._fresh.flush(self._kept.add)

    def merge(self) -> None:
        """Make one part of what was kept."""
        self._kept.merge()


def _row(request: Request, answer: Completion) -> dict[str, Any]:
    return {
        "key": request.key,
        "text": answer.text,
        "prompt_tokens": answer.prompt_tokens,
        "cached_tokens": answer.cached_tokens,
        "latency": answer.latency,
        "attempts": answer.attempts,
    }
