"""A judging session: grades queries' passages with one judge, a cache and a limit of missing pairs.

A query's pairs are judged sequentially, and queries concurrently. So a query's prompt prefix is computed once and is in
the server's cache for its other pairs. And the rest of a query can be skipped when its passages are no longer relevant.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Collection, Container, Iterable, Mapping, Sequence

import pyarrow as pa

from pyrite import tables
from pyrite.append_log import WriteBuffer
from pyrite.errors import PyriteError, UserError, first_error
from pyrite.judges.base import RELEVANT, Judge, Judgment, Missing, Pair
from pyrite.judges.cache import JudgmentCache
from pyrite.progress import Progress

#: A query id, and the ids of its passages in the order of judging.
QueryPassages = tuple[str, Sequence[str]]

#: This many missing pairs are always accepted, unless judge.max_missing is 0.
FEW_MISSING = 5

#: Maximum reasons of missing pairs in a summary: many of them quote a reply.
MAX_REASONS = 20

#: If the server rejects more pairs than this and none has a judgment, the session stops, even if more may be missing.
_MAX_REJECTED = 100


def select_candidates(ranked: Sequence[tuple[str, int]], known: Collection[str], rank_window: int | None) -> list[str]:
    """Select the passages to judge for one query: those known to be relevant, then the others by rank.

    The known ones are judged at any rank: they are few, and most hard positives are among them.

    Args:
        ranked: (passage id, rank) of the query's candidates, best first, ranks from 1.
        known: passage ids that the data set labels as relevant to the query.
        rank_window: number of ranks to judge; None: all.
    """
    first = [passage for passage, _ in ranked if passage in known]
    rest = (each for each in ranked if each[0] not in known)
    return first + [passage for passage, rank in rest if rank_window is None or rank <= rank_window]


def most_frequent_reason(missing: Collection[Missing]) -> str:
    """The kind of failure that most of the ``missing`` pairs have, with its number and its most frequent reason."""
    kind, times = Counter(each.kind for each in missing).most_common(1)[0]
    reason, same = Counter(each.reason for each in missing if each.kind == kind).most_common(1)[0]
    example = "" if same == times else ", for example"
    return f"most frequent reason ({times} times{example}): {reason}"


def all_rejected(missing: Iterable[Missing]) -> bool:
    """Whether the server rejected all of the ``missing`` pairs."""
    return all(each.kind == "rejected" for each in missing)


class MissingBudget:
    """Limits the missing pairs to a ``share`` of ``total``, but at least ``few``. With share 0, none is accepted."""

    def __init__(self, share: float, total: int, few: int = FEW_MISSING):
        self.limit = max(few, math.ceil(share * total)) if share else 0
        self._share, self._total = share, total

    def check(self, missing: Sequence[Missing], any_judged: bool) -> None:
        """Check the number of ``missing`` pairs. ``any_judged``: whether any pair has a judgment.

        Raises:
            PyriteError: the limit is exceeded. The message has the most frequent reason.
            UserError: the server has rejected every pair so far, so it probably rejects all.
        """
        count = len(missing)
        if count > min(self.limit, _MAX_REJECTED) and not any_judged and all_rejected(missing):
            last = missing[-1]
            raise UserError(
                f"the server rejected the first {count} pairs, and no pair has a judgment: {last.reason}. "
                f"The last was query {last.pair.query_id}, passage {last.pair.passage_id}. A retry cannot help."
            )
        if count > self.limit:
            raise PyriteError(
                f"{count} of {self._total} pairs could not be graded, more than judge.max_missing "
                f"({self._share:.0%}) allows; {most_frequent_reason(missing)}. Check the judge's server."
            )


class JudgingSession:
    """Judges pairs, caches the judgments and counts the outcomes.

    Callers open the judge, call ``flush`` every few seconds and at the end (``run_with_flush``), then ``merge``.
    Subclasses can extend ``on_judged``, ``on_cached``, ``on_skipped`` and ``on_missing``.
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
        """``total``: number of pairs. ``patience``: a query ends after this many consecutive irrelevant passages."""
        self.judge, self.total = judge, total
        self.budget = MissingBudget(max_missing, total, few_missing)
        #: Number of pairs whose judgment was cached.
        self.cached = 0
        #: Number of passages at the end of each query that were skipped because of ``patience``.
        self.skipped: dict[str, int] = {}
        self.missing: list[Missing] = []
        self._cache, self._progress, self._patience = cache, progress, patience
        self._buffer = WriteBuffer()
        self._cached_grades: dict[Pair, int] = {}
        self._any_judged = False

    async def load_cached(self, query_ids: Collection[str]) -> None:
        """Read the cached judgments of these queries, so that their pairs are not requested again."""
        if self._cache:
            table = await asyncio.to_thread(self._cache.read, query_ids)
            pairs = map(Pair, table["query_id"].to_pylist(), table["passage_id"].to_pylist())
            self._cached_grades = dict(zip(pairs, table["grade"].to_pylist(), strict=True))

    async def judge_all(
        self, queries: Iterable[QueryPassages], known: Mapping[str, Container[str]] | None = None
    ) -> None:
        """Judge the passages of every query. The judge must be open.

        Args:
            known: known relevant passages of each query. They do not count towards ``patience``, since they do not show
                at which rank relevant passages end.

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
                self.on_cached()
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
        self._any_judged = True
        self._progress.advance()

    def on_cached(self) -> None:
        self.cached += 1
        self._progress.advance()

    def on_skipped(self, query_id: str, passages: int) -> None:
        self.skipped[query_id] = passages
        self._progress.advance(passages)

    def on_missing(self, missing: Missing) -> None:
        self.missing.append(missing)
        self._progress.advance()
        self.budget.check(self.missing, bool(self._cached_grades) or self._any_judged)

    async def flush(self) -> None:
        """Store the judgments since the last call."""
        if self._cache:
            await self._buffer.flush(self._cache.add)

    def merge(self) -> None:
        """Merge the stored files of this session into one."""
        if self._cache:
            self._cache.merge()

    def results(self, queries: Iterable[QueryPassages]) -> pa.Table:
        """The judgments of the pairs of ``queries``, in that order, without skipped and missing pairs.

        Raises:
            PyriteError: the judgments do not add up, because a pair is neither judged, skipped nor missing.
        """
        judged = [(query, ids[: len(ids) - self.skipped.get(query, 0)]) for query, ids in queries]
        if self._cache:
            table = self._cache.read_from_memory({query for query, _ in judged})
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
                f"of {total} pairs, {found.num_rows} are judged and {len(self.missing)} are missing; the others have "
                "no result. Run the same command again to judge them."
            )
        return found.select(tables.JUDGMENTS.names).cast(tables.JUDGMENTS)
