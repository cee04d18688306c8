"""The base class of judges whose model is behind servers."""

from abc import abstractmethod
from types import TracebackType
from typing import Self

import pyarrow as pa

from pyrite import tables
from pyrite.judges.base import Judge, Judgment, Missing, Pair
from pyrite.llm.errors import RequestRejected
from pyrite.llm.pool import Pool, RetriesExhausted


class ServerJudge(Judge):
    """Grades the texts of pairs by requests to a pool of servers.

    A request that the server rejects because of its content makes the pair missing: the server has accepted a sample.
    """

    shareable = True

    def __init__(self, pool: Pool, queries: pa.Table, passages: pa.Table):
        """``queries`` and ``passages`` as in ``pyrite.tables``."""
        self.in_flight = pool.max_pending
        #: Number of passages truncated to fit the model's context length.
        self.truncated = 0
        self._pool = pool
        self._queries = dict(zip(queries["query_id"].to_pylist(), queries["text"].to_pylist(), strict=True))
        self._rows = {passage: row for row, passage in enumerate(passages["passage_id"].to_pylist())}
        # Stays in Arrow: Python strings would double the memory of a large corpus.
        self._passages = passages.select(["context", "text"])

    async def __aenter__(self) -> Self:
        await self._pool.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._pool.__aexit__(kind, error, trace)

    def context(self, passage_id: str) -> str:
        """The passage's context; empty if the judge does not have the passage."""
        row = self._rows.get(passage_id)
        return "" if row is None else str(self._passages["context"][row].as_py())

    def texts(self, pair: Pair) -> tuple[str, str]:
        """The pair's query, and its passage in its context."""
        (passage,) = tables.in_context(self._passages.slice(self._rows[pair.passage_id], 1))
        return self._queries[pair.query_id], passage

    async def grade(self, pair: Pair) -> Judgment | Missing:
        await self.ready()
        try:
            return await self._request_grade(pair)
        except RetriesExhausted as error:
            return Missing(pair, error.reason, error.attempts, error.kind)
        except RequestRejected as error:
            if not error.concerns_content:
                raise
            return Missing(pair, error.reason, error.attempts, "rejected")

    @abstractmethod
    async def _request_grade(self, pair: Pair) -> Judgment | Missing:
        """Request the grade of ``pair``, after ``ready``. Raises as ``Pool.chat`` does."""
