"""A judging session: grades queries' passages with one judge, a cache and a limit of missing pairs.

A query's pairs are judged sequentially, and queries concurrently. So the server computes a query's prompt prefix once
and finds it in its cache for the other pairs, and a query can be left when its passages stop being relevant.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Collection, Container, Iterable, Mapping, Sequence

import pyarrow as pa

from pyrite import tables
from pyrite.append_log import WriteBuffer
from pyrite.errors import PyriteError, first_error
from pyrite.judges.base import RELEVANT, Judge, Judgment, Missing, Pair
from pyrite.judges.cache import JudgmentCache
from pyrite.progress import Progress

#: A query id and the ids of its passages, in the order in which they are judged.
QueryPassages = tuple[str, Sequence[str]]

#: This many missing pairs are accepted in any amount of work, unless judge.max_missing is 0.
FEW_MISSING = 5


def select_candidates(ranked: Sequence[tuple[str, int]], known: Collection[str], rank_window: int | None) -> list[str]:
    """The passage ids to judge for one query: those known to be relevant, then the others by rank.

    The known ones are judged whatever their rank: they are few, and most hard positives are among them.

    Args:
        ranked: (passage id, rank) of the query's candidates, best first, ranks from 1.
        known: passage ids that the data set labels as relevant to the query.
        rank_window: number of ranks to judge; None: all.
    """
    first = [passage for passage, _ in ranked if passage in known]
    rest = (each for each in ranked if each[0] not in known)
    return first + [passage for passage, rank in rest if rank_window is None or rank <= rank_window]


class MissingBudget:
    """The number of pairs that may stay ungraded: a ``share`` of ``total``, but at least ``few``."""

    def __init__(self, share: float, total: int, few: int = FEW_MISSING):
        self.limit = max(few, math.ceil(share * total)) if share else 0
        self._share, self._total = share, total
        self._reasons: Counter[str] = Counter()

    def spend(self, missing: Missing) -> None:
        """Count a missing pair. Raises PyriteError above the limit, with the most frequent reason."""
        self._reasons[missing.reason] += 1
        if self._reasons.total() > self.limit:
            reason, times = self._reasons.most_common(1)[0]
            raise PyriteError(
                f"{self._reasons.total()} of {self._total} pairs could not be graded, more than judge.max_missing "
                f"({self._share:.0%}) allows; {times} times: {reason}. Check the judge's server."
            )


class JudgingSession:
    """Judges pairs, caches the judgments and counts the results.

    Callers open the judge, call ``flush`` every few seconds and at the end (``run_with_flush``), then ``merge``. A
    subclass can extend ``on_judged``, ``on_cached``, ``on_skipped`` and ``on_missing``.
    """

    def __init__(
        self,
        judge: Judge,
        cache: JudgmentCache | None,
        total: int,
        max_missing: float,
        progress: Progress,
        *,
        patience: int | None = None,
        few_missing: int = FEW_MISSING,
    ):
        """``total``: number of pairs. ``patience``: leave a query after this many grades below relevant in a row."""
        self.judge, self.total = judge, total
        self.budget = MissingBudget(max_missing, total, few_missing)
        #: Number of pairs whose judgment was cached.
        self.cached = 0
        #: Number of passages at the end of a query that were left out because of ``patience``.
        self.skipped: dict[str, int] = {}
        self.missing: list[Missing] = []
        self._cache, self._progress, self._patience = cache, progress, patience
        self._buffer = WriteBuffer()
        self._cached_grades: dict[Pair, int] = {}

    async def load_cached(self, query_ids: Collection[str]) -> None:
        """Read the cached judgments of these queries, so that their pairs are not requested again."""
        if self._cache:
            table = await asyncio.to_thread(self._cache.read, query_ids)
            pairs = map(Pair, table["query_id"].to_pylist(), table["passage_id"].to_pylist())
            self._cached_grades = dict(zip(pairs, table["grade"].to_pylist(), strict=True))

    async def judge_all(
        self, queries: Iterable[QueryPassages], known: Mapping[str, Container[str]] | None = None
    ) -> None:
        """Judge the passages of every query. The judge is open.

        Args:
            known: passages at the start of a query that are judged whatever their rank. They do not count towards
                ``patience``, since they say nothing about the rank at which relevant passages end.

        Raises:
            PyriteError: too many pairs could not be graded, or the judge cannot continue.
        """
        queue = iter(queries)

        async def worker() -> None:
            for query_id, passage_ids in queue:
                await self._judge_query(query_id, passage_ids, (known or {}).get(query_id, ()))

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.judge.in_flight):
                    group.create_task(worker())
        except BaseExceptionGroup as group_error:
            raise first_error(group_error) from group_error

    async def _judge_query(self, query_id: str, passage_ids: Sequence[str], known: Container[str]) -> None:
        irrelevant = 0
        for position, passage_id in enumerate(passage_ids):
            if self._patience is not None and irrelevant >= self._patience:
                self.on_skipped(query_id, len(passage_ids) - position)
                return
            pair = Pair(query_id, passage_id)
            grade = self._cached_grades.get(pair)
            if grade is not None:
                self.on_cached(pair)
            else:
                result = await self.judge.grade(pair)
                if isinstance(result, Missing):
                    self.on_missing(result)
                    continue  # not evidence for or against relevance
                self.on_judged(result)
                grade = result.grade
            if passage_id not in known:
                irrelevant = 0 if grade >= RELEVANT else irrelevant + 1

    def on_judged(self, judgment: Judgment) -> None:
        self._buffer.rows.append(judgment.row(self.judge.fingerprint))
        self._progress.advance()

    def on_cached(self, pair: Pair) -> None:
        del pair
        self.cached += 1
        self._progress.advance()

    def on_skipped(self, query_id: str, passages: int) -> None:
        self.skipped[query_id] = passages
        self._progress.advance(passages)

    def on_missing(self, missing: Missing) -> None:
        self.missing.append(missing)
        self._progress.advance()
        self.budget.spend(missing)

    async def flush(self) -> None:
        """Store what was judged since the last call."""
        if self._cache:
            await self._buffer.flush(self._cache.add)

    def merge(self) -> None:
        """Merge the stored files of this session into one."""
        if self._cache:
            self._cache.merge()

    def results(self, queries: Iterable[QueryPassages]) -> pa.Table:
        """The judgments of all pairs of ``queries``, in that order, without skipped and missing ones.

        Raises:
            PyriteError: a pair is neither judged nor missing.
        """
        judged = [(query, ids[: len(ids) - self.skipped.get(query, 0)]) for query, ids in queries]
        if self._cache:
            table = self._cache.held({query for query, _ in judged})
        else:
            table = pa.Table.from_pylist(self._buffer.rows, tables.JUDGMENTS)
        total = sum(len(ids) for _, ids in judged)
        order = pa.table(
            {
                "query_id": pa.array((query for query, ids in judged for _ in ids), pa.string()),
                "passage_id": pa.array((id for _, ids in judged for id in ids), pa.string()),
                "position": pa.array(range(total), pa.int64()),
            }
        )
        found = order.join(table, ["query_id", "passage_id"], join_type="inner").sort_by("position")
        if found.num_rows + len(self.missing) != total:
            raise PyriteError(
                f"{total} pairs were to be judged, but there are {found.num_rows} judgments and "
                f"{len(self.missing)} missing pairs. Run the same command again to judge the rest."
            )
        return found.select(tables.JUDGMENTS.names).cast(tables.JUDGMENTS)
