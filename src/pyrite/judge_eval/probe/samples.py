"""Which judgments a person should read: some of each grade, and those that contradict what is known."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyrite.judge_eval.probe.sampling import Asked
from pyrite.judges.base import GRADES, RELEVANT, Judgment, Pair
from pyrite.splitting import draw

_EACH = 3


def samples(
    asked: Sequence[Asked],
    judgments: Mapping[Pair, Judgment],
    relevant: Mapping[str, set[str]],
    texts: Callable[[Pair], Mapping[str, str]],
    seed: int,
) -> dict[str, list[dict[str, Any]]]:
    """Up to three judgments of each grade ("4" to "1"), and up to three of each kind of contradiction.

    "known, graded low": known to be relevant and graded below 3, the lowest first; "random, graded high": drawn at
    random and graded 3 or 4, the highest first.

    Args:
        texts: the query, the passage and its title of a pair.
    """
    drawn = sorted((each for each in asked if each.pair in judgments), key=lambda e: draw(seed, " ".join(e.pair)))

    def expected(each: Asked) -> float:
        return judgments[each.pair].expected

    def shown(chosen: Sequence[Asked]) -> list[dict[str, Any]]:
        return [
            _row(each, judgments[each.pair], each.pair.passage_id in relevant[each.pair.query_id], texts(each.pair))
            for each in chosen[:_EACH]
        ]

    low = [e for e in drawn if "known" in e.parts and judgments[e.pair].grade < RELEVANT]
    high = [e for e in drawn if "random" in e.parts and judgments[e.pair].grade >= RELEVANT]
    return {
        "known, graded low": shown(sorted(low, key=expected)),
        "random, graded high": shown(sorted(high, key=expected, reverse=True)),
        **{
            str(grade): shown(_of_many_queries([e for e in drawn if judgments[e.pair].grade == grade]))
            for grade in reversed(GRADES)
        },
    }


def _of_many_queries(pairs: Sequence[Asked]) -> list[Asked]:
    """``pairs`` with the first of each query first."""
    seen: set[str] = set()
    first: list[Asked] = []
    again: list[Asked] = []
    for each in pairs:
        (again if each.pair.query_id in seen else first).append(each)
        seen.add(each.pair.query_id)
    return first + again


def _row(each: Asked, judgment: Judgment, relevant: bool, texts: Mapping[str, str]) -> dict[str, Any]:
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
