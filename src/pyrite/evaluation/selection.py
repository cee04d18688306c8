"""Which model a run hands over: chosen on validation queries, never worse than what it was given.

The one-standard-error rule (Breiman, Friedman, Olshen, Stone, Classification and Regression Trees, 1984,
section 3.4.3; Hastie, Tibshirani, Friedman, The Elements of Statistical Learning, section 7.10) takes the
simplest model among those that cannot be told from the best. Here the simplest is the one nearest to the base
model: blends of tuned and base weights give up little in the domain and keep much outside it (Wortsman and
others, "Robust fine-tuning of zero-shot models", WiSE-FT, CVPR 2022).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyrite.plan import BASE as BASE


def score_of(metrics: Mapping[str, float]) -> float:
    """What candidates are chosen by: the mean of MRR@5 and DCG@5, the two that the gate asks for."""
    return (metrics["mrr@5"] + metrics["dcg@5"]) / 2


@dataclass(frozen=True, eq=False)
class Candidate:
    """A model that may be handed over.

    Attributes:
        name: base, iteration-1, iteration-1@0.3 (0.3 tuned + 0.7 base weights), ...
        iteration: the iteration that tuned it, from 1; 0 for the base model.
        weight: share of tuned weights; 0 for the base model, 1 for an iteration as trained.
        val: score (``score_of``) of every validation query, shape (queries,); the same queries in the same order
            for all candidates.
        retention: nDCG@10 on the retention set, where there is one.
    """

    name: str
    iteration: int
    weight: float
    val: NDArray[np.float64]
    retention: float | None = None

    @property
    def mean(self) -> float:
        """Mean score on validation."""
        return float(self.val.mean())


@dataclass(frozen=True)
class Choice:
    """The name of the chosen candidate and, for every candidate, one line that says why or why not."""

    name: str
    reasons: dict[str, str]


def model_name(iteration: int, weight: float = 1.0) -> str:
    """How a model is named in tables: base, iteration-2, iteration-2@0.3."""
    if iteration == 0:
        return BASE
    return f"iteration-{iteration}" if weight == 1 else f"iteration-{iteration}@{weight:g}"


def parse_model_name(name: str) -> tuple[int, float]:
    """Iteration and weight of a model name, the inverse of ``model_name``.

    Raises:
        ValueError: ``name`` is none.
    """
    if name == BASE:
        return 0, 0.0
    match = re.fullmatch(r"iteration-([1-9]\d*)(?:@(\d*\.?\d+(?:e-\d+)?))?", name)
    if match is None:
        raise ValueError(f"{name!r} is not a model name such as base, iteration-1 or iteration-1@0.3")
    return int(match[1]), float(match[2] or 1)


def label(name: str) -> str:
    """A model's name for a person: base model, iteration 2, iteration 2 at 0.3."""
    iteration, weight = parse_model_name(name)
    if iteration == 0:
        return "base model"
    return f"iteration {iteration}" if weight == 1 else f"iteration {iteration} at {weight:g}"


def choose(candidates: list[Candidate], max_loss: float | None) -> Choice:
    """Choose among ``candidates``, of which exactly one is the base model.

    Out are candidates that lose more than ``max_loss`` of the base model's retention (a share; None: whatever
    they lose) and those that do not beat the base model's mean on validation. Of those left, and of the base
    model, the best has the highest mean; among all whose mean is within one standard error of it (of the
    paired difference: standard deviation / sqrt(queries)) the one nearest to the base model is chosen: the
    smallest weight, then the earliest iteration.

    Raises:
        ValueError: no base model or several, values that are not paired, or no retention where ``max_loss``
            asks for it.
    """
    base = _check(candidates, max_loss)
    reasons: dict[str, str] = {}
    left = [base]
    for candidate in candidates:
        if candidate is base:
            continue
        why_out = _lost_too_much(candidate, base, max_loss) or _no_better(candidate, base)
        if why_out:
            reasons[candidate.name] = why_out
        else:
            left.append(candidate)

    nearest_first = sorted(left, key=lambda c: (c.weight, c.iteration, c.name))
    best = max(nearest_first, key=lambda c: c.mean)
    level = [c for c in nearest_first if best.mean - c.mean <= _standard_error(best, c)]
    chosen = level[0]
    for candidate in left:
        reasons[candidate.name] = _reason(candidate, best, chosen, level)
    return Choice(chosen.name, {c.name: reasons[c.name] for c in candidates})


def _check(candidates: list[Candidate], max_loss: float | None) -> Candidate:
    bases = [c for c in candidates if c.iteration == 0]
    if len(bases) != 1:
        raise ValueError(f"need the base model once among the candidates, found it {len(bases)} times")
    if len({c.name for c in candidates}) < len(candidates):
        raise ValueError("two candidates have the same name")
    base = bases[0]
    if base.val.ndim != 1 or base.val.size == 0 or any(c.val.shape != base.val.shape for c in candidates):
        raise ValueError("every candidate needs one validation value for each of the same queries, at least one")
    if max_loss is not None and base.retention is None:
        raise ValueError("max_loss is set, but the base model's retention was not measured")
    return base


def _lost_too_much(candidate: Candidate, base: Candidate, max_loss: float | None) -> str | None:
    if max_loss is None or base.retention is None:
        return None
    if candidate.retention is None:
        return "out: its retention was not measured"
    if candidate.retention < (1 - max_loss) * base.retention:
        lost = 1 - candidate.retention / base.retention
        return f"out: loses {lost:.1%} of retention nDCG@10, and {max_loss:.1%} is allowed"
    return None


def _no_better(candidate: Candidate, base: Candidate) -> str | None:
    if candidate.mean > base.mean:
        return None
    return f"out: validation score {candidate.mean:.4f} does not beat the base model's {base.mean:.4f}"


def _standard_error(best: Candidate, other: Candidate) -> float:
    """Standard error of the mean paired difference; 0 where one query leaves nothing to estimate it from."""
    difference = best.val - other.val
    return float(difference.std(ddof=1) / np.sqrt(difference.size)) if difference.size > 1 else 0.0


def _reason(candidate: Candidate, best: Candidate, chosen: Candidate, level: list[Candidate]) -> str:
    behind = best.mean - candidate.mean
    if behind == 0 and candidate is not best:
        return f"as good as {label(best.name)} on validation, but {label(chosen.name)} is nearer to the base model"
    gap = f"{behind:.4f} below {label(best.name)}'s {best.mean:.4f}"
    error = f"one standard error ({_standard_error(best, candidate):.4f})"
    if candidate is chosen:
        if candidate is best and len(level) == 1:
            return f"chosen: highest validation score ({candidate.mean:.4f})"
        if candidate is best:
            return f"chosen: highest validation score ({candidate.mean:.4f}), and nearest to the base model"
        return f"chosen: {gap}, within {error}, and nearest to the base model of all that are"
    if candidate is best:
        best_of_all = f"highest validation score ({candidate.mean:.4f})"
        return f"{best_of_all}, but {label(chosen.name)} is level with it and nearer to the base model"
    if candidate in level:
        return f"{gap}, within {error}, but {label(chosen.name)} is nearer to the base model"
    return f"{gap}, more than {error}"
