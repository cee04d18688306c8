"""Simulated errors: the wanted kappa, the mean, persistence, similarity, distributions and confusion matrices."""

import json
import math
from collections import Counter
from functools import cache

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrite import tables
from pyrite.errors import UserError
from pyrite.evaluation import agreement
from pyrite.judges import Judgment, Pair, noise
from pyrite.judges.noise import BaseScores, ConfusionErrors, LatentErrors
from pyrite.spec import NoiseSpec

QUERIES, RANKS = 300, 50

#: Shares of the true grades among the candidates of a data set with topics.
BASE_RATES = (0.70, 0.22, 0.02, 0.06)


@cache
def simulated() -> tuple[pa.Table, dict[Pair, int]]:
    """Candidates whose scores depend on the true grade, and the true grades."""
    random = np.random.default_rng(0)
    grades = random.choice(4, (QUERIES, RANKS), p=BASE_RATES) + 1
    scores = 0.5 * grades + random.normal(size=grades.shape)
    order = np.argsort(-scores, axis=1)
    grades, scores = (np.take_along_axis(each, order, axis=1) for each in (grades, scores))
    pairs = [Pair(f"q{q}", f"p{r}-{q % 7}") for q in range(QUERIES) for r in range(RANKS)]
    ranks = [1 + i % RANKS for i in range(len(pairs))]
    rows = [
        {"query_id": pair.query_id, "passage_id": pair.passage_id, "rank": rank, "score": score}
        for pair, rank, score in zip(pairs, ranks, scores.ravel().tolist(), strict=True)
    ]
    return pa.Table.from_pylist(rows, tables.CANDIDATES), dict(zip(pairs, grades.ravel().tolist(), strict=True))


def fitted(candidates: pa.Table | None = None, **settings: float) -> LatentErrors:
    table, truth = simulated()
    errors = LatentErrors(NoiseSpec.model_validate(settings))
    candidates = table if candidates is None else candidates
    errors.fit(candidates, RANKS, truth.__getitem__, candidates["query_id"].unique().to_pylist())
    return errors


def noisy_grades(errors: LatentErrors) -> np.ndarray:
    return np.array([errors.grade(pair, grade)[0] for pair, grade in simulated()[1].items()])


def true_grades() -> np.ndarray:
    return np.array(list(simulated()[1].values()))


@pytest.mark.parametrize(("bias", "similarity"), [(0.0, 0.0), (0.3, 0.5), (-0.3, 0.894)])
@pytest.mark.parametrize("kappa", [0.3, 0.5, 0.7, 0.9])
def test_the_wanted_kappa_is_reached(kappa: float, bias: float, similarity: float) -> None:
    errors = fitted(kappa=kappa, bias=bias, similarity=similarity)
    reached = agreement.quadratic_kappa(true_grades(), noisy_grades(errors))
    assert reached == pytest.approx(kappa, abs=0.002)
    assert errors.stats["noise"]["kappa"] == pytest.approx(reached, abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_a_sample_of_queries_gives_nearly_the_same_kappa(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "FIT_QUERIES", 100)
    errors = fitted(kappa=0.5, similarity=0.5, seed=seed)
    assert errors.stats["noise"]["pairs"] == 100 * RANKS
    assert agreement.quadratic_kappa(true_grades(), noisy_grades(errors)) == pytest.approx(0.5, abs=0.06)


def test_kappa_1_has_no_wrong_grade_but_soft_expected_grades() -> None:
    errors = fitted(kappa=1.0)
    assert (noisy_grades(errors) == true_grades()).all()
    softened = {truth: errors.grade(Pair("q", "p"), truth)[1] for truth in (1, 4)}
    assert softened[1] == pytest.approx(softened[4][::-1])
    assert Judgment(Pair("q", "p"), 1, softened[1]).expected == pytest.approx(1.29, abs=0.01)


@pytest.mark.parametrize("seed", range(3))
def test_a_shard_has_the_errors_of_the_complete_run(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard keeps the scores of its own queries and of the sample for the scale, not of all queries."""
    monkeypatch.setattr(noise, "FIT_QUERIES", 50)
    candidates, truth = simulated()
    complete = fitted(kappa=0.5, similarity=0.5, seed=seed)
    own = {f"q{number}" for number in range(100, 110)}
    shard = LatentErrors(NoiseSpec(kappa=0.5, similarity=0.5, seed=seed))
    shard.fit(candidates, RANKS, truth.__getitem__, own)
    pairs = [pair for pair in truth if pair.query_id in own]
    assert [shard.grade(pair, truth[pair]) for pair in pairs] == [complete.grade(pair, truth[pair]) for pair in pairs]
    assert shard._scores is not None
    assert own <= shard._scores._rows.keys()
    assert len(shard._scores._rows) <= 60


def test_bias_shifts_the_mean_grade() -> None:
    low, middle, high = (noisy_grades(fitted(kappa=0.5, bias=bias)).mean() for bias in (-0.4, 0.0, 0.4))
    assert low < middle - 0.1
    assert high > middle + 0.1


def test_a_pair_has_the_same_error_in_any_order() -> None:
    candidates = simulated()[0]
    shuffled = candidates.take(pa.array(np.random.default_rng(1).permutation(candidates.num_rows)))
    for similarity in (0.0, 0.5):
        errors = fitted(kappa=0.5, similarity=similarity)
        grades = noisy_grades(errors)
        assert (noisy_grades(fitted(shuffled, kappa=0.5, similarity=similarity)) == grades).all()
        alone = [errors.grade(pair, grade)[0] for pair, grade in reversed(simulated()[1].items())]
        assert alone[::-1] == grades.tolist()
        other = noisy_grades(fitted(kappa=0.5, similarity=similarity, seed=1))
        assert 0.1 < (other != grades).mean() < 0.9


def test_similarity_is_the_correlation_of_error_and_score() -> None:
    scores = np.random.default_rng(0).normal(size=20_000)
    for similarity in (0.0, 0.5, 0.894):
        pairs = (Pair(str(number), "p") for number in range(len(scores)))
        errors = [
            noise.error_of(pair, 0, similarity, score) for pair, score in zip(pairs, scores.tolist(), strict=True)
        ]
        assert np.corrcoef(errors, scores)[0, 1] == pytest.approx(similarity, abs=0.03)
        assert np.mean(errors) == pytest.approx(0, abs=0.03)
        assert np.var(errors) == pytest.approx(1, abs=0.03)


def test_a_similar_judge_overrates_high_scores() -> None:
    candidates, truth = simulated()
    irrelevant, scores = true_grades() == 1, candidates["score"].to_numpy()

    def mean_score_of_overrated(similarity: float) -> float:
        overrated = irrelevant & (noisy_grades(fitted(kappa=0.5, similarity=similarity)) >= 3)
        return float(scores[overrated].mean() - scores[irrelevant].mean())

    assert len(truth) == len(scores)
    assert abs(mean_score_of_overrated(0.0)) < 0.15
    assert mean_score_of_overrated(0.5) > 0.4


def test_pairs_of_a_query_share_a_fifth_of_the_variance() -> None:
    by_seed = [
        np.array([[noise.error_of(Pair(f"q{q}", f"p{p}"), seed, 0.0, 0.0) for p in range(40)] for q in range(500)])
        for seed in (0, 1)
    ]
    between = by_seed[0].mean(axis=1).var() - by_seed[0].var(axis=1).mean() / 40
    assert between == pytest.approx(0.2, abs=0.04)
    means = [errors.mean(axis=1) for errors in by_seed]
    assert abs(np.corrcoef(*means)[0, 1]) < 0.15, "another seed gives other errors"


@given(st.floats(-1, 6) | st.floats(allow_nan=False, allow_infinity=False))
def test_the_distribution_agrees_with_the_grade(latent: float) -> None:
    grade, distribution = noise.soft_grade(latent)
    assert sum(distribution) == pytest.approx(1)
    assert min(distribution) > 0
    assert max(distribution) < 0.96
    assert distribution[grade - 1] == max(distribution)
    if abs(latent) < 100 and abs(latent - math.floor(latent) - 0.5) > 1e-6:
        assert noise.nearest_grades(np.array([latent])).tolist() == [grade]


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1))
def test_kappa_equals_that_of_the_evaluation(pairs: list[tuple[int, int]]) -> None:
    truth, judged = np.array(pairs).T
    expected = agreement.quadratic_kappa(truth, judged)
    assert noise.quadratic_kappa(truth, judged) == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_an_unreachable_kappa_is_an_error_with_the_range() -> None:
    with pytest.raises(UserError, match=r"judge.noise.kappa: 0.95 cannot be reached .* between 0\.\d\d and 0\.\d\d"):
        fitted(kappa=0.95, bias=1.0)
    with pytest.raises(UserError, match=r"judge.noise.kappa: 0.01 cannot be reached"):
        fitted(kappa=0.01, similarity=0.89)
    errors = LatentErrors(NoiseSpec(kappa=0.5))
    with pytest.raises(UserError, match="kappa is undefined: all 15000 candidates"):
        errors.fit(simulated()[0], RANKS, lambda _: 1, [])


def test_other_passages_have_the_last_candidates_score() -> None:
    rows = [("q", "a", 1, 0.9), ("q", "b", 2, 0.5), ("q", "known", 3, 0.1), ("r", "a", 1, 0.7), ("r", "b", 2, 0.3)]
    named = [dict(zip(tables.CANDIDATES.names, row, strict=True)) for row in rows]
    scores = BaseScores(pa.Table.from_pylist(named, tables.CANDIDATES), 2, ["q", "r"])
    values = np.array([0.9, 0.5, 0.1, 0.7, 0.3])
    expected = (values - values.mean()) / values.std()
    found = [scores.of(Pair(query, passage)) for query, passage, *_ in rows]
    assert found == pytest.approx(expected.tolist(), abs=1e-5)
    assert scores.of(Pair("q", "other")) == pytest.approx(expected[1], abs=1e-5)
    assert scores.of(Pair("r", "known")) == pytest.approx(expected[4], abs=1e-5)


# --- confusion matrices -----------------------------------------------------------------------------------------------


def test_confused_grades_have_the_rows_shares() -> None:
    matrix = [[70, 20, 5, 5], [10, 60, 20, 10], [0, 0, 0, 100], [25, 25, 25, 25]]
    errors = ConfusionErrors(noise.parse_confusion(json.dumps({"confusion": matrix, "n": 400}), "c.json"))
    for truth, row in enumerate(matrix, 1):
        drawn = Counter(errors.grade(Pair(f"q{n}", "p"), truth)[0] for n in range(5000))
        assert [drawn[grade] / 50 for grade in (1, 2, 3, 4)] == pytest.approx(row, abs=2.5)
    assert len({errors.grade(Pair("q1", "p"), 4) for _ in range(20)}) == 1


def test_a_true_grade_without_pairs_has_the_nearest_row() -> None:
    rows = [[9, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 2, 8]]
    assert noise.parse_confusion(json.dumps({"confusion": rows}), "c") == [rows[0], rows[0], rows[3], rows[3]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "c.json:1: not JSON"),
        ("[]", "c.json: confusion: missing"),
        ('{"kappa": 0.5}', "confusion: missing"),
        ('{"confusion": [[1, 2], [3, 4]]}', "not 4 rows of 4 numbers"),
        (json.dumps({"confusion": [[0] * 4] * 4}), "all counts are 0"),
        (json.dumps({"confusion": [[1, 1, 1, -1]] * 4}), "negative or not a number"),
        (json.dumps({"confusion": [[1, 1, 1, "1"]] * 4}), "negative or not a number"),
        (json.dumps({"confusion": [[1, 1, 1, math.nan]] * 4}), "negative or not a number"),
    ],
)
def test_an_invalid_confusion_file_is_an_error(text: str, message: str) -> None:
    with pytest.raises(UserError, match=f"{message}.*pyrite calibrate"):
        noise.parse_confusion(text, "c.json")
