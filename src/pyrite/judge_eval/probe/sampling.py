"""Samples a probe's pairs to judge, and its judgments to show in the report."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from pyrite.judges.base import GRADES, RELEVANT, Judgment, Pair
from pyrite.splitting import draw

#: Why a pair is in the sample: retrieved by the base model, labelled as relevant by the data set, similar to an answer
#: (``similar_passages``), or drawn at random.
Part = Literal["candidate", "known", "similar", "random"]

#: Maximum number of known relevant, of similar and of random passages per query.
_KNOWN = 2
_SIMILAR = 3
_RANDOM = 3

#: Similar passages are drawn from this many best-ranked passages of the query's topic.
_SIMILAR_POOL = 10

#: Exponential decay of the probability to draw a rank, as in arXiv 2512.08088.
_DECAY = 0.1

#: The grade of passages that are on the topic and do not answer.
ON_TOPIC = 2

#: Maximum judgments to show for each grade and each contradiction.
_SHOWN = 3


@dataclass(frozen=True)
class SampledPair:
    """A pair and why it was sampled. ``rank`` and ``score`` are the base model's; None if it did not retrieve it."""

    pair: Pair
    parts: frozenset[Part]
    rank: int | None
    score: float | None


def draw_queries(query_ids: Sequence[str], count: int, seed: int) -> list[str]:
    """At most ``count`` of ``query_ids``, drawn by seed."""
    return sorted(query_ids, key=lambda query: draw(seed, query))[:count]


def similar_passages(query_id: str, grades: Mapping[str, int], seed: int) -> list[str]:
    """At most three passages that a judge which only recognises the topic confuses with answers.

    They are drawn from the ten best-ranked passages of the query's topic. If there are none, as in data without topics,
    they are the three best-ranked passages: deeper ranks are too often on another topic. Passages that score above the
    known answers are included: without them, the base model's score alone would pass.

    Args:
        grades: by the data set's labels (``LabelsJudge``) for each retrieved passage that can be used, best rank first.
    """
    others = [passage for passage, grade in grades.items() if grade < RELEVANT]
    of_topic = [passage for passage in others if grades[passage] == ON_TOPIC][:_SIMILAR_POOL]
    drawn = sorted(of_topic, key=lambda passage: draw(seed, f"similar {query_id} {passage}"))
    return (drawn or others)[:_SIMILAR]


def sample_query(
    query_id: str,
    ranked: Mapping[str, tuple[int, float]],
    relevant: Sequence[str],
    similar: Sequence[str],
    passage_ids: Sequence[str],
    candidates: int,
    rank_window: int | None,
    seed: int,
) -> list[SampledPair]:
    """The pairs of one query, in the order in which they are judged.

    Half of the candidates are the first ranks, where the hard negatives are. The others are drawn from the lower ranks
    that the run would judge, where the hard positives are.

    Args:
        ranked: rank (from 1) and score of each retrieved passage, best first.
        relevant: passages that the data set labels as relevant.
        similar: the query's ``similar_passages``.
        passage_ids: all passages, from which random ones are drawn.
    """
    ranks = {passage: rank for passage, (rank, _) in ranked.items() if rank_window is None or rank <= rank_window}
    drawn = _draw_ranks(query_id, ranks, candidates - candidates // 2, candidates // 2, seed)
    known = sorted(relevant, key=lambda passage: draw(seed, f"{query_id} {passage}"))[:_KNOWN]
    # Among this many distinct passages at least _RANDOM are not relevant.
    random = Random(f"{seed} {query_id}").sample(passage_ids, min(len(passage_ids), len(relevant) + _RANDOM))
    unknown = [passage for passage in random if passage not in relevant][:_RANDOM]
    parts: dict[str, set[Part]] = {}
    by_part: tuple[tuple[Part, Sequence[str]], ...] = (
        ("candidate", drawn),
        ("known", known),
        ("similar", similar),
        ("random", unknown),
    )
    for part, passages in by_part:
        for passage in passages:
            parts.setdefault(passage, set()).add(part)
    return [
        SampledPair(Pair(query_id, passage), frozenset(why), *ranked.get(passage, (None, None)))
        for passage, why in parts.items()
    ]


def _draw_ranks(query_id: str, ranks: Mapping[str, int], first: int, deeper: int, seed: int) -> list[str]:
    """The passages of the ``first`` ranks, and ``deeper`` ones drawn from below with exponential decay, by rank."""
    # Weighted sampling without replacement: the smallest of -log(u) / weight (Efraimidis and Spirakis, 2006).
    below = sorted(
        (math.log(-math.log(_uniform(seed, query_id, passage))) + _DECAY * rank, rank, passage)
        for passage, rank in ranks.items()
        if rank > first
    )
    drawn = sorted((rank, passage) for _, rank, passage in below[:deeper])
    return [passage for passage, rank in ranks.items() if rank <= first] + [passage for _, passage in drawn]


def _uniform(seed: int, query_id: str, passage_id: str) -> float:
    """A number strictly between 0 and 1, the same on every machine."""
    digest = hashlib.sha256(f"{seed} {query_id} {passage_id}".encode()).digest()
    return (int.from_bytes(digest[:6]) + 0.5) / 2**48


def judgments_to_show(
    sample: Sequence[SampledPair],
    judgments: Mapping[Pair, Judgment],
    relevant: Mapping[str, set[str]],
    texts: Callable[[Pair], Mapping[str, str]],
    seed: int,
) -> dict[str, list[dict[str, Any]]]:
    """Up to three judgments of each grade ("4" to "1"), and up to three of each contradiction.

    "known, graded low": known to be relevant and graded below 3, the lowest first. "similar, graded high" and "random,
    graded high": similar or drawn at random, and graded 3 or 4, the highest first.

    Args:
        texts: returns the query, the passage and the passage's context (``title``) of a pair.
    """
    shuffled = sorted((each for each in sample if each.pair in judgments), key=lambda e: draw(seed, " ".join(e.pair)))

    def expected(each: SampledPair) -> float:
        return judgments[each.pair].expected

    def rows(pairs: Sequence[SampledPair]) -> list[dict[str, Any]]:
        return [
            _row(each, judgments[each.pair], each.pair.passage_id in relevant[each.pair.query_id], texts(each.pair))
            for each in pairs[:_SHOWN]
        ]

    low = [e for e in shuffled if "known" in e.parts and judgments[e.pair].grade < RELEVANT]
    high = [e for e in shuffled if judgments[e.pair].grade >= RELEVANT]
    return {
        "known, graded low": rows(sorted(low, key=expected)),
        **{
            f"{part}, graded high": rows(sorted((e for e in high if part in e.parts), key=expected, reverse=True))
            for part in ("similar", "random")
        },
        **{
            str(grade): rows(_new_queries_first([e for e in shuffled if judgments[e.pair].grade == grade]))
            for grade in reversed(GRADES)
        },
    }


def _new_queries_first(pairs: Sequence[SampledPair]) -> list[SampledPair]:
    """``pairs``, with the first pair of each query first."""
    first = {each.pair.query_id: each for each in reversed(pairs)}
    return sorted(pairs, key=lambda each: first[each.pair.query_id] is not each)


def _row(each: SampledPair, judgment: Judgment, relevant: bool, texts: Mapping[str, str]) -> dict[str, Any]:
    distribution = judgment.distribution
    return {
        **texts,
        "query_id": each.pair.query_id,
        "passage_id": each.pair.passage_id,
        "grade": judgment.grade,
        "expected": round(judgment.expected, 3),
        "distribution": None if distribution is None else [round(p, 4) for p in distribution],
        "rank": each.rank,
        "score": None if each.score is None else round(each.score, 4),
        "known_relevant": relevant,
        "parts": sorted(each.parts),
    }
