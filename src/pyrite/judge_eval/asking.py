"""Ask a judge for a list of pairs, here and now, and time it: what probing and calibrating share."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

from pyrite.append_log import WriteBuffer
from pyrite.errors import PyriteError
from pyrite.judges.base import Judge, Judgment, Missing, Pair
from pyrite.judges.budget import MissingBudget
from pyrite.judges.cache import JudgmentCache
from pyrite.judges.session import Walk, judge_all
from pyrite.progress import Progress
from pyrite.stages.flushing import run_with_flush

#: So many ungraded pairs are worth a verdict on the judge. With more of them, or where all are, there is none to give.
_FEW = 20


@dataclass
class Answers:
    """What a judge answered. ``seconds`` run from the first question to the last answer, of a judge that was ready."""

    judgments: list[Judgment] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    seconds: float = 0.0


def ask(
    judge: Judge, pairs: Sequence[Pair], max_missing: float, progress: Progress, kept: JudgmentCache | None
) -> Answers:
    """Have every pair graded, a query's pairs together as in a run, and as many at once as the judge takes.

    Args:
        pairs: distinct; those of one query stand together.
        max_missing: judge.max_missing.
        kept: where answers are put away as they come, however it ends; None for those that nobody can use again.

    Raises:
        Interrupted: the process was told to stop (SIGTERM).
        PyriteError: the judge cannot go on, grades nothing, or leaves far too many pairs without a grade.
    """
    answers = Answers()
    if not pairs:
        return answers  # there may be no server
    progress.begin(len(pairs), "pairs judged")
    recorder = _Recorder(len(pairs), max_missing, answers, judge.fingerprint, progress)

    async def flush() -> None:
        if kept:
            await recorder.fresh.flush(kept.add)

    asyncio.run(run_with_flush(_ask(judge, pairs, answers, recorder), flush))
    if kept:
        kept.merge()
    return answers


async def _ask(judge: Judge, pairs: Sequence[Pair], answers: Answers, recorder: "_Recorder") -> None:
    async with judge:
        await judge.ready()
        started = time.perf_counter()
        await judge_all(_walks(pairs, judge.in_flight), judge, {}, None, recorder)
        answers.seconds = time.perf_counter() - started


def _walks(pairs: Sequence[Pair], in_flight: int) -> list[Walk]:
    """One walk a query, or several where there are too few queries to keep the judge busy."""
    passages_of = [
        (query, [pair.passage_id for pair in group]) for query, group in groupby(pairs, lambda pair: pair.query_id)
    ]
    parts = -(-in_flight // max(1, len(passages_of)))
    walks: list[Walk] = []
    for query, passages in passages_of:
        size = -(-len(passages) // parts)
        walks += [(query, passages[start : start + size]) for start in range(0, len(passages), size)]
    return walks


class _Recorder:
    def __init__(self, total: int, max_missing: float, answers: Answers, fingerprint: str, progress: Progress):
        self._total, self._answers, self._progress = total, answers, progress
        self._fingerprint = fingerprint
        self._budget = MissingBudget(max_missing, total, _FEW)
        self.fresh = WriteBuffer()

    def judged(self, judgment: Judgment) -> None:
        self._answers.judgments.append(judgment)
        self.fresh.rows.append(judgment.row(self._fingerprint))
        self._progress.advance()

    def missing(self, missing: Missing) -> None:
        self._answers.missing.append(missing)
        self._progress.advance()
        self._budget.spend(missing)
        if len(self._answers.missing) >= min(_FEW, self._total) and not self._answers.judgments:
            reason, times = Counter(each.reason for each in self._answers.missing).most_common(1)[0]
            raise PyriteError(
                f"the judge graded none of the first {len(self._answers.missing)} pairs; {times} times: {reason}. "
                "Look at the judge's server and at resources.judge_urls."
            )

    def kept(self, pair: Pair) -> None:
        raise AssertionError(f"{pair} was not asked for as kept")

    def skipped(self, query_id: str, passage_ids: Sequence[str]) -> None:
        raise AssertionError(f"{query_id}: {len(passage_ids)} pairs were left out without patience")
