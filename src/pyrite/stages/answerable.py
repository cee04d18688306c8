"""Checks with the run's judge that a passage answers the question that was generated from it."""

from collections.abc import Sequence

import pyarrow as pa

from pyrite.generation.questions import GeneratedQuestion, to_tables
from pyrite.judges import Pair, open_judge
from pyrite.judges.cache import open_cache
from pyrite.judges.session import JudgingSession
from pyrite.stages.context import StepContext

NOT_ANSWERED = "its own passage is graded below generate.answerable_grade"
NOT_GRADED = "the judge gave no grade for its own passage"


class OwnPassages:
    """Grades questions against the passages from which they were generated. The judge stage reuses the judgments."""

    def __init__(self, ctx: StepContext):
        self._ctx = ctx
        self._session: JudgingSession | None = None

    async def grade(self, questions: Sequence[GeneratedQuestion], passages: pa.Table) -> list[str | None]:
        """For each question, each generated from one of ``passages``: the reason to drop it, or None.

        Raises:
            PyriteError: too many pairs could not be graded, or the judge cannot continue.
        """
        spec, pairs = self._ctx.spec, [Pair(each.id, passage) for each in questions for passage in each.passage_ids]
        assert spec.generate is not None
        assert spec.generate.answerable_grade is not None
        own_passages = [(pair.query_id, [pair.passage_id]) for pair in dict.fromkeys(pairs)]
        self._ctx.progress.begin(len(own_passages), "questions checked")
        queries, qrels = to_tables(list({question.id: question for question in questions}.values()))
        judge = open_judge(spec.main_judge, queries, passages, qrels)
        cache = open_cache(self._ctx.store, judge, f"{spec.name}/generate.{self._ctx.step.shard}")
        session = JudgingSession(judge, cache, len(own_passages), spec.judge.max_missing, self._ctx.progress)
        self._session = session
        await session.load_cached({pair.query_id for pair in pairs})
        async with judge:
            block = await session.judge_all(own_passages)
        await self.flush()
        rows = session.results(block).select(["query_id", "passage_id", "grade"]).to_pylist()
        grades = {Pair(row["query_id"], row["passage_id"]): row["grade"] for row in rows}
        return [_reason(grades.get(pair), spec.generate.answerable_grade) for pair in pairs]

    async def flush(self) -> None:
        """Store the judgments since the last call."""
        if self._session:
            await self._session.flush()

    def merge(self) -> None:
        """Merge the stored files."""
        if self._session:
            self._session.merge()


def _reason(grade: int | None, minimum: int) -> str | None:
    if grade is None:
        return NOT_GRADED
    return NOT_ANSWERED if grade < minimum else None
