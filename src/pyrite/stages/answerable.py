"""Does a passage answer the question that was made from it? The run's judge says."""

import asyncio
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pyrite.append_log import WriteBuffer
from pyrite.generation.questions import GeneratedQuestion, to_tables
from pyrite.judges import Judgment, Missing, Pair, open_judge
from pyrite.judges.budget import MissingBudget
from pyrite.judges.cache import JudgmentCache
from pyrite.judges.session import judge_all
from pyrite.stages.context import StepContext

NOT_ANSWERED = "its own passage is graded below generate.answerable_grade"
NOT_GRADED = "the judge gave no grade for its own passage"


class OwnPassages:
    """Grades questions against their own passages. Judgments are kept where the judge stage looks for them."""

    def __init__(self, ctx: StepContext, passages: pa.Table, attempt: str):
        self._ctx, self._passages, self._attempt = ctx, passages, attempt
        self._grades: dict[Pair, int] = {}
        self._fresh = WriteBuffer()
        self._kept: JudgmentCache | None = None
        self._fingerprint = ""
        self._budget = MissingBudget(ctx.spec.judge.max_missing, 0)

    async def grade(self, made: Sequence[GeneratedQuestion]) -> list[str | None]:
        """For each question, which was made from one passage: why it is dropped, or None.

        Raises:
            PyriteError: too many could not be graded, or the judge cannot go on.
        """
        least = self._ctx.spec.generate.answerable_grade if self._ctx.spec.generate else None
        assert least is not None
        pairs = [Pair(question.id, passage) for question in made for passage in question.passage_ids]
        await self._ask(made, pairs)
        grades = [self._grades.get(pair) for pair in pairs]
        return [NOT_GRADED if grade is None else NOT_ANSWERED if grade < least else None for grade in grades]

    async def _ask(self, made: Sequence[GeneratedQuestion], pairs: Sequence[Pair]) -> None:
        self._ctx.progress.begin(len(pairs), "questions checked")
        own = pc.is_in(self._passages["passage_id"], pa.array({pair.passage_id for pair in pairs}, pa.string()))
        queries, qrels = to_tables(list({question.id: question for question in made}.values()))
        judge = open_judge(self._ctx.spec, queries, self._passages.filter(own), qrels)
        self._fingerprint = judge.fingerprint
        if judge.shared:
            writer = f"{self._ctx.spec.name}/generate.{self._ctx.step.shard}"
            self._kept = JudgmentCache(self._ctx.store, judge.fingerprint, writer, self._attempt)
            table = await asyncio.to_thread(self._kept.read, {pair.query_id for pair in pairs})
            for row in table.to_pylist():
                self._grades[Pair(row["query_id"], row["passage_id"])] = row["grade"]
        self._budget = MissingBudget(self._ctx.spec.judge.max_missing, len(pairs))
        walks = [(pair.query_id, [pair.passage_id]) for pair in pairs]
        async with judge:
            await judge_all(walks, judge, dict(self._grades), None, self)
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

    def skipped(self, query_id: str, passage_ids: Sequence[str]) -> None:
        del query_id, passage_ids  # no patience, so it never happens
