"""A judging session: grades queries' passages with one judge, a cache and a limit of missing pairs.

A query's pairs are judged sequentially, and queries concurrently. So a query's prompt prefix is computed once and is in
the server's cache for its other pairs. And the rest of a query can be skipped when its passages are no longer relevant.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pyrite import tables
from pyrite.append_log import WriteBuffer
from pyrite.errors import PyriteError, UserError, first_error
from pyrite.judges.base import GRADES, RELEVANT, Judge, Judgment, Missing, Pair, pairs_of
from pyrite.judges.cache import JudgmentCache
from pyrite.judges.calibration import final, final_table
from pyrite.progress import Progress

#: A query id, and the ids of its passages in the order of judging.
QueryPassages = tuple[str, Sequence[str]]


class Graded(NamedTuple):
    """The grade and the expected grade of a judged passage."""

    grade: int
    expected: float

    @classmethod
    def of(cls, judgment: Judgment) -> Self:
        """As the judgment will be stored, in float32, so that mining compares the same number."""
        return cls(judgment.grade, float(np.float32(judgment.expected)))


#: Whether a query needs no further judgments, from its id, its judged passages, and the ids that are not judged yet.
Finished = Callable[[str, Mapping[str, Graded], Sequence[str]], bool]


@dataclass
class Block:
    """Queries whose judging starts together, what is known about them, and the outcome.

    Attributes:
        known: known relevant passages of each query. They do not count towards ``patience``, since they do not show at
            which rank relevant passages end.
        finished: a query ends as soon as it is finished; None: not before its last passage.
        cached: usable cached judgments of the queries.
        decided: judgments that a cascade's first judge has decided.
        number: the position of the block in its shard.
        new: rows of JUDGMENTS from the judge.
        skipped: number of passages at the end of each query that were skipped.
        missing: pairs that could not be graded.
        cached_grades: the grades of ``cached``, calibrated.
    """

    queries: Iterable[QueryPassages]
    known: Mapping[str, Collection[str]] = field(default_factory=dict)
    finished: Finished | None = None
    cached: pa.Table = field(default_factory=tables.JUDGMENTS.empty_table)
    decided: Mapping[Pair, Judgment] = field(default_factory=dict)
    number: int = 0
    new: list[dict[str, Any]] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    missing: list[Missing] = field(default_factory=list)
    cached_grades: Mapping[Pair, Graded] = field(default_factory=dict)


class JudgmentCounts:
    """Counts of judgments, for a step's summary."""

    def __init__(self, *judged: pa.Table) -> None:
        """``judged``: JUDGMENTS."""
        self.rows = self.prompt_tokens = self.cached_tokens = 0
        self.grades: Counter[int] = Counter()
        for table in judged:
            self.add(table)

    def add(self, judged: pa.Table) -> None:
        """Count the rows of ``judged`` (JUDGMENTS)."""
        self.rows += judged.num_rows
        self.prompt_tokens += pc.sum(judged["prompt_tokens"]).as_py() or 0
        self.cached_tokens += pc.sum(judged["cached_tokens"]).as_py() or 0
        self.grades.update(judged["grade"].to_pylist())

    def by_grade(self) -> dict[str, int]:
        """The number of judgments of each grade."""
        return {str(grade): self.grades[grade] for grade in GRADES}


#: This many missing pairs are always accepted, unless judge.max_missing is 0.
FEW_MISSING = 5

#: Maximum reasons of missing pairs in a summary: many of them quote a reply.
MAX_REASONS = 20

#: If the server rejects more pairs than this and none has a judgment, the session stops, even if more may be missing.
_MAX_REJECTED = 100


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
    """Limits the missing pairs to a ``share`` of ``total``, but at least ``few``. With share 0, none is accepted.

    ``section``: the section of the run file with the judge's settings, for messages.
    """

    def __init__(self, share: float, total: int, few: int, section: str):
        self._share, self._total, self._few = share, total, few
        # The judges of a cascade share the setting.
        self._setting = "evaluate.judge.max_missing" if section == "evaluate.judge" else "judge.max_missing"
        self._server = "the judge's server" if section == "judge" else f"the server of {section}"
        self.limit = self._limit(total)

    def _limit(self, total: int) -> int:
        return max(self._few, math.ceil(self._share * total)) if self._share else 0

    def check(self, missing: Sequence[Missing], any_judged: bool, needed: int | None = None) -> None:
        """Check the number of ``missing`` pairs.

        Args:
            any_judged: whether any pair has a judgment.
            needed: number of pairs that were judged or are missing, known at the end; None: the total.

        Raises:
            PyriteError: the limit is exceeded. The message has the most frequent reason.
            UserError: the server has rejected every pair so far, so it probably rejects all.
        """
        count = len(missing)
        if count > min(self.limit, _MAX_REJECTED) and not any_judged and all_rejected(missing):
            last = missing[-1]
            raise UserError(
                f"{self._server} rejected the first {count} pairs, and no pair has a judgment: {last.reason}. "
                f"The last was query {last.pair.query_id}, passage {last.pair.passage_id}. A retry cannot help."
            )
        total = self._total if needed is None else needed
        if count > self._limit(total):
            raise PyriteError(
                f"{count} of {total} pairs could not be graded, more than {self._setting} "
                f"({self._share:.0%}) allows; {most_frequent_reason(missing)}. Check {self._server}."
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
        raw: bool = False,
    ):
        """Create a session.

        Args:
            total: number of pairs.
            patience: a query ends after this many consecutive irrelevant passages.
            raw: use the judgments as the judge gives them, without calibration and without a check of scores.
        """
        self.judge, self.total, self._raw = judge, total, raw
        self.budget = MissingBudget(max_missing, total, few_missing, judge.section)
        #: Number of pairs whose judgment was cached.
        self.cached = 0
        self.missing: list[Missing] = []
        #: Whether any pair has a judgment, so that the judge is known to work.
        self.any_judged = False
        self._cache, self._progress, self._patience = cache, progress, patience
        self._buffer = WriteBuffer()
        self._loaded = tables.JUDGMENTS.empty_table()
        self._new = 0

    async def load_cached(self, query_ids: Collection[str]) -> None:
        """Read the cached judgments of these queries, so that ``judge_all`` does not request their pairs again."""
        if self._cache:
            self._loaded = await asyncio.to_thread(self._cache.read, query_ids)

    async def judge_all(
        self, queries: Iterable[QueryPassages], known: Mapping[str, Collection[str]] | None = None
    ) -> Block:
        """Judge the passages of every query as one block, and return it. As ``judge_blocks``."""
        block = Block(queries, known or {}, cached=self._loaded)
        await self.judge_blocks([block])
        return block

    async def judge_blocks(
        self, blocks: Iterable[Block], on_finished: Callable[[Block], None] = lambda _block: None
    ) -> None:
        """Judge the passages of every query. The judge must be open.

        While the last queries of a block are judged, those of the next one start, so that the judge is always busy. A
        block is taken from ``blocks`` only when the one before the last has finished: two are in memory.

        Args:
            on_finished: called with each block when all of its pairs have an outcome, in the order of ``blocks``.

        Raises:
            PyriteError: too many pairs could not be graded, or the judge cannot continue.
        """
        slots = asyncio.Semaphore(self.judge.in_flight)

        async def judge_query(block: Block, query_id: str, passage_ids: Sequence[str]) -> None:
            try:
                await self._judge_query(block, query_id, passage_ids)
            finally:
                slots.release()

        async def finish(block: Block, tasks: Collection[asyncio.Task[None]]) -> None:
            if tasks:
                await asyncio.wait(tasks)
            on_finished(block)

        try:
            async with asyncio.TaskGroup() as group:
                previous: tuple[Block, list[asyncio.Task[None]]] | None = None
                for block in blocks:
                    self._start(block)
                    tasks = []
                    for query_id, passage_ids in block.queries:
                        await slots.acquire()
                        tasks.append(group.create_task(judge_query(block, query_id, passage_ids)))
                    if previous:
                        await finish(*previous)
                    previous = block, tasks
                if previous:
                    await finish(*previous)
        except BaseExceptionGroup as group_error:
            raise first_error(group_error) from group_error
        # Again, because patience, judge.stop and a cascade need fewer pairs than the total.
        needed = self._new + self.cached + len(self.missing)
        self.budget.check(self.missing, self.any_judged, needed)

    def _start(self, block: Block) -> None:
        table = self._final_table(block.cached)
        grades = map(Graded, table["grade"].to_pylist(), table["expected"].to_pylist())
        block.cached_grades = dict(zip(pairs_of(table), grades, strict=True))
        self.any_judged = self.any_judged or bool(block.cached_grades)

    async def _judge_query(self, block: Block, query_id: str, passage_ids: Sequence[str]) -> None:
        irrelevant, known = 0, block.known.get(query_id, ())
        graded: dict[str, Graded] = {}
        for position, passage_id in enumerate(passage_ids):
            if (self._patience is not None and irrelevant >= self._patience) or (
                block.finished and block.finished(query_id, graded, passage_ids[position:])
            ):
                block.skipped[query_id] = len(passage_ids) - position
                self.on_skipped(block, query_id, passage_ids[position:])
                return
            found = await self.graded(block, Pair(query_id, passage_id))
            if found is None:
                continue  # not evidence for or against relevance
            graded[passage_id] = found
            if passage_id not in known:
                irrelevant = 0 if found.grade >= RELEVANT else irrelevant + 1

    async def graded(self, block: Block, pair: Pair) -> Graded | None:
        """The grade of a pair, cached or from the judge; None if it is missing."""
        cached = block.cached_grades.get(pair)
        if cached is not None:
            self.on_cached()
            return cached
        result = await self.judge.grade(pair)
        if isinstance(result, Missing):
            block.missing.append(result)
            self.on_missing(result)
            return None
        row = result.row(self.judge.fingerprint)
        block.new.append(row)
        if self._cache:
            self._buffer.rows.append(row)
        self._new += 1
        self.any_judged = True
        judgment = result if self._raw else final(self.judge, result)
        self.on_judged(judgment)
        return Graded.of(judgment)

    def on_judged(self, judgment: Judgment) -> None:
        """The judge has graded a pair."""
        del judgment
        self._progress.advance()

    def on_cached(self) -> None:
        """The judgment of a pair was cached."""
        self.cached += 1
        self._progress.advance()

    def on_skipped(self, block: Block, query_id: str, passage_ids: Sequence[str]) -> None:
        """The last passages of a query are not judged."""
        del block, query_id
        self._progress.advance(len(passage_ids))

    def on_missing(self, missing: Missing) -> None:
        """A pair could not be graded. Raises as ``MissingBudget.check`` does."""
        self.missing.append(missing)
        self._progress.advance()
        self.budget.check(self.missing, self.any_judged)

    async def flush(self) -> None:
        """Store the judgments since the last call."""
        if self._cache:
            await self._buffer.flush(self._cache.add)

    def merge(self) -> None:
        """Merge the stored files of this session."""
        if self._cache:
            self._cache.merge()

    def missing_rows(self) -> list[dict[str, Any]]:
        """The missing pairs as rows of ``tables.MISSING``."""
        return [{**each.pair._asdict(), "reason": each.reason, "attempts": each.attempts} for each in self.missing]

    def counts(self, judged: JudgmentCounts) -> dict[str, Any]:
        """Counts for a step's summary. ``judged``: those of this session's judge."""
        return {
            "cached": self.cached,
            "judged": judged.rows,
            "missing": len(self.missing),
            "missing_reasons": dict(Counter(each.reason for each in self.missing).most_common(MAX_REASONS)),
            "grades": judged.by_grade(),
            "prompt_tokens": judged.prompt_tokens,
            "cached_tokens": judged.cached_tokens,
        }

    def requested(self, block: Block, query_id: str, passage_ids: Sequence[str]) -> Sequence[str]:
        """Those of a query's passages that need a judgment of this session's judge."""
        return passage_ids[: len(passage_ids) - block.skipped.get(query_id, 0)]

    def results(self, block: Block) -> pa.Table:
        """The judgments of the pairs of a finished block, in their order, without skipped and missing pairs.

        Raises:
            PyriteError: the judgments do not add up, because a pair is neither judged, skipped nor missing.
        """
        judged = [(query, self.requested(block, query, ids)) for query, ids in block.queries]
        table = pa.concat_tables([block.cached, pa.Table.from_pylist(block.new, tables.JUDGMENTS)])
        total = sum(len(ids) for _, ids in judged)
        order = pa.table(
            {
                "query_id": pa.array((query for query, ids in judged for _ in ids), pa.string()),
                "passage_id": pa.array((id for _, ids in judged for id in ids), pa.string()),
                "position": pa.array(range(total), pa.int64()),
            }
        )
        found = order.join(table, ["query_id", "passage_id"], join_type="inner").sort_by("position")
        if found.num_rows + len(block.missing) != total:
            raise PyriteError(
                f"of {total} pairs, {found.num_rows} are judged and {len(block.missing)} are missing; the others have "
                "no result. Run the same command again to judge them."
            )
        return self._final_table(found.select(tables.JUDGMENTS.names).cast(tables.JUDGMENTS))

    def all_cached(self, block: Block) -> bool:
        """Whether all passages of the block have cached judgments."""
        cached = set(pairs_of(block.cached))
        return all(Pair(query, id) in cached for query, ids in block.queries for id in ids)

    def _final_table(self, table: pa.Table) -> pa.Table:
        return table if self._raw else final_table(self.judge, table)
