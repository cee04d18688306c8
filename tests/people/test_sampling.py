"""The sample of pairs to grade: deterministic, random within a stratum, and independent of its size."""

import numpy as np
import pytest

from pyrite.people.sampling import STRATA, Population, graded_sample, in_order, population
from pyrite.report.data import build
from report.report_factory import make

INPUTS = make()
REPORT = build(INPUTS)
QUERIES = REPORT["per_query"]["base"]["dcg@5"]


def drawn(seed: int = 0) -> Population:
    return population(INPUTS.rankings, REPORT["chosen"], QUERIES, seed)


@pytest.fixture(scope="module")
def pairs() -> Population:
    return drawn()


@pytest.fixture(scope="module")
def judged(pairs: Population) -> np.ndarray:
    relevant = {(row["query_id"], row["passage_id"]): row["grade"] for row in INPUTS.qrels.to_pylist()}
    return np.array([float(relevant.get(key, 0)) for key in pairs.keys])


def test_coefficients_give_the_gain_of_the_report(pairs: Population, judged: np.ndarray) -> None:
    compared = REPORT["comparisons"][REPORT["chosen"]]["dcg@5"]
    assert pairs.difference @ judged / len(QUERIES) == pytest.approx(compared["difference"])
    assert pairs.base @ judged / len(QUERIES) == pytest.approx(compared["base"])


def test_strata_follow_the_first_five_ranks(pairs: Population) -> None:
    rows = INPUTS.rankings.to_pylist()
    first = {
        model: {(row["query_id"], row["passage_id"]): row["rank"] for row in rows if row["model"] == model}
        for model in ("base", REPORT["chosen"])
    }
    for key, stratum in zip(pairs.keys, pairs.stratum, strict=True):
        before, after = (first[model].get(key, 99) for model in first)
        assert min(before, after) <= 5
        expected = 0 if after > 5 else 1 if before > 5 else 3 if before == after else 2
        assert stratum == expected
    assert len(STRATA) == 4
    assert len(pairs.keys) == len(set(pairs.keys))


def test_a_larger_sample_contains_the_smaller_one(pairs: Population, judged: np.ndarray) -> None:
    small, large = in_order(pairs, judged, 60), in_order(pairs, judged, 100)
    assert len(set(small)) == 60
    assert set(small) < set(large)
    assert in_order(drawn(), judged, 60) == small, "the same seed gives the same sample"
    assert in_order(drawn(seed=1), judged, 60) != small
    assert len(in_order(pairs, judged, 10**6)) == len(pairs.keys)


def test_grading_can_stop_early(pairs: Population, judged: np.ndarray) -> None:
    order = in_order(pairs, judged, 100)
    wanted = np.bincount(pairs.stratum[order], minlength=4)
    so_far = np.bincount(pairs.stratum[order[:40]], minlength=4)
    assert np.abs(so_far - 0.4 * wanted).max() <= 1


def test_every_pair_of_a_stratum_is_equally_likely() -> None:
    seeds, size = 200, 40
    found = np.zeros(0)
    for seed in range(seeds):
        pairs = drawn(seed)
        members = np.flatnonzero(pairs.stratum == 1)
        found = found if found.size else np.zeros(len(members))
        found += pairs.number[members] <= np.sort(pairs.number[members])[size - 1]
    share = size / len(found)
    # Chi-square with as many degrees of freedom as pairs; its standard deviation is sqrt(2 n).
    statistic = np.sum((found - seeds * share) ** 2) / (seeds * share * (1 - share))
    assert abs(statistic - len(found)) < 4 * np.sqrt(2 * len(found))


def test_grades_after_a_gap_are_not_a_sample(pairs: Population, judged: np.ndarray) -> None:
    order = in_order(pairs, judged, 100)
    grades = {pairs.keys[index]: 2 for index in order}
    assert sorted(graded_sample(pairs, grades)) == sorted(order)
    of_stratum = [index for index in order if pairs.stratum[index] == 1]
    del grades[pairs.keys[of_stratum[3]]]
    left = graded_sample(pairs, {**grades, ("another", "pair"): 4})
    assert sorted(left) == sorted(set(order) - set(of_stratum[3:]))
