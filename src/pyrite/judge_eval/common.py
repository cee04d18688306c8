"""Shared by ``probe`` and ``calibrate``: access to a prepared run, and a judging session that is timed."""

import asyncio
import time
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import pyarrow as pa

from pyrite import judges
from pyrite.errors import PyriteError, UserError
from pyrite.executors.step import Run
from pyrite.judges import Judge, Judgment, Missing, Pair
from pyrite.judges.cache import JudgmentCache
from pyrite.judges.session import JudgingSession, QueryPassages, all_rejected, most_frequent_reason
from pyrite.plan import Step
from pyrite.progress import Progress
from pyrite.spec import CommonJudgeSpec, RunSpec
from pyrite.stages.context import StepContext
from pyrite.stages.flushing import run_with_flush

#: This many missing pairs are always accepted, unless no pair is graded by then.
_FEW_MISSING = 20


def missing_steps(run: Run) -> list[Step]:
    """The unfinished steps among those that write the run's corpus and queries."""
    preparing = ("prepare", "generate")
    return [state.step for state in run.survey() if state.step.stage in preparing and state.state != "done"]


def prepared_context(run: Run, progress: Progress) -> StepContext:
    """A read-only context for the stages' functions that read tables.

    Raises:
        UserError: the run is not prepared.
    """
    if missing_steps(run):
        raise UserError(
            f"run {run.spec.name} is not prepared, or its source or settings have changed. Run `pyrite prepare`."
        )
    return StepContext(
        spec=run.spec,
        step=Step("retrieve", 1),  # any step
        store=run.store,
        prefix=run.prefix,
        manifests=run.manifests(),
        scratch_key=f"{run.prefix}/scratch/aside",
        progress=progress,
    )


def open_judge(spec: RunSpec, queries: pa.Table, passages: pa.Table, qrels: pa.Table) -> Judge:
    """Open the judge for pairs that are not those of a run's iterations.

    Raises:
        UserError: the judge's settings are wrong, or it needs the candidates of a run.
    """
    if spec.judge.reads_first_candidates:
        raise UserError(
            "judge.noise needs the candidates of iteration 1, which only the steps of a run have. Remove judge.noise, "
            "or set judge.confusion instead."
        )
    return judges.open_judge(spec, queries, passages, qrels)


def judge_summary(spec: CommonJudgeSpec, judge: Judge) -> dict[str, Any]:
    """The judge's identity and statistics, for a result file."""
    return {**spec.identity, "fingerprint": judge.fingerprint, **judge.stats}


class TimedSession(JudgingSession):
    """A session that also collects the judgments, and measures the time from the first request to the last reply."""

    def __init__(
        self, judge: Judge, cache: JudgmentCache | None, pairs: Sequence[Pair], max_missing: float, progress: Progress
    ):
        super().__init__(judge, cache, len(pairs), max_missing, progress, few_missing=_FEW_MISSING)
        self.judgments: list[Judgment] = []
        self.seconds = 0.0
        self._pairs = pairs

    def run(self) -> None:
        """Judge all pairs. To measure the time, cached judgments are not used; new ones are cached.

        Raises:
            Interrupted: the process received SIGTERM.
            PyriteError: the judge cannot continue, grades nothing, or leaves too many pairs ungraded.
        """
        if not self._pairs:
            return  # needs no server
        self._progress.begin(self.total, "pairs judged")
        asyncio.run(run_with_flush(self._run(), self.flush))
        self.merge()

    async def _run(self) -> None:
        async with self.judge:
            await self.judge.ready()
            started = time.perf_counter()
            await self.judge_all(_grouped(self._pairs, self.judge.in_flight))
            self.seconds = time.perf_counter() - started

    def on_judged(self, judgment: Judgment) -> None:
        self.judgments.append(judgment)
        super().on_judged(judgment)

    def on_missing(self, missing: Missing) -> None:
        super().on_missing(missing)
        if len(self.missing) >= min(_FEW_MISSING, self.total) and not self.judgments:
            error = UserError if all_rejected(self.missing) else PyriteError
            raise error(
                f"the judge graded none of the first {len(self.missing)} pairs; {most_frequent_reason(self.missing)}. "
                f"Check the judge's server and resources.judge_urls."
            )


def _grouped(pairs: Sequence[Pair], in_flight: int) -> list[QueryPassages]:
    """Group the pairs by query. Queries are divided if they are too few to use the judge's concurrency."""
    queries = [(query, [pair.passage_id for pair in group]) for query, group in groupby(pairs, lambda p: p.query_id)]
    parts = -(-in_flight // max(1, len(queries)))
    return [
        (query, ids[start : start + size])
        for query, ids in queries
        for size in [-(-len(ids) // parts)]
        for start in range(0, len(ids), size)
    ]
