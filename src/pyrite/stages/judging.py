"""The judging of a shard by one judge, block by block. A cascade extends it (``pyrite.stages.cascade``)."""

import asyncio
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pyrite import tables
from pyrite.judges.cache import JudgmentCache
from pyrite.judges.cascade import CascadeSession
from pyrite.judges.session import Block, JudgingSession, JudgmentCounts
from pyrite.spill import GroupedSpill
from pyrite.stages.blocks import PairBlocks, texts
from pyrite.stages.context import StepContext
from pyrite.stages.final_examples import final_examples
from pyrite.stages.inputs import passages_by_query


class SessionBlocks:
    """Loads blocks for a judging session: the texts into its judge, and its cached judgments."""

    def __init__(self, session: JudgingSession, cache: JudgmentCache | None, pairs: PairBlocks, cached: GroupedSpill):
        """``cached``: for the cached judgments of the shard, by block."""
        self._session, self._cache, self._pairs, self._cached = session, cache, pairs, cached

    async def copy_cached(self) -> None:
        """Copy the cached judgments of the shard's queries to the local disk."""
        if self._cache:
            await asyncio.to_thread(self._cache.scan, self._copy)
        self._cached.finish()
        _release_memory()
        self._session.any_judged = self._cached.num_rows > 0

    def load(self, pairs: pa.Table, **block: Any) -> Block:
        """A block with the cached judgments of ``pairs``. The other arguments are attributes of Block."""
        self._session.judge.load(*texts(pairs, self._pairs.selection.mask(pairs)))
        if self._cache:
            block["cached"] = self._cache.usable(self._pairs.rows_of(self._cached, pairs["query_id"]))
        return Block(**block)

    def unload(self, block: Block) -> None:
        """Free the texts of a finished block."""
        self._session.judge.unload(query for query, _ in block.queries)
        _release_memory()

    def _copy(self, judgments: pa.Table) -> None:
        self._cached.append(judgments, self._pairs.block_of(judgments["query_id"]))


def _release_memory() -> None:
    """Otherwise Arrow keeps the freed memory of several blocks."""
    pa.default_memory_pool().release_unused()


class Shard(NamedTuple):
    """What judging a shard needs: ``session`` of the judge, its ``cache``, and the table to write."""

    ctx: StepContext
    session: CascadeSession
    cache: JudgmentCache | None
    pairs: PairBlocks
    output: pq.ParquetWriter


class Judging:
    """Judges the pairs of a shard and writes the judgments.

    Attributes:
        judged: counts of the judgments of the session's judge.
        written: counts of the judgments in the output.
    """

    def __init__(self, shard: Shard):
        self._ctx, self.session, cache, self._pairs, self._output = shard
        self.judged, self.written = JudgmentCounts(), JudgmentCounts()
        self._blocks = SessionBlocks(self.session, cache, self._pairs, self._spill("cached"))

    async def prepare(self) -> None:
        """Read the cached judgments. Call it before the session's judge is opened."""
        await self._blocks.copy_cached()

    async def judge(self) -> None:
        """Judge all pairs. The session's judge must be open. Raises as ``JudgingSession.judge_blocks``."""
        blocks = (self._load(pairs) for pairs in self._pairs.read())
        await self.session.judge_blocks(blocks, self._finish)

    async def flush(self) -> None:
        """Store the judgments since the last call."""
        await self.session.flush()

    def missing_rows(self) -> list[dict[str, Any]]:
        """The missing pairs so far, as rows of ``tables.MISSING``."""
        return self.session.missing_rows()

    def summary(self) -> dict[str, Any]:
        """More counts for the step's summary."""
        return {}

    def _load(self, pairs: pa.Table, **block: Any) -> Block:
        if self._ctx.spec.judge.stop:
            block["finished"] = final_examples(self._ctx.spec.mine, pairs)
        return self._blocks.load(
            pairs,
            queries=self._pairs.selection.queries(pairs),
            known=passages_by_query(pairs.filter(pairs["known"])),
            **block,
        )

    def _finish(self, block: Block) -> None:
        judged = self.session.results(block)
        self._write(judged, judged)
        self._blocks.unload(block)

    def _write(self, judged: pa.Table, table: pa.Table) -> None:
        """Write the judgments of a block. ``judged``: those of the session's judge, of the same queries."""
        self.judged.add(judged)
        self.written.add(table)
        if table.num_rows:
            self._output.write_table(table)

    def _spill(self, name: str) -> GroupedSpill:
        """A temporary file for judgments by block."""
        return GroupedSpill(self._ctx.scratch / f"{name}.arrow", tables.JUDGMENTS)
