"""Which pairs a probe asks about: a sample of what the run would judge, and pairs whose answer is known beforehand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from pyrite.judges.base import Pair
from pyrite.judges.selection import select_candidates
from pyrite.spec import JudgeSpec, SampleSpec
from pyrite.splitting import draw

#: Why a pair is asked: retrieved by the base model, known by the data set to be relevant, or drawn at random.
Part = Literal["candidate", "known", "random"]

#: At most so many known relevant passages for each query, and so many random ones.
_KNOWN = 2
_RANDOM = 3


@dataclass(frozen=True)
class Asked:
    """A pair and why it is asked. ``rank`` and ``score`` are the base model's, None where it did not retrieve it."""

    pair: Pair
    parts: frozenset[Part]
    rank: int | None
    score: float | None


def draw_queries(query_ids: Sequence[str], count: int, seed: int) -> list[str]:
    """At most ``count`` of ``query_ids``, drawn by seed."""
    return sorted(query_ids, key=lambda query: draw(seed, query))[:count]


def sample_query(
    query_id: str,
    ranked: Mapping[str, tuple[int, float]],
    relevant: Sequence[str],
    passage_ids: Sequence[str],
    candidates: int,
    spec: JudgeSpec,
    seed: int,
) -> list[Asked]:
    """The pairs of one query, in the order in which they are asked.

    Half of the candidates are the first ranks, where hard negatives are; the others are drawn from below, where hard
    positives are, within the ranks that the run itself would judge.

    Args:
        ranked: rank (from 1) and score of each retrieved passage, best first.
        relevant: passages that the data set knows to be relevant.
        passage_ids: all passages that random ones are drawn from.
    """
    half = SampleSpec(top=candidates - candidates // 2, deeper=candidates // 2)
    sampled = spec.model_copy(update={"sample": half})
    chosen = select_candidates(query_id, [(passage, rank) for passage, (rank, _) in ranked.items()], (), sampled, seed)
    known = sorted(relevant, key=lambda passage: draw(seed, f"{query_id} {passage}"))[:_KNOWN]
    # Of so many distinct passages at least as many as are wanted are not relevant.
    some = Random(f"{seed} {query_id}").sample(passage_ids, min(len(passage_ids), len(relevant) + _RANDOM))
    unknown = [passage for passage in some if passage not in relevant][:_RANDOM]
    parts: dict[str, set[Part]] = {}
    named: tuple[tuple[Part, Sequence[str]], ...] = (("candidate", chosen), ("known", known), ("random", unknown))
    for part, passages in named:
        for passage in passages:
            parts.setdefault(passage, set()).add(part)
    return [
        Asked(Pair(query_id, passage), frozenset(why), *ranked.get(passage, (None, None)))
        for passage, why in parts.items()
    ]
