"""Statistics of a probe's judgments, and the go or no-go checks on them. Pure functions."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, get_args

import numpy as np
from scipy import stats

from pyrite.evaluation.agreement import MIN_PAIRS, MIN_QUERIES, auc, enough
from pyrite.judge_eval.common import TimedSession
from pyrite.judge_eval.probe.sampling import Part, SampledPair
from pyrite.judges.base import GRADES, Judgment, Pair
from pyrite.judges.session import MAX_REASONS
from pyrite.spec import MineSpec
from pyrite.training.mining import RULES, Candidate, mine_query, split_by_grade

#: Maximum share of pairs with the same grade.
MAX_SAME_GRADE = 0.95

#: Minimum information of a judgment about its pair, in bits. The maximum is 2 with four grades.
MIN_INFORMATION = 0.1

#: The AUC of known relevant against random and against similar passages must be above this, with its lower bound.
MIN_AUC = 0.7

#: Maximum share of pairs whose generated token is not a grade.
MAX_OFF_LABEL = 0.5

#: Significance level of the chi-square test that the grades are uniformly distributed.
_UNIFORM_P = 0.05

#: The name of the check that fails with too few pairs.
_ENOUGH = "enough pairs"

#: The rank rule with its default thresholds, for comparison with the run's own rule.
_RANK_RULE = MineSpec(rule="rank")


# --- statistics -------------------------------------------------------------------------------------------------------


def speed(session: TimedSession) -> dict[str, Any]:
    """Throughput, tokens per pair and latency. `pyrite estimate` uses them instead of its defaults."""
    judged, count = session.judgments, len(session.judgments)
    latency = [judgment.latency for judgment in judged]
    return {
        "pairs_per_second": round(count / max(session.seconds, 1e-6), 3),
        "prompt_tokens_per_pair": round(sum(j.prompt_tokens for j in judged) / count, 2),
        "cached_tokens_per_pair": round(sum(j.cached_tokens for j in judged) / count, 2),
        "seconds": round(session.seconds, 3),
        "latency_median": round(float(np.median(latency)), 4),
        "latency_p95": round(float(np.percentile(latency, 95)), 4),
    }


def answered(session: TimedSession) -> dict[str, Any]:
    """Counts of judged, retried and missing pairs, and the reasons of missing ones."""
    return {
        "requested": session.total,
        "judged": len(session.judgments),
        "more_than_one_attempt": sum(judgment.attempts > 1 for judgment in session.judgments),
        "missing": len(session.missing),
        "missing_reasons": dict(Counter(missing.reason for missing in session.missing).most_common(MAX_REASONS)),
    }


def histogram(sample: Iterable[SampledPair], judgments: Mapping[Pair, Judgment]) -> dict[str, dict[str, int]]:
    """Counts of each grade, over all pairs and for each part of the sample."""
    counts: dict[str, Counter[int]] = {name: Counter() for name in ("all", *get_args(Part))}
    for each in sample:
        if judgment := judgments.get(each.pair):
            for name in ("all", *each.parts):
                counts[name][judgment.grade] += 1
    return {name: {str(grade): count[grade] for grade in GRADES} for name, count in counts.items()}


def information(judgments: Iterable[Judgment]) -> float:
    """Mutual information of pair and grade, in bits.

    It is the entropy of the mean distribution minus the mean entropy of the distributions: 0 if all pairs get the same
    distribution. A judgment without a distribution has probability 1 for its grade.
    """
    each = np.array([judgment.distribution or [float(judgment.grade == g) for g in GRADES] for judgment in judgments])
    return max(0.0, float(_entropy(each.mean(axis=0)) - _entropy(each).mean()))


def _entropy(distribution: Any) -> Any:
    """Entropy in bits along the last axis."""
    return -np.sum(distribution * np.log2(np.where(distribution > 0, distribution, 1)), axis=-1)


def known_above(
    part: Literal["similar", "random"], sample: Iterable[SampledPair], judgments: Mapping[Pair, Judgment]
) -> dict[str, Any]:
    """AUC of the expected grade of known relevant passages against those of ``part``.

    The 95% interval is clustered by query.
    """
    pairs = [each for each in sample if each.parts & {"known", part} and each.pair in judgments]
    scores = np.array([judgments[each.pair].expected for each in pairs])
    relevant = np.array(["known" in each.parts for each in pairs], dtype=bool)
    found = auc(scores, relevant, [each.pair.query_id for each in pairs])
    return {
        "auc": _finite(found.value),
        "low": _finite(found.interval.low),
        "high": _finite(found.interval.high),
        "known": found.relevant,
        part: found.irrelevant,
    }


def _finite(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None


def graded_candidates(
    sample: Sequence[SampledPair],
    judgments: Mapping[Pair, Judgment],
    relevant: Mapping[str, set[str]],
    window: int | None,
) -> dict[str, list[Candidate]]:
    """The judged pairs as candidates for mining, by query: those that the run would judge too.

    That is ranks up to ``window``, and passages known to be relevant.
    """
    return {
        query_id: [
            Candidate(each.pair.passage_id, each.rank, each.score, judgment.grade, judgment.expected, known)
            for each in pairs
            if each.rank is not None
            and each.score is not None
            and ((known := each.pair.passage_id in relevant[query_id]) or window is None or each.rank <= window)
            and (judgment := judgments.get(each.pair))
        ]
        for query_id, pairs in groupby(sample, lambda each: each.pair.query_id)
    }


def hard_examples(
    by_query: Mapping[str, Sequence[Candidate]],
    relevant: Mapping[str, set[str]],
    spec: MineSpec,
    is_duplicate: Callable[[str, str], bool],
) -> dict[str, Any]:
    """Misranked passages by the default rank rule and by the run's own rule, and the examples that mining creates."""
    examples: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for query_id, candidates in by_query.items():
        found, reason = mine_query(candidates, relevant[query_id], spec, is_duplicate)
        examples.update(example.kind for example in found)
        if reason:
            reasons[reason] += 1
    return {
        "rank_rule": _count_hard(by_query, relevant, _RANK_RULE),
        "own_rule": _count_hard(by_query, relevant, spec),
        "examples": {"hard": examples["hard"], "easy": examples["easy"]},
        "queries_without_example": dict(reasons.most_common()),
    }


def _count_hard(
    by_query: Mapping[str, Sequence[Candidate]], relevant: Mapping[str, set[str]], spec: MineSpec
) -> dict[str, int]:
    """The number of positives ranked too low and of negatives ranked too high, by the mining rule."""
    misranked = [
        RULES[spec.rule].misranked(*split_by_grade(candidates, relevant[query_id], spec), spec)
        for query_id, candidates in by_query.items()
    ]
    return {"positives": sum(len(low) for low, _ in misranked), "negatives": sum(len(high) for _, high in misranked)}


# --- checks -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """One check. ``found``: the result. ``advice``: the meaning of a failure, and what to do."""

    name: str
    passed: bool
    found: str
    advice: str


def checks(content: Mapping[str, Any], max_missing: float) -> list[Check]:
    """All checks of a probe's content, the most informative last. With too few pairs, only those of the replies."""
    judged, queries = content["answered"]["judged"], content["queries"]
    replies = [_few_missing(content["answered"], max_missing)]
    if "off_label" in content["judge"]:  # only an LLM generates tokens
        replies.append(_on_label(content["judge"]["off_label"], judged, content["judge"]["reply"]))
    if not enough(judged, queries):
        return [*replies, _too_few(judged, queries)]
    return [
        *replies,
        _not_alike(content["grades"]["all"]),
        _not_uniform(content["grades"]["all"]),
        _informative(content["information_bits"]),
        _has_hard_examples(content["hard"], content["queries"]),
        _known_above("random", content["known_above_random"]),
        _known_above("similar", content["known_above_similar"]),
    ]


def go(found: Sequence[Check]) -> bool | None:
    """Whether all checks passed; None if there are too few pairs to tell."""
    failed = {check.name for check in found if not check.passed}
    return None if failed == {_ENOUGH} else not failed


def verdict(found: Sequence[Check]) -> str:
    """Go, or no-go and why."""
    failed = [check.found for check in found if not check.passed]
    if go(found) is None:
        return f"No verdict: {failed[0]}."
    return "No-go: " + "; ".join(failed) + "." if failed else "Go: this judge's grades can be used for mining."


def _too_few(pairs: int, queries: int) -> Check:
    return Check(
        _ENOUGH,
        False,
        f"{pairs:,} pairs of {queries:,} queries are too few to tell",
        f"At least {MIN_PAIRS} pairs of {MIN_QUERIES} queries are needed (--queries).",
    )


def _few_missing(counts: Mapping[str, Any], maximum: float) -> Check:
    passed = counts["missing"] <= maximum * counts["requested"]
    reason = "" if passed else f"Most frequent reason: {next(iter(counts['missing_reasons']))}. "
    return Check(
        "few missing",
        passed,
        f"{counts['missing']:,} of {counts['requested']:,} pairs have no grade",
        f"{reason}A run stops above judge.max_missing ({maximum:.0%}). Check the judge's server.",
    )


def _on_label(off_label: int, judged: int, label: str) -> Check:
    return Check(
        f"answers with {label}",
        off_label <= MAX_OFF_LABEL * judged,
        f"in {off_label:,} of {judged:,} pairs the generated token is not {label}",
        f"The maximum is {MAX_OFF_LABEL:.0%}: such a grade is only the likeliest of a few tokens that the model would "
        "not generate. Use a model that does not reason before it answers, or disable reasoning, and check that the "
        "server uses the model's own chat template.",
    )


def _not_alike(grades: Mapping[str, int]) -> Check:
    total = sum(grades.values())
    grade, count = max(grades.items(), key=lambda item: item[1])
    return Check(
        "not all alike",
        count <= MAX_SAME_GRADE * total,
        f"{count:,} of {total:,} pairs have grade {grade}",
        f"The maximum is {MAX_SAME_GRADE:.0%}: this judge does not distinguish passages. Read its judgments on the "
        "page, and use a stronger model.",
    )


def _not_uniform(grades: Mapping[str, int]) -> Check:
    counts = [grades[str(grade)] for grade in GRADES]
    p = float(stats.chisquare(counts).pvalue)
    shares = ", ".join(f"{count / sum(counts):.0%}" for count in counts)
    passed = p < _UNIFORM_P
    return Check(
        "not flat",
        passed,
        f"grades 1 to 4 have shares of {shares}" + ("" if passed else ", as if drawn at random"),
        f"The grades may be random: equal probabilities explain these counts (p = {p:.2f}). If all other checks pass, "
        "use more queries (--queries).",
    )


def _informative(bits: float) -> Check:
    return Check(
        "informative",
        bits >= MIN_INFORMATION,
        f"a judgment has {bits:.2f} of at most 2 bits of information about its pair",
        f"The minimum is {MIN_INFORMATION}: the probabilities of the four grades hardly depend on the passage. Use a "
        "stronger model.",
    )


def _has_hard_examples(hard: Mapping[str, Any], queries: int) -> Check:
    count, minimum = hard["examples"]["hard"], max(1, queries // 10)
    reasons = "; ".join(f"{reason}: {times:,}" for reason, times in hard["queries_without_example"].items())
    why = f"Queries without an example: {reasons}." if reasons else "The base model already ranks as the judge grades."
    return Check(
        "hard examples",
        count >= minimum,
        f"{count:,} hard examples in {queries:,} queries",
        f"The minimum is {minimum:,}: without hard examples there is nothing to learn. {why}",
    )


#: Likely reasons if known answers are not graded above the passages of a part.
_REASONS = {
    "similar": "The judge may only recognise the topic, or the data set does not label all answers: read the similar "
    "passages with grade 3 or 4 on the page. ",
    "random": "",
}


def _known_above(part: str, found: Mapping[str, Any]) -> Check:
    name = f"known above {part}"
    if found["low"] is None:
        words = f"{found['known']:,} known relevant and {found[part]:,} {part} passages are graded"
        return Check(name, False, words, "Both are needed to check that known relevant passages get higher grades.")
    passed, unsure = found["low"] > MIN_AUC, found["auc"] > MIN_AUC
    verb = "are" if passed else "may not be" if unsure else "are not clearly"
    return Check(
        name,
        passed,
        f"known relevant passages {verb} graded above {part} ones "
        f"(AUC {found['auc']:.2f}, 95% interval {found['low']:.2f} to {found['high']:.2f})",
        f"The interval must be above {MIN_AUC}. {_REASONS[part]}"
        f"{'Use more queries (--queries), or' if unsure else 'Use'} "
        "a stronger model. `pyrite calibrate` compares it with human grades.",
    )
