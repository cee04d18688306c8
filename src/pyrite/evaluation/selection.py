"""Model selection: chooses one of the base model, the iterations and their blends by validation scores.

The one-standard-error rule (Breiman, Friedman, Olshen, Stone, Classification and Regression Trees, 1984, section
3.4.3; Hastie, Tibshirani, Friedman, The Elements of Statistical Learning, section 7.10) takes the simplest model whose
score is within one standard error of the best. Here the simplest model is the one closest to the base model: blends of
tuned and base weights lose little in the domain and forget less outside it (Wortsman and others, "Robust fine-tuning
of zero-shot models", WiSE-FT, CVPR 2022).
"""

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyrite.evaluation.significance import relative_lower_bound, standard_error
from pyrite.plan import BASE as BASE
from pyrite.spec import RunSpec

Clusters = Sequence[Hashable] | None


#: The weights of the tuned model in blends, unless they are set or searched for.
DEFAULT_BLENDS = (0.3, 0.6, 0.8)

#: Blends of an iteration that the search for the largest weight within the loss limit tries.
SEARCH_STEPS = 4

#: The metrics of model selection and of the gate.
SELECTION_METRICS = ("mrr@5", "dcg@5")


def score_of(metrics: Mapping[str, float]) -> float:
    """The score of model selection: the mean of MRR@5 and DCG@5, the two metrics of the gate."""
    return (metrics["mrr@5"] + metrics["dcg@5"]) / 2


def current_iteration(scores: Sequence[float]) -> int:
    """The iteration whose model the next iteration starts from.

    It is the latest iteration, unless that scores below the model that it started from. Such a model is not used
    further, and its starting model is used again.

    Args:
        scores: validation scores (``score_of``) of the unblended models of iterations 0 (the base), 1, ...; at least
            the base's.
    """
    current = 0
    for iteration, score in enumerate(scores):
        if score >= scores[current]:
            current = iteration
    return current


@dataclass(frozen=True, eq=False)
class Candidate:
    """A model that can be chosen.

    Attributes:
        name: base, iteration-1, iteration-1@0.3 (0.3 tuned + 0.7 base weights), ...
        iteration: the iteration that trained the model, from 1; 0 for the base model.
        weight: share of tuned weights; 0 for the base model, 1 for an unblended iteration.
        val: score (``score_of``) of every validation query, shape (queries,). All candidates have the same queries in
            the same order.
        retention: nDCG@10 of every query of the retention set, shape (queries,), paired like ``val``. None without a
            retention set.
    """

    name: str
    iteration: int
    weight: float
    val: NDArray[np.float64]
    retention: NDArray[np.float64] | None = None

    @property
    def mean(self) -> float:
        """Mean validation score."""
        return float(self.val.mean())


@dataclass(frozen=True)
class LossLimit:
    """The largest loss that is allowed on the retention set.

    Attributes:
        max_loss: share of the base model's mean nDCG@10.
        confidence: level of the one-sided bound that must be within ``max_loss``.
        resamples: resamples of the bootstrap.
        seed: seed of the bootstrap.
    """

    max_loss: float
    confidence: float
    resamples: int
    seed: int

    @classmethod
    def of(cls, spec: RunSpec) -> "LossLimit | None":
        """The limit of a run; None if it has no retention set."""
        sets = spec.evaluate.retention
        return cls(sets.max_loss, sets.confidence, spec.evaluate.resamples, spec.seed) if sets else None

    def bound(self, base: NDArray[np.float64], other: NDArray[np.float64]) -> float:
        """Lower bound of the relative change from ``base``. Both have one value per query, shape (queries,)."""
        return relative_lower_bound(base, other, self.confidence, self.resamples, self.seed)

    def allows(self, bound: float) -> bool:
        """Whether a loss with this ``bound`` is within the limit."""
        return bound >= -self.max_loss


@dataclass(frozen=True)
class Choice:
    """The name of the chosen candidate, and a one-line reason for every candidate."""

    name: str
    reasons: dict[str, str]


def model_name(iteration: int, weight: float = 1.0) -> str:
    """The name of a model in tables and files: base, iteration-2, iteration-2@0.3."""
    if iteration == 0:
        return BASE
    return f"iteration-{iteration}" if weight == 1 else f"iteration-{iteration}@{weight:g}"


def parse_model_name(name: str) -> tuple[int, float]:
    """Iteration and weight of a model name; the inverse of ``model_name``.

    Raises:
        ValueError: ``name`` is not a model name.
    """
    if name == BASE:
        return 0, 0.0
    match = re.fullmatch(r"iteration-([1-9]\d*)(?:@(\d*\.?\d+(?:e-\d+)?))?", name)
    if match is None:
        raise ValueError(f"{name!r} is not a model name; examples: base, iteration-1, iteration-1@0.3")
    return int(match[1]), float(match[2] or 1)


def label(name: str) -> str:
    """A model's name in text: base model, iteration 2, iteration 2 at 0.3."""
    iteration, weight = parse_model_name(name)
    if iteration == 0:
        return "base model"
    return f"iteration {iteration}" if weight == 1 else f"iteration {iteration} at {weight:g}"


def largest_weight(is_within: Callable[[float], bool]) -> float:
    """The largest weight below 1 that ``is_within`` accepts, in steps of 2**-SEARCH_STEPS; 0 if it accepts none.

    Bisection, which assumes that the loss grows with the weight. All weights are tested on the same queries, so the
    true loss of the accepted one exceeds the limit about as often as a single test allows: 1 in 5 at confidence 0.8.
    """
    low, high = 0.0, 1.0
    for _ in range(SEARCH_STEPS):
        middle = (low + high) / 2
        if is_within(middle):
            low = middle
        else:
            high = middle
    return low


def choose(candidates: list[Candidate], limit: LossLimit | None, clusters: Clusters = None) -> Choice:
    """Choose one of ``candidates``, of which exactly one is the base model.

    A candidate is rejected if its loss on the retention set may exceed ``limit`` (None: no limit), or if its mean
    validation score is not above the base model's. The best of the base model and the remaining candidates has the
    highest mean. Among all candidates whose mean is within one standard error of the best (of the paired difference,
    clustered), the one closest to the base model is chosen: the smallest weight, then the earliest iteration.

    Args:
        clusters: the cluster of each validation query, in the order of ``Candidate.val``; None: each is its own.

    Raises:
        ValueError: there is not exactly one base model, the values are not paired, or ``limit`` is set and the base
            model has no retention values.
    """
    base = _validate(candidates, limit)
    reasons: dict[str, str] = {}
    eligible = [base]
    for candidate in candidates:
        if candidate is base:
            continue
        rejection = _excessive_loss(candidate, base, limit) or _no_gain(candidate, base)
        if rejection:
            reasons[candidate.name] = f"rejected: {rejection}"
        else:
            eligible.append(candidate)

    closest_first = sorted(eligible, key=lambda c: (c.weight, c.iteration, c.name))
    best = max(closest_first, key=lambda c: c.mean)
    errors = {c.name: standard_error(best.val - c.val, clusters) for c in eligible}
    within_error = [c for c in closest_first if best.mean - c.mean <= errors[c.name]]
    chosen = within_error[0]
    for candidate in eligible:
        reasons[candidate.name] = _reason(candidate, best, chosen, within_error, errors[candidate.name])
    return Choice(chosen.name, {c.name: reasons[c.name] for c in candidates})


def _validate(candidates: list[Candidate], limit: LossLimit | None) -> Candidate:
    """The base model. Raises ValueError if the candidates cannot be compared."""
    bases = [c for c in candidates if c.iteration == 0]
    if len(bases) != 1:
        raise ValueError(f"need the base model once among the candidates, found it {len(bases)} times")
    if len({c.name for c in candidates}) < len(candidates):
        raise ValueError("two candidates have the same name")
    base = bases[0]
    if base.val.ndim != 1 or base.val.size == 0 or any(c.val.shape != base.val.shape for c in candidates):
        raise ValueError("every candidate needs one validation score for each of the same queries, at least one")
    if limit is not None and base.retention is None:
        raise ValueError("a loss limit is set, but the base model's retention was not measured")
    return base


def _excessive_loss(candidate: Candidate, base: Candidate, limit: LossLimit | None) -> str | None:
    if limit is None or base.retention is None:
        return None
    if candidate.retention is None:
        return "not scored on the retention set"
    bound = limit.bound(base.retention, candidate.retention)
    if limit.allows(bound):
        return None
    before, after = float(base.retention.mean()), float(candidate.retention.mean())
    change = f"{after / before - 1:+.1%}" if before else "0%"
    return (
        f"nDCG@10 on the retention set changes by {change}, and by {bound:+.1%} at the one-sided "
        f"{limit.confidence:.0%} bound; a loss of at most {limit.max_loss:.1%} is allowed"
    )


def _no_gain(candidate: Candidate, base: Candidate) -> str | None:
    if candidate.mean > base.mean:
        return None
    return f"validation score {candidate.mean:.4f} is not above the base model's {base.mean:.4f}"


def _reason(
    candidate: Candidate, best: Candidate, chosen: Candidate, within_error: list[Candidate], error: float
) -> str:
    closer = f"{label(chosen.name)} is closer to the base model"
    if candidate is best:
        highest = f"highest validation score ({candidate.mean:.4f})"
        if candidate is not chosen:
            return f"{highest}, but {closer} and within one standard error"
        return f"chosen: {highest}" + (", and closest to the base model" if len(within_error) > 1 else "")
    gap = best.mean - candidate.mean
    if gap == 0 and candidate is not chosen:
        return f"same validation score as {label(best.name)}, but {closer}"
    one_error = f"one standard error ({error:.4f})"
    distance = f"score {candidate.mean:.4f}, {gap:.4f} less than {label(best.name)} ({best.mean:.4f})"
    if candidate is chosen:
        return f"chosen: {distance}, within {one_error}, and closest to the base model"
    if candidate in within_error:
        return f"{distance}, within {one_error}, but {closer}"
    return f"{distance}, more than {one_error}"
