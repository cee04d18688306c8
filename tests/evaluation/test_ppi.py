"""Prediction-powered inference: exact cases, and the coverage of the intervals over simulated judges."""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from pyrite.evaluation import ppi
from pyrite.evaluation.ppi import Pairs, allocate
from pyrite.evaluation.significance import standard_error

REPLICATES, QUERIES, PER_TOPIC, PAIRS = 2000, 150, 3, 8
#: Graded pairs by stratum: only base, only chosen, both at another rank, both at the same rank.
GRADED = np.array([35, 35, 20, 10])

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Simulation:
    """Replicates of a test set with a judge and a person. Arrays have shape (replicates, queries * PAIRS)."""

    base: Values
    difference: Values
    stratum: NDArray[np.int64]
    person: Values
    judge: Values
    graded: Values

    def pairs(self, replicate: int, judge: Values | None = None) -> Pairs:
        return Pairs(
            query=np.repeat(np.arange(QUERIES), PAIRS),
            stratum=self.stratum[replicate],
            judged=self.judge[replicate] if judge is None else judge,
            graded=self.graded[replicate],
            clusters=(np.arange(QUERIES) // PER_TOPIC).tolist(),
        )

    def by_query(self, terms: Values) -> Values:
        """Sums over the pairs of each query, shape (replicates, queries)."""
        return terms.reshape(REPLICATES, QUERIES, PAIRS).sum(axis=-1)


@pytest.fixture(scope="module")
def simulation() -> Simulation:
    """Queries of a topic share how well they are answered. The judge prefers what only the chosen model finds.

    Of the eight pairs of a query, both models rank two, and each model three others, in random order.
    """
    rng = np.random.default_rng(0)
    shape = (REPLICATES, QUERIES, PAIRS)
    discounts = 1 / np.log2(np.arange(5) + 2)
    base, chosen = np.zeros(shape), np.zeros(shape)
    for weights, members in ((base, [0, 1, 2, 3, 4]), (chosen, [0, 1, 5, 6, 7])):
        weights[..., members] = rng.permuted(np.broadcast_to(discounts, (*shape[:2], 5)), axis=-1)
    stratum = np.select([chosen == 0, base == 0, base != chosen], [0, 1, 2], 3)
    # The gain of a pair is 0, 1/3, 2/3 or 1, and higher for an easy topic.
    easy = np.repeat(rng.normal(0, 0.7, (REPLICATES, QUERIES // PER_TOPIC)), PER_TOPIC, axis=1)[..., None]
    liking = easy + np.select([stratum == 0, stratum == 1], [-1.2, -0.6], 0.4) + rng.normal(0, 1, shape)
    person = np.digitize(liking, [-0.3, 0.6, 1.2]) / 3
    # The judge knows 0 and 1 only. It finds most answers, and accepts many wrong ones of the chosen model.
    accepted = np.where(person > 0.5, 0.8, np.where(stratum == 1, 0.4, 0.05))
    judge = (rng.uniform(size=shape) < accepted).astype(np.float64)
    flat = (REPLICATES, QUERIES * PAIRS)
    base, chosen, stratum, person, judge = (each.reshape(flat) for each in (base, chosen, stratum, person, judge))
    order = np.argsort(np.argsort(stratum + rng.uniform(size=flat), axis=-1), axis=-1)
    starts = np.cumsum([np.zeros(REPLICATES), *(np.sum(stratum == h, axis=-1) for h in range(3))], axis=0)
    rank = order - np.take_along_axis(starts.T, stratum, axis=-1)
    graded = np.where(rank < GRADED[stratum], person, np.nan)
    return Simulation(base, chosen - base, stratum, person, judge, graded)


def test_intervals_cover_the_truth_in_95_of_100_cases(simulation: Simulation) -> None:
    gains, bases = (simulation.by_query(c * simulation.person) for c in (simulation.difference, simulation.base))
    truth, relative_truth = gains.mean(), gains.mean() / bases.mean()
    found = [ppi.mean(simulation.difference[i], simulation.pairs(i)) for i in range(REPLICATES)]
    covered = np.mean([each.interval.low <= truth <= each.interval.high for each in found])
    assert 0.93 <= covered <= 0.97, covered
    values = np.array([each.value for each in found])
    assert abs(values.mean() - truth) < 4 * values.std() / np.sqrt(REPLICATES), "the estimate is biased"

    ratios = [ppi.ratio(simulation.difference[i], simulation.base[i], simulation.pairs(i)) for i in range(REPLICATES)]
    covered = np.mean([each.interval.low <= relative_truth <= each.interval.high for each in ratios])
    assert 0.93 <= covered <= 0.97, covered


def test_the_judges_own_interval_fails_if_it_is_biased(simulation: Simulation) -> None:
    truth = simulation.by_query(simulation.difference * simulation.person).mean()
    judged = simulation.by_query(simulation.difference * simulation.judge)
    topics = simulation.pairs(0).clusters
    errors = np.array([standard_error(each, topics) for each in judged])
    assert np.mean(np.abs(judged.mean(axis=-1) - truth) < 1.96 * errors) < 0.5


def test_a_good_judge_narrows_the_interval(simulation: Simulation) -> None:
    def width(judge: Values | None, replicate: int) -> float:
        interval = ppi.mean(simulation.difference[replicate], simulation.pairs(replicate, judge)).interval
        return interval.high - interval.low

    widths = np.array(
        [[width(judge, i) for judge in (simulation.person[i], None, np.zeros(QUERIES * PAIRS))] for i in range(100)]
    ).mean(axis=0)
    assert widths[0] < 0.8 * widths[1]
    assert widths[1] < widths[2]


def test_a_complete_sample_gives_the_persons_mean(simulation: Simulation) -> None:
    pairs = replace(simulation.pairs(0), graded=simulation.person[0])
    gains, bases = (simulation.by_query(c * simulation.person)[0] for c in (simulation.difference, simulation.base))
    found = ppi.mean(simulation.difference[0], pairs)
    assert found.value == pytest.approx(gains.mean())
    margin = standard_error(gains, pairs.clusters)
    assert (found.interval.high - found.value) / margin == pytest.approx(2.01, abs=0.01)  # t with 49 degrees of freedom
    ratio = ppi.ratio(simulation.difference[0], simulation.base[0], pairs)
    assert ratio.value == pytest.approx(gains.mean() / bases.mean())


def test_few_grades_widen_the_interval(simulation: Simulation) -> None:
    """One degree of freedom: Student's t is 12.7. The gains of the sampled stratum are 0, so it adds no variance."""
    last = simulation.stratum[0] == 3
    person, judge = np.where(last, 0, simulation.person[0]), np.where(last, 0, simulation.judge[0])
    complete = replace(simulation.pairs(0), graded=person, judged=judge)
    sampled = replace(complete, graded=np.where(last & (np.cumsum(last) > 2), np.nan, person))
    wide, narrow = (ppi.mean(simulation.difference[0], each).interval for each in (sampled, complete))
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(12.706 / 2.01, rel=0.01)


def test_a_ratio_to_nothing_is_undefined(simulation: Simulation) -> None:
    nothing = replace(simulation.pairs(0), graded=np.zeros(QUERIES * PAIRS))
    for pairs, sign in ((nothing, 1), (simulation.pairs(0), -1)):
        found = ppi.ratio(simulation.difference[0], sign * simulation.base[0], pairs)
        assert np.isnan([found.value, found.interval.low, found.interval.high]).all()


def test_an_estimate_needs_two_grades_in_each_stratum(simulation: Simulation) -> None:
    pairs = simulation.pairs(0)
    assert ppi.is_estimable(pairs)
    first = np.flatnonzero((pairs.stratum == 3) & np.isfinite(pairs.graded))[1:]
    pairs.graded[first] = np.nan
    try:
        assert not ppi.is_estimable(pairs)
        with pytest.raises(ValueError, match="two graded pairs in each stratum"):
            ppi.mean(simulation.difference[0], pairs)
    finally:
        pairs.graded[first] = simulation.person[0][first]


def test_pairs_are_allocated_by_size_and_spread() -> None:
    sizes = np.array([1000, 500, 3, 0])
    counts = allocate(sizes, np.array([1.0, 2.0, 0.1, 0.0]), 103)
    assert counts.tolist() == [50, 50, 3, 0], "the third stratum is complete; the others have equal size times spread"
    totals = [allocate(sizes, np.array([1.0, 0.3, 0.0, 0.0]), total) for total in range(0, 1600, 7)]
    assert all((more >= fewer).all() for fewer, more in pairwise(totals))
    assert totals[0].tolist() == [5, 5, 3, 0]
    assert totals[-1].tolist() == sizes.tolist()
