"""Simulated errors of a judge: they turn true grades into those of a judge with a wanted quality.

``judge.noise``: a pair has the latent grade z = g + bias + scale * u, with the true grade g. The error u has variance 1
and three parts. The first is ``similarity`` times the standardised score of the base model, because LLM judges are
misled by passages that resemble the query. The second, with variance 0.2, is shared by all pairs of a query. The third
is the pair's own. The noisy grade is the nearest one to z, and the probability of the grade k is proportional to
exp(-(z - k)^2). ``solve_scale`` finds the scale at which the noisy grades have the wanted kappa.

``judge.confusion``: the noisy grade is drawn from the true grade's row of a measured confusion matrix.

All draws are hashes of the seed and the ids. So the error of a pair is the same in every shard and iteration, and does
not depend on the order of the pairs.
"""

import hashlib
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pyrite.errors import UserError
from pyrite.judges.base import GRADES, Pair, pairs_of
from pyrite.spec import NoiseSpec

Distribution = tuple[float, float, float, float]
Grades = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]

#: The part of the error's variance that all pairs of a query share.
QUERY_VARIANCE = 0.2

#: Limits of the latent grade. At the limits, the likeliest grade has the probability .95.
MIN_LATENT, MAX_LATENT = 0.0, 5.0

#: The scale is solved on the pairs of at most this many queries, because more would not change it visibly.
FIT_QUERIES = 2000

#: Scales between which ``solve_scale`` searches. At the largest, nearly all grades are 1 or 4, whatever the true grade.
_SCALES: tuple[float, ...] = (0.0, *np.geomspace(0.01, 100, 81).tolist())

_normal = NormalDist().inv_cdf


# --- pure functions ---------------------------------------------------------------------------------------------------


def uniform(*key: object) -> float:
    """A number between 0 and 1, both excluded: always the same for a key, and uniformly distributed over keys."""
    digest = hashlib.sha256("\0".join(map(str, key)).encode()).digest()
    return ((int.from_bytes(digest[:8]) >> 12) + 0.5) / 2**52


def error_of(pair: Pair, seed: int, similarity: float, score: float) -> float:
    """The error of a pair in units of the scale: mean 0 and variance 1 over pairs.

    Args:
        similarity: correlation of error and score, at most sqrt(1 - QUERY_VARIANCE).
        score: the pair's standardised score (mean 0 and variance 1 over pairs).
    """
    of_query = _normal(uniform(seed, pair.query_id))
    of_pair = _normal(uniform(seed, *pair))
    own_variance = max(0.0, 1 - QUERY_VARIANCE - similarity**2)
    return similarity * score + math.sqrt(QUERY_VARIANCE) * of_query + math.sqrt(own_variance) * of_pair


def soft_grade(latent: float) -> tuple[int, Distribution]:
    """The likeliest grade and the probabilities of the grades 1 to 4 for a latent grade."""
    z = min(max(latent, MIN_LATENT), MAX_LATENT)
    weights = [math.exp(-((z - grade) ** 2)) for grade in GRADES]
    one, two, three, four = (weight / sum(weights) for weight in weights)
    distribution = (one, two, three, four)
    return max(GRADES, key=lambda grade: distribution[grade - 1]), distribution


def nearest_grades(latent: Values) -> Grades:
    """The nearest grade to each latent grade, as ``soft_grade`` gives it; shape (pairs,)."""
    return np.clip(np.rint(latent), min(GRADES), max(GRADES)).astype(np.int64)


def quadratic_kappa(truth: Grades, judged: Grades) -> float:
    """Cohen's kappa with quadratic weights, as in ``evaluation.agreement``; NaN if all grades are the same."""
    chance = truth.var() + judged.var() + (truth.mean() - judged.mean()) ** 2
    return float(1 - np.mean((truth - judged) ** 2) / chance) if chance > 0 else float("nan")


def solve_scale(truth: Grades, errors: Values, bias: float, kappa: float, section: str = "judge") -> float:
    """The scale of the errors at which the noisy grades of these pairs agree with the true ones by ``kappa``.

    With a bias, two scales can have the same kappa: small errors can compensate for it. The larger one is returned. For
    kappa 1 it is 0.

    Args:
        truth, errors: the true grade and the error of each pair, of shape (pairs,).
        section: the section of the run file with the judge's settings, for messages.

    Raises:
        UserError: no scale has this kappa, or all true grades are the same.
    """

    def kappa_at(scale: float) -> float:
        return quadratic_kappa(truth, nearest_grades(truth + bias + scale * errors))

    if len(np.unique(truth)) < 2:
        raise UserError(
            f"{section}.noise.kappa is undefined: all {len(truth)} candidates of iteration 1 have the same true grade. "
            "Check the answer key of the source, or raise retrieve.range_max."
        )
    found = np.array([kappa_at(scale) for scale in _SCALES])
    reached = np.flatnonzero(found >= kappa)
    if not len(reached) or reached[-1] == len(_SCALES) - 1:
        raise UserError(
            f"{section}.noise.kappa: {kappa:g} cannot be reached on the {len(truth)} candidates of iteration 1: with "
            f"this bias and similarity, it is between {max(0.0, found[-1]):.2f} and {found.max():.2f}. Choose another "
            "kappa, or lower the bias or the similarity."
        )
    if kappa == 1:
        return 0.0
    last = int(reached[-1])
    low, high = _SCALES[last], _SCALES[last + 1]
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if kappa_at(middle) >= kappa else (low, middle)
    return min((low, high), key=lambda scale: abs(kappa_at(scale) - kappa))


def draw_grade(row: Sequence[float], quantile: float) -> int:
    """The grade at ``quantile`` (0 to 1) of the distribution with the weights ``row`` of the grades 1 to 4."""
    shares = np.cumsum(row) / np.sum(row)
    return GRADES[min(int(np.searchsorted(shares, quantile, "right")), len(GRADES) - 1)]


def parse_confusion(text: str, where: str) -> list[list[float]]:
    """The confusion matrix of a file that ``pyrite calibrate`` wrote: pairs by true grade (rows) and judged grade.

    A true grade without pairs gets the row of the nearest grade with pairs, the lower one on a tie.

    Raises:
        UserError: the text is not such a file. The message starts with ``where``: the setting and the file.
    """
    fix = "Give a .json file of `pyrite calibrate`."
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}:{error.lineno}: not JSON: {error.msg}. {fix}") from None
    rows = content.get("confusion") if isinstance(content, dict) else None
    size = len(GRADES)
    if not isinstance(rows, list) or [len(row) if isinstance(row, list) else 0 for row in rows] != [size] * size:
        raise UserError(f"{where}: confusion: missing, or not {size} rows of {size} numbers. {fix}")
    if not all(type(count) in (int, float) and 0 <= count < math.inf for row in rows for count in row):
        raise UserError(f"{where}: confusion: a count is negative or not a number. {fix}")
    filled = [i for i, row in enumerate(rows) if sum(row)]
    if not filled:
        raise UserError(f"{where}: confusion: all counts are 0. {fix}")
    return [rows[min(filled, key=lambda other: (abs(other - i), other))] for i in range(size)]


# --- the two kinds of errors ------------------------------------------------------------------------------------------


class ConfusionErrors:
    """The errors of ``judge.confusion``. ``rows`` as ``parse_confusion`` returns them. There is no seed."""

    stats: Mapping[str, Any] = {}

    def __init__(self, rows: Sequence[Sequence[float]]):
        self._rows = rows

    def grade(self, pair: Pair, truth: int) -> tuple[int, None]:
        """The noisy grade. Its probabilities are unknown, because the matrix counts grades only."""
        return draw_grade(self._rows[truth - 1], uniform("confusion", *pair)), None


class LatentErrors:
    """The errors of ``judge.noise``. Call ``fit`` before ``grade``."""

    def __init__(self, spec: NoiseSpec, section: str = "judge"):
        """``section`` as in ``solve_scale``."""
        self._spec, self._section = spec, section
        self._scale: float | None = None
        self._scores: BaseScores | None = None
        self.stats: Mapping[str, Any] = {}

    def fit(self, candidates: pa.Table, range_max: int, truth: Callable[[Pair], int], queries: Collection[str]) -> None:
        """Solve the scale on the candidates of iteration 1.

        They are the same for all shards and iterations, and so is the scale. The candidates of at most ``FIT_QUERIES``
        queries count, also those that ``judge.rank_window`` or ``judge.patience`` exclude: otherwise, another choice of
        pairs would be another judge.

        Args:
            candidates: CANDIDATES of all training queries.
            range_max: the last rank of a candidate that was not added as a known answer.
            truth: the true grade of a pair.
            queries: the queries whose pairs are graded.

        Raises:
            UserError: no scale has the wanted kappa.
        """
        every = sorted(candidates["query_id"].unique().to_pylist(), key=lambda query: uniform("fit", query))
        fitted = every[:FIT_QUERIES]
        if self._spec.similarity:
            self._scores = BaseScores(candidates, range_max, {*fitted, *queries})
        sample = _of_queries(candidates, fitted)
        pairs = pairs_of(sample)
        grades = np.array([truth(pair) for pair in pairs], dtype=np.int64)
        errors = np.array([self._error(pair) for pair in pairs])
        self._scale = solve_scale(grades, errors, self._spec.bias, self._spec.kappa, self._section)
        noisy = nearest_grades(grades + self._spec.bias + self._scale * errors)
        kappa = quadratic_kappa(grades, noisy)
        self.stats = {"noise": {"scale": round(self._scale, 4), "kappa": round(kappa, 4), "pairs": len(pairs)}}

    def grade(self, pair: Pair, truth: int) -> tuple[int, Distribution]:
        """The noisy grade and its distribution. Call ``fit`` first, with the pair's query."""
        assert self._scale is not None
        return soft_grade(truth + self._spec.bias + self._scale * self._error(pair))

    def _error(self, pair: Pair) -> float:
        score = self._scores.of(pair) if self._scores else 0.0
        return error_of(pair, self._spec.seed, self._spec.similarity, score)


class BaseScores:
    """The base model's scores of the pairs of some queries, standardised over all candidates of iteration 1.

    Only these candidates have a score of the base model. Any other passage of a query has a lower one than its last
    candidate, and the last candidate's score is used for it. So later iterations need no embeddings by the base model.
    The candidates stay in Arrow, because as Python objects they would not fit in a worker's memory.
    """

    def __init__(self, candidates: pa.Table, range_max: int, queries: Collection[str]):
        """``candidates``: CANDIDATES of iteration 1. Those below ``range_max`` were added as known answers."""
        scores = candidates["score"].to_numpy().astype(np.float64)
        self._mean, self._deviation = scores.mean(), scores.std() or 1.0
        self._range_max = range_max
        own = _of_queries(candidates, queries).sort_by("query_id").combine_chunks()
        of_query = own["query_id"].combine_chunks().dictionary_encode()
        counts = np.bincount(of_query.indices.to_numpy(), minlength=len(of_query.dictionary))
        starts = np.cumsum(counts) - counts
        #: The first row and the number of rows of each query's candidates.
        self._rows = dict(zip(of_query.dictionary.to_pylist(), zip(starts, counts, strict=True), strict=True))
        self._own = own.select(["passage_id", "rank", "score"])
        #: The query of the last pair, the scores of its candidates by passage, and that of its other passages.
        self._current: tuple[str, dict[str, float], float] = ("", {}, 0.0)

    def of(self, pair: Pair) -> float:
        """The standardised score; 0, the mean, for a query without candidates. Fast if a query's pairs are together."""
        if self._current[0] != pair.query_id:
            self._current = (pair.query_id, *self._of_query(pair.query_id))
        _, scores, last = self._current
        return scores.get(pair.passage_id, last)

    def _of_query(self, query: str) -> tuple[dict[str, float], float]:
        rows = self._own.slice(*self._rows.get(query, (0, 0)))
        standardised = (rows["score"].to_numpy().astype(np.float64) - self._mean) / self._deviation
        ranked = standardised[rows["rank"].to_numpy() <= self._range_max]
        scores = dict(zip(rows["passage_id"].to_pylist(), standardised.tolist(), strict=True))
        return scores, float(ranked.min()) if len(ranked) else 0.0


def _of_queries(candidates: pa.Table, queries: Collection[str]) -> pa.Table:
    """The candidates of ``queries``."""
    return candidates.filter(pc.is_in(candidates["query_id"], pa.array(queries, pa.string())))
