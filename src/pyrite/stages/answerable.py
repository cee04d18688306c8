"""Does a passage answer the question that was made from it? The run's judge says."""

import asyncio
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pyrite.generation.made import Made, to_tables
from pyrite.judges import Judgment, Missing, Pair, open_judge
from pyrite.judges.budget import Budget
from pyrite.judges.kept import Kept
from pyrite.judges.walking import walk_all
from pyrite.parts import Fresh
from pyrite.stages.context import StepContext

NOT_ANSWERED = "its own passage is graded below generate.answerable_grade"
NOT_GRADED = "the judge gave no grade for its own passage"


class OwnPassages:
    """Grades questions against their own passages. Judgments are kept where the judge stage looks for them."""

    def __init__(self, ctx: StepContext, chunks: pa.Table, attempt: str):
        self._ctx, self._chunks, self._attempt = ctx, chunks, attempt
        self._grades: dict[Pair, int] = {}
        self._fresh = Fresh()
        self._kept: Kept | None = None
        self._fingerprint = ""
        self._budget = Budget(ctx.spec.judge.max_missing, 0)

    async def grade(self, made: Sequence[Made]) -> list[str | None]:
        """For each question, which was made from one passage: why it is dropped, or None.

        Raises:
            PyriteError: too many could not be graded, or the judge cannot go on.
        """
        least = self._ctx.spec.generate.answerable_grade if self._ctx.spec.generate else None
        assert least is not None
        pairs = [Pair(question.id, chunk) for question in made for chunk in question.chunk_ids]
        await self._ask(made, pairs)
        grades = [self._grades.get(pair) for pair in pairs]
        return [NOT_GRADED if grade is None else NOT_ANSWERED if grade < least else None for grade in grades]

    async def _ask(self, made: Sequence[Made], pairs: Sequence[Pair]) -> None:
        self._ctx.progress.begin(len(pairs), "questions checked")
        own = pc.is_in(self._chunks["chunk_id"], pa.array({pair.chunk_id for pair in pairs}, pa.string()))
        queries, qrels = to_tables(list({question.id: question for question in made}.values()))
        judge = open_judge(self._ctx.spec, queries, self._chunks.filter(own), qrels)
        self._fingerprint = judge.fingerprint
        if judge.shared:
            writer = f"{self._ctx.spec.name}/generate.{self._ctx.step.shard}"
            self._kept = Kept(self._ctx.store, judge.fingerprint, writer, self._attempt)
            table = await asyncio.to_thread(self._kept.read, {pair.query_id for pair in pairs})
            for row in table.to_pylist():
                self._grades[Pair(row["query_id"], row["chunk_id"])] = row["grade"]
        self._budget = Budget(self._ctx.spec.judge.max_missing, len(pairs))
        walks = [(pair.query_id, [pair.chunk_id]) for pair in pairs]
        async with judge:
            await walk_all(walks, judge, dict(self._grades), None, self)
        await self.flush()

    async def flush(self) -> None:
        """Keep what was judged since the last time."""
        if self._kept:
            await self._fresh.flush(self._kept.add)

    def merge(self) -> None:
        """Make one part of what was kept."""
        if self._kept:
            self._kept.merge()

    def judged(self, judgment: Judgment) -> None:
        self._grades[judgment.pair] = judgment.grade
        self._fresh.rows.append(judgment.row(self._fingerprint))
        self._ctx.progress.advance()

    def missing(self, missing: Missing) -> None:
        self._ctx.progress.advance()
        self._budget.spend(missing)

    def kept(self, pair: Pair) -> None:
        del pair
        self._ctx.progress.advance()

    def skipped(self, query_id: str, chunk_ids: Sequence[str]) -> None:
        del query_id, chunk_ids  # no patience, so it never happens
