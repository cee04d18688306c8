"""The base class of judges whose model is behind servers."""

from abc import abstractmethod
from collections.abc import Iterable
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

    def __init__(self, pool: Pool):
        self.in_flight = pool.max_pending
        #: Number of passages truncated to fit the model's context length.
        self.truncated = 0
        self._pool = pool
        #: Each query's text, and the texts of its passages.
        self._queries: dict[str, tuple[str, _Passages]] = {}

    def load(self, queries: pa.Table, passages: pa.Table) -> None:
        texts = _Passages(passages)
        columns = (queries[name].to_pylist() for name in ("query_id", "text"))
        self._queries.update({query: (text, texts) for query, text in zip(*columns, strict=True)})

    def unload(self, query_ids: Iterable[str]) -> None:
        for query in query_ids:
            del self._queries[query]

    async def __aenter__(self) -> Self:
        await self._pool.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._pool.__aexit__(kind, error, trace)

    def context(self, pair: Pair) -> str:
        """The passage's context; empty if the judge does not have the pair."""
        _, passages = self._queries.get(pair.query_id, ("", None))
        return passages.context(pair.passage_id) if passages else ""

    def texts(self, pair: Pair) -> tuple[str, str]:
        """The pair's query, and its passage in its context."""
        query, passages = self._queries[pair.query_id]
        return query, passages.text(pair.passage_id)

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


class _Passages:
    """Contexts and texts of passages by id. They stay in Arrow: Python strings would double the memory of a corpus."""

    def __init__(self, passages: pa.Table):
        """``passages`` as in ``Judge.load``."""
        self._rows = {passage: row for row, passage in enumerate(passages["passage_id"].to_pylist())}
        self._contexts, self._texts = passages["context"], tables.join_context(passages)

    def context(self, passage_id: str) -> str:
        """The context; empty if there is no such passage."""
        row = self._rows.get(passage_id)
        return "" if row is None else str(self._contexts[row])

    def text(self, passage_id: str) -> str:
        """The passage in its context."""
        return str(self._texts[self._rows[passage_id]])
