"""Shared by ``probe`` and ``calibrate``: access to a prepared run, and a judging session that is timed."""

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, NamedTuple

from pyrite import tables
from pyrite.errors import PyriteError, UserError
from pyrite.executors.step import Run
from pyrite.judges import Judge, Judgment, Missing, Pair, open_judge
from pyrite.judges.cache import JudgmentCache, open_cache
from pyrite.judges.prompt import load_prompt
from pyrite.judges.session import JudgingSession, QueryPassages, all_rejected, most_frequent_reason
from pyrite.plan import Step
from pyrite.progress import Progress
from pyrite.spec import CommonJudgeSpec, ConfiguredJudge, LlmJudgeSpec, RunSpec
from pyrite.stages.context import StepContext
from pyrite.stages.flushing import run_with_flush

#: Seconds that a command waits for the judge's server before it starts.
_SERVER_SECONDS = 60.0

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
    return run.reading_context(progress)


def check_judge(judge: ConfiguredJudge) -> None:
    """Check, before any work, that the judge can grade pairs that are not those of a run's iterations.

    Raises:
        UserError: the judge needs the candidates of a run.
    """
    if judge.spec.reads_first_candidates:
        raise UserError(
            f"{judge.section}.noise needs the candidates of iteration 1, which only a run has. Remove it, "
            f"or set {judge.section}.confusion instead."
        )


def check_server(spec: RunSpec, report: Callable[[str], None]) -> None:
    """Check, before any other work, that the judge's server responds and serves its model.

    Args:
        report: called with a message for the user before the wait.

    Raises:
        UserError: the judge's settings are wrong, or the server does not accept them.
        NoServerAvailable: no server responds within a minute.
    """
    judge = spec.main_judge
    if not judge.spec.needs_server:
        return
    servers = replace(judge.servers, outage_seconds=_SERVER_SECONDS)
    tables_of = (schema.empty_table() for schema in (tables.QUERIES, tables.PASSAGES, tables.QRELS))
    opened = open_judge(judge._replace(servers=servers), *tables_of)
    report(f"waiting up to {_SERVER_SECONDS:g} s for the judge's server: {', '.join(servers.urls)}")

    async def wait() -> None:
        async with opened:
            await opened.ready()

    asyncio.run(wait())


def judge_summary(spec: CommonJudgeSpec, judge: Judge) -> dict[str, Any]:
    """The judge's identity and statistics, for a result file. ``reply``: what its replies must have."""
    reply = "a score" if spec.kind == "reranker" else "a grade"
    if isinstance(spec, LlmJudgeSpec) and load_prompt(spec.prompt).form == "yes_no":
        reply = "yes or no"
    calibration = {"calibration": judge.calibration.digest} if judge.calibration else {}
    return {**spec.identity, "reply": reply, "fingerprint": judge.fingerprint, **calibration, **judge.stats}


class JudgedPairs(NamedTuple):
    """The judgments of pairs as the judge gives them, without calibration, and how they were obtained.

    ``cached`` and ``missing`` are numbers of pairs. ``pairs_per_second`` is the speed of the others.
    """

    judgments: Mapping[Pair, Judgment]
    cached: int
    missing: int
    pairs_per_second: float


def judge_pairs(
    run: Run, judge: Judge, pairs: Collection[Pair], progress: Progress, *, use_cache: bool = True
) -> JudgedPairs:
    """Judge all pairs of a graded file. Without ``use_cache``, cached judgments are not used, and no new ones cached.

    Raises:
        UserError: the judge's settings or server are wrong, and a retry cannot help.
        PyriteError: the judge grades nothing, or leaves too many pairs ungraded.
    """
    cached = cached_judgments(run, judge, pairs) if use_cache else {}
    cache, left = (_cache(run, judge) if use_cache else None), sorted(set(pairs) - cached.keys())
    maximum = run.spec.judge.max_missing
    session = TimedSession(judge, cache, left, maximum, progress, any_cached=bool(cached), raw=True)
    session.run()
    judgments = {**cached, **{judgment.pair: judgment for judgment in session.judgments}}
    speed = round(len(session.judgments) / max(session.seconds, 1e-6), 3)
    return JudgedPairs(judgments, len(cached), len(session.missing), speed)


def cached_judgments(run: Run, judge: Judge, pairs: Collection[Pair]) -> dict[Pair, Judgment]:
    """The cached judgments of ``pairs``, without calibration."""
    cache = _cache(run, judge)
    rows = cache.read({pair.query_id for pair in pairs}).to_pylist() if cache else []
    return {judgment.pair: judgment for judgment in map(Judgment.from_row, rows) if judgment.pair in pairs}


def _cache(run: Run, judge: Judge) -> JudgmentCache | None:
    return open_cache(run.store, judge, f"{run.spec.name}/calibrate")


class TimedSession(JudgingSession):
    """A session that also collects the judgments, and measures the time from the first request to the last reply."""

    def __init__(
        self,
        judge: Judge,
        cache: JudgmentCache | None,
        pairs: Sequence[Pair],
        max_missing: float,
        progress: Progress,
        any_cached: bool = False,
        raw: bool = False,
    ):
        """``any_cached``: whether other pairs of the test have a judgment, so that the judge is known to work.

        ``raw`` as in JudgingSession.
        """
        super().__init__(judge, cache, len(pairs), max_missing, progress, few_missing=_FEW_MISSING, raw=raw)
        self.judgments: list[Judgment] = []
        self.seconds = 0.0
        self._pairs, self._any_cached = pairs, any_cached

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
        if len(self.missing) >= min(_FEW_MISSING, self.total) and not self.judgments and not self._any_cached:
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
