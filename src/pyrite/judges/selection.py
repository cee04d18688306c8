"""Which of a query's candidates are worth a judgment: pure rules over ranks."""

import hashlib
import math
from collections.abc import Collection, Sequence

from pyrite.spec import JudgeSpec


def select_candidates(
    query_id: str, ranked: Sequence[tuple[str, int]], known: Collection[str], spec: JudgeSpec, seed: int
) -> list[str]:
    """The passage ids to judge for one query: first those that the data set says are relevant, then the rest by rank.

    The known ones are few, and most of the hard positives are among them: they are judged whatever their rank.

    Args:
        ranked: (passage id, rank) of the query's candidates, best first, ranks from 1.
        known: passage ids that the data set says are relevant to the query.
        spec: ``rank_window`` cuts the ranks, ``sample`` draws among those that are left.
    """
    first = [passage for passage, _ in ranked if passage in known]
    rest = [(passage, rank) for passage, rank in ranked if passage not in known]
    return first + _by_rank(query_id, rest, spec, seed)


def _by_rank(query_id: str, ranked: Sequence[tuple[str, int]], spec: JudgeSpec, seed: int) -> list[str]:
    window = [(passage, rank) for passage, rank in ranked if spec.rank_window is None or rank <= spec.rank_window]
    if spec.sample is None:
        return [passage for passage, _ in window]
    top = [passage for passage, rank in window if rank <= spec.sample.top]
    # Weighted draw without replacement: the smallest of -log(u) / weight (Efraimidis and Spirakis, 2006).
    deeper = sorted(
        (math.log(-math.log(_uniform(seed, query_id, passage))) + spec.sample.decay * rank, rank, passage)
        for passage, rank in window
        if rank > spec.sample.top
    )
    drawn = sorted((rank, passage) for _, rank, passage in deeper[: spec.sample.deeper])
    return top + [passage for _, passage in drawn]


def _uniform(seed: int, query_id: str, passage_id: str) -> float:
    """A number strictly between 0 and 1 that is the same on every machine."""
    digest = hashlib.sha256(f"{seed} {query_id} {passage_id}".encode()).digest()
    return (int.from_bytes(digest[:6]) + 0.5) / 2**48
