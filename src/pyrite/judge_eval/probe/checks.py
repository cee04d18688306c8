"""Go or no-go: checks on a probe's numbers, each with a threshold, a verdict and a sentence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy import stats

from pyrite.judges.base import GRADES

#: One grade may take at most this share of all pairs.
MOST_ALIKE = 0.95

#: An answer says at least so many bits about its pair (of the 2 that four grades can say).
LEAST_INFORMATION = 0.1

#: The lower bound of the AUC between known relevant and random passages is above this.
LEAST_AUC = 0.7

#: At most this share of the pairs may be graded though the model's own word was none of the grades.
MOST_STRAYED = 0.5

#: Shares are taken for unequal where equal chances would give such counts more seldom than this.
_P_FLAT = 0.05


@dataclass(frozen=True)
class Check:
    """One check: ``found`` says what was found; where it failed, ``advice`` says what that means and what to do."""

    name: str
    passed: bool
    found: str
    advice: str


def checks(content: Mapping[str, Any], max_missing: float) -> list[Check]:
    """All checks on the content of a probe, the most telling last."""
    return [
        _few_missing(content["answered"], max_missing),
        _answers_with_a_grade(content["judge"].get("off_label", 0), content["answered"]["judged"]),
        _not_alike(content["grades"]["all"]),
        _not_flat(content["grades"]["all"]),
        _informative(content["information_bits"]),
        _hard_examples(content["hard"], content["queries"]),
        _known_above_random(content["known_above_random"]),
    ]


def verdict(found: Sequence[Check]) -> str:
    """Go, or no-go and why."""
    failed = [check.found for check in found if not check.passed]
    return "No-go: " + "; ".join(failed) + "." if failed else "Go: this judge's grades are worth mining."


def _few_missing(answered: Mapping[str, Any], most: float) -> Check:
    passed = answered["missing"] <= most * answered["requested"]
    reason = "" if passed else f"Mostly because: {next(iter(answered['missing_reasons']))}. "
    return Check(
        "few missing",
        passed,
        f"{answered['missing']:,} of {answered['requested']:,} pairs were left without a grade",
        f"{reason}A run stops above judge.max_missing ({most:.0%}): look at the judge's server.",
    )


def _answers_with_a_grade(off_label: int, judged: int) -> Check:
    return Check(
        "answers with a grade",
        off_label <= MOST_STRAYED * judged,
        f"{off_label:,} of {judged:,} pairs were graded though the model's own word was no grade",
        f"At most {MOST_STRAYED:.0%} may be: their grades are the likeliest of four words of which it would say none. "
        "Use a model that does not reason before it answers, or switch that off, and see that the server has the "
        "model's own chat template.",
    )


def _not_alike(grades: Mapping[str, int]) -> Check:
    total = sum(grades.values())
    grade, count = max(grades.items(), key=lambda item: item[1])
    return Check(
        "not all alike",
        count <= MOST_ALIKE * total,
        f"grade {grade} was given to {count:,} of {total:,} pairs",
        f"At most {MOST_ALIKE:.0%} may be alike: this judge does not tell passages apart. Use a stronger model, and "
        "read on the page what it was shown.",
    )


def _not_flat(grades: Mapping[str, int]) -> Check:
    counts = [grades[str(grade)] for grade in GRADES]
    p = float(stats.chisquare(counts).pvalue)
    shares = ", ".join(f"{count / sum(counts):.0%}" for count in counts)
    passed = p < _P_FLAT
    return Check(
        "not flat",
        passed,
        f"grades 1 to 4 have shares of {shares}" + ("" if passed else ", as dice would give"),
        f"Equal chances explain such counts (p = {p:.2f}). If all other checks pass, ask for more queries (--queries).",
    )


def _informative(bits: float) -> Check:
    return Check(
        "informative",
        bits >= LEAST_INFORMATION,
        f"an answer says {bits:.2f} of at most 2 bits about its pair",
        f"At least {LEAST_INFORMATION} is asked for: the probabilities of the four grades hardly depend on the "
        "passage. Use a stronger model.",
    )


def _hard_examples(hard: Mapping[str, Any], queries: int) -> Check:
    count, least = hard["examples"]["hard"], max(1, queries // 10)
    reasons = "; ".join(f"{reason}: {times:,}" for reason, times in hard["queries_without_example"].items())
    why = f"Queries without an example: {reasons}." if reasons else "The base model already ranks as the judge grades."
    return Check(
        "hard examples",
        count >= least,
        f"{count:,} hard examples were found in {queries:,} queries",
        f"At least {least:,} are asked for: without them there is nothing to learn. {why}",
    )


def _known_above_random(found: Mapping[str, Any]) -> Check:
    name = "known above random"
    if found["low"] is None:
        words = f"{found['known']:,} known relevant and {found['random']:,} random passages were graded"
        return Check(name, False, words, "Both are needed to check that the first are graded above the second.")
    passed = found["low"] > LEAST_AUC
    unsure = found["auc"] > LEAST_AUC
    verb = "are" if passed else "are not surely" if unsure else "are not clearly"
    return Check(
        name,
        passed,
        f"known relevant passages {verb} graded above random ones "
        f"(AUC {found['auc']:.2f}, 95% interval {found['low']:.2f} to {found['high']:.2f})",
        f"The interval must lie above {LEAST_AUC}. {'Ask for more queries (--queries), or use' if unsure else 'Use'} "
        "a stronger model; pyrite calibrate sets it beside people.",
    )
