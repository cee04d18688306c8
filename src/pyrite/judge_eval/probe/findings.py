"""What a probe's answers amount to: pure functions from graded pairs to the numbers that are shown and checked."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, get_args

import numpy as np

from pyrite.evaluation.agreement import auc
from pyrite.judge_eval.asking import Answers
from pyrite.judge_eval.probe.sampling import Asked, Part
from pyrite.judges.base import GRADES, Judgment, Pair
from pyrite.spec import MineSpec
from pyrite.training.mining import RULES, Candidate, mine_query

#: The rank rule as it is known, whatever the run's own thresholds are.
_RANK_RULE = MineSpec(rule="rank")


def speed(answers: Answers) -> dict[str, Any]:
    """Pairs a second, tokens a pair, and seconds of one answer; what `pyrite estimate` corrects its guess by."""
    judged = answers.judgments
    latency = [judgment.latency for judgment in judged]
    count = len(judged)
    return {
        "pairs_per_second": round(count / max(answers.seconds, 1e-6), 3),
        "prompt_tokens_per_pair": round(sum(j.prompt_tokens for j in judged) / count, 2),
        "cached_tokens_per_pair": round(sum(j.cached_tokens for j in judged) / count, 2),
        "seconds": round(answers.seconds, 3),
        "latency_median": round(float(np.median(latency)), 4),
        "latency_p95": round(float(np.percentile(latency, 95)), 4),
    }


def answered(asked: int, answers: Answers) -> dict[str, Any]:
    """How many pairs were graded, at the first attempt or later, and why others were not."""
    return {
        "requested": asked,
        "judged": len(answers.judgments),
        "more_than_one_attempt": sum(judgment.attempts > 1 for judgment in answers.judgments),
        "missing": len(answers.missing),
        "missing_reasons": dict(Counter(missing.reason for missing in answers.missing).most_common()),
    }


def histogram(asked: Iterable[Asked], judgments: Mapping[Pair, Judgment]) -> dict[str, dict[str, int]]:
    """How often each grade was given: over all pairs, and for each part of the sample."""
    found: dict[str, Counter[int]] = {name: Counter() for name in ("all", *get_args(Part))}
    for each in asked:
        if judgment := judgments.get(each.pair):
            for name in ("all", *each.parts):
                found[name][judgment.grade] += 1
    return {name: {str(grade): counts[grade] for grade in GRADES} for name, counts in found.items()}


def information(judgments: Iterable[Judgment]) -> float:
    """How much an answer says about its pair, in bits: the mutual information of pair and grade.

    The entropy of the mean distribution over the grades less the mean entropy of the distributions; 0 for a judge that
    answers every pair alike, be it sure or unsure. A judgment without a distribution counts as all on its grade.
    """
    each = np.array([judgment.distribution or [float(judgment.grade == g) for g in GRADES] for judgment in judgments])
    return max(0.0, float(_entropy(each.mean(axis=0)) - _entropy(each).mean()))


def _entropy(distribution: Any) -> Any:
    """Entropy in bits along the last axis."""
    return -np.sum(distribution * np.log2(np.where(distribution > 0, distribution, 1)), axis=-1)


def known_above_random(asked: Iterable[Asked], judgments: Mapping[Pair, Judgment]) -> dict[str, Any]:
    """AUC of the expected grade between known relevant and random passages, with its 95% interval by query."""
    pairs = [each for each in asked if each.parts & {"known", "random"} and each.pair in judgments]
    scores = np.array([judgments[each.pair].expected for each in pairs])
    relevant = np.array(["known" in each.parts for each in pairs], dtype=bool)
    found = auc(scores, relevant, [each.pair.query_id for each in pairs])
    low, high = found.interval.low, found.interval.high
    return {
        "auc": _finite(found.value),
        "low": _finite(low),
        "high": _finite(high),
        "known": found.relevant,
        "random": found.irrelevant,
    }


def _finite(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None


def graded_candidates(
    asked: Sequence[Asked],
    judgments: Mapping[Pair, Judgment],
    relevant: Mapping[str, set[str]],
    window: int | None,
) -> dict[str, list[Candidate]]:
    """The retrieved pairs that were graded, as mining takes them, by query.

    Only those that the run itself would judge: ranks up to ``window``, and what is known to be relevant.
    """
    found = {}
    for query_id, pairs in groupby(asked, lambda each: each.pair.query_id):
        found[query_id] = [
            Candidate(each.pair.passage_id, each.rank, each.score, judgment.grade, judgment.expected)
            for each in pairs
            if each.rank is not None
            and each.score is not None
            and (window is None or each.rank <= window or each.pair.passage_id in relevant[query_id])
            and (judgment := judgments.get(each.pair))
        ]
    return found


def hard(
    by_query: Mapping[str, Sequence[Candidate]],
    relevant: Mapping[str, set[str]],
    spec: MineSpec,
    is_duplicate: Callable[[str, str], bool],
) -> dict[str, Any]:
    """Hard positives and negatives, under the known rank rule and the run's own, and the examples that mining makes.

    A passage that is known to be relevant is never a negative.
    """
    examples: Counter[str] = Counter()
    without: Counter[str] = Counter()
    for query_id, candidates in by_query.items():
        found, reason = mine_query(query_id, candidates, relevant[query_id], spec, is_duplicate)
        examples.update(example.kind for example in found)
        if reason:
            without[reason] += 1
    return {
        "rank_rule": _count(by_query, relevant, _RANK_RULE),
        "own_rule": _count(by_query, relevant, spec),
        "examples": {"hard": examples["hard"], "easy": examples["easy"]},
        "queries_without_example": dict(without.most_common()),
    }


def _count(
    by_query: Mapping[str, Sequence[Candidate]], relevant: Mapping[str, set[str]], spec: MineSpec
) -> dict[str, int]:
    positives = negatives = 0
    for query_id, candidates in by_query.items():
        low, high = _hard(candidates, relevant[query_id], spec)
        positives += len(low)
        negatives += len(high)
    return {"positives": positives, "negatives": negatives}


def _hard(
    candidates: Sequence[Candidate], relevant: set[str], spec: MineSpec
) -> tuple[Sequence[Candidate], Sequence[Candidate]]:
    """Positives that stand too low and negatives that stand too high: by rank, or beside each other."""
    rule = RULES[spec.rule]
    least = spec.positive_grade or rule.positive_grade
    positives = [c for c in candidates if c.grade is not None and c.grade >= least]
    negatives = [
        c for c in candidates if c.grade is not None and c.grade <= spec.negative_grade and c.passage_id not in relevant
    ]
    return rule.misranked(positives, negatives, spec)
