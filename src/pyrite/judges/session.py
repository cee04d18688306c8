"""Walk many queries at once, each query's candidates one after the other, best rank first.

One after the other, because then a query's prompt prefix is computed once and found in the server's cache by all its
other pairs, and because a walk can stop when its candidates have stopped being relevant. Side by side are queries.
"""

import asyncio
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Protocol

from pyrite.judges.base import RELEVANT, Judge, Judgment, Missing, Pair

Walk = tuple[str, Sequence[str]]


class Recorder(Protocol):
    """Who is told what became of each pair."""

    def judged(self, judgment: Judgment) -> None: ...

    def missing(self, missing: Missing) -> None: ...

    def kept(self, pair: Pair) -> None:
        """The pair's judgment was there already."""
        ...

    def skipped(self, query_id: str, passage_ids: Sequence[str]) -> None:
        """The last so many of a walk's passages were left out, because its patience was at its end."""
        ...


async def judge_all(
    walks: Iterable[Walk],
    judge: Judge,
    kept: Mapping[Pair, int],
    patience: int | None,
    recorder: Recorder,
    known: Mapping[str, Container[str]] | None = None,
) -> None:
    """Judge every walk: (query id, passage ids by rank). Memory does not grow with them.

    Args:
        kept: the grades of pairs that need no asking.
        patience: a walk stops after so many grades below relevant in a row; None: never.
        known: by query, passages that stand first in its walk whatever their rank. Their grades wear no patience: they
            do not tell where in the ranks the relevant ones end.
    """
    waiting = iter(walks)

    async def worker() -> None:
        for query_id, passage_ids in waiting:
            first = (known or {}).get(query_id, ())
            await _walk(query_id, passage_ids, judge, kept, patience, recorder, first)

    async with asyncio.TaskGroup() as group:
        for _ in range(judge.in_flight):
            group.create_task(worker())


async def _walk(
    query_id: str,
    passage_ids: Sequence[str],
    judge: Judge,
    kept: Mapping[Pair, int],
    patience: int | None,
    recorder: Recorder,
    first: Container[str],
) -> None:
    below = 0
    for position, passage_id in enumerate(passage_ids):
        if patience is not None and below >= patience:
            recorder.skipped(query_id, passage_ids[position:])
            return
        pair = Pair(query_id, passage_id)
        grade = kept.get(pair)
        if grade is not None:
            recorder.kept(pair)
        else:
            answer = await judge.grade(pair)
            if isinstance(answer, Missing):
                recorder.missing(answer)
                continue  # says nothing of relevance, either way
            recorder.judged(answer)
            grade = answer.grade
        if passage_id not in first:
            below = 0 if grade >= RELEVANT else below + 1
