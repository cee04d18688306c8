"""Which pairs people grade: a random sample of the pairs that decide the gain in DCG@5, with known probabilities.

The pairs are those of a test query and a passage that the base or the chosen model ranks among its first five. Strata
differ in which of the two models that is. Within a stratum, the pairs with the smallest hash are graded first
(permanent random numbers; Ohlsson, in Cox and others, Business Survey Methods, 1995, chapter 9). So the first n pairs
of a stratum are a simple random sample for every n. The hash does not depend on the rankings: if the run changes, the
pairs that remain stay graded.
"""

import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pyrite.evaluation.ppi import Integers, Values, allocate
from pyrite.plan import BASE

#: The ranks that DCG@5 counts.
DEPTH = 5

#: The strata, in the order of their numbers.
STRATA = (
    "only the base model's top 5",
    "only the chosen model's top 5",
    "both, at another rank",
    "both, at the same rank",
)

#: A query id and a passage id.
Key = tuple[str, str]


@dataclass(frozen=True, eq=False)
class Population:
    """All pairs of the first five ranks of base and chosen model.

    Attributes:
        keys: the pairs, sorted.
        base, chosen: the pair's coefficient in the model's DCG@5: 1 / log2(rank + 1), and 0 beyond rank 5. Shape
            (pairs,).
        stratum: index in STRATA, shape (pairs,).
        number: the pair's permanent random number, from 0 to 1, shape (pairs,).
    """

    keys: list[Key]
    base: Values
    chosen: Values
    stratum: Integers
    number: Values

    @property
    def difference(self) -> Values:
        """The pair's coefficient in the gain, shape (pairs,)."""
        return self.chosen - self.base


def population(rankings: pa.Table, chosen: str, queries: Collection[str], seed: int) -> Population:
    """The pairs of ``queries`` that base or ``chosen`` ranks among its first five.

    Args:
        rankings: RANKINGS table with both models.
        seed: seed of the random numbers.
    """
    ranks = {model: _ranks(rankings, model, queries) for model in (BASE, chosen)}
    keys = sorted({*ranks[BASE], *ranks[chosen]})
    base, tuned = (np.array([_discount(ranks[model].get(key)) for key in keys]) for model in (BASE, chosen))
    stratum = np.select([tuned == 0, base == 0, base != tuned], [0, 1, 2], 3)
    return Population(keys, base, tuned, stratum, np.array([_random_number(seed, key) for key in keys]))


def in_order(pairs: Population, judged: Values, total: int) -> list[int]:
    """The pairs to grade, as indices in ``pairs.keys``, in the order of grading.

    Strata alternate at random in proportion to their shares, so that grading can stop early and the order reveals
    nothing. Within a stratum the random numbers ascend.

    Args:
        judged: the judge's gain of each pair, shape (pairs,).
        total: number of pairs.
    """
    sizes = np.bincount(pairs.stratum, minlength=len(STRATA))
    counts = allocate(sizes, _spread(pairs, judged), total)
    jitter = pairs.number * 2**24 % 1  # the later digits of the hash are independent of the first
    ordered = []
    for number, members in enumerate(_members(pairs)):
        for position, index in enumerate(members[: counts[number]]):
            ordered.append(((position + jitter[index]) / counts[number], int(index)))
    return [index for _, index in sorted(ordered)]


def graded_sample(pairs: Population, grades: Mapping[Key, int]) -> dict[int, int]:
    """The grades that form a random sample of each stratum, by index in ``pairs.keys``.

    In a stratum, grades after the first pair without a grade are left out. Such a gap arises if the run has changed
    since: a new pair of the first five ranks belongs to the sample, but has no grade yet. Without it, the later grades
    are not a random sample.
    """
    found = {}
    for members in _members(pairs):
        for index in members:
            if (grade := grades.get(pairs.keys[index])) is None:
                break
            found[int(index)] = grade
    return found


def _members(pairs: Population) -> Iterator[Integers]:
    """For each stratum, the indices of its pairs by ascending random number."""
    order = np.argsort(pairs.number, kind="stable")
    for number in range(len(STRATA)):
        yield order[pairs.stratum[order] == number]


def _spread(pairs: Population, judged: Values) -> Values:
    """The root mean square of a pair's coefficient in the relative gain, by stratum, shape (strata,).

    That coefficient is (c - r b) / mean DCG, where c and b are the coefficients in the gain and in the base model's
    DCG, and r is the relative gain by the judge's grades. The factor 1 / mean DCG is common to all.
    """
    below = float(pairs.base @ judged)
    relative = float(np.clip(pairs.difference @ judged / below, -1, 1)) if below > 0 else 0.0
    squares = (pairs.difference - relative * pairs.base) ** 2
    sizes = np.bincount(pairs.stratum, minlength=len(STRATA))
    spread: Values = np.sqrt(np.bincount(pairs.stratum, squares, len(STRATA)) / np.maximum(sizes, 1))
    return spread


def _ranks(rankings: pa.Table, model: str, queries: Collection[str]) -> dict[Key, int]:
    shown = pc.and_(pc.equal(rankings["model"], model), pc.less_equal(rankings["rank"], DEPTH))
    columns = (rankings.filter(shown)[name].to_pylist() for name in ("query_id", "passage_id", "rank"))
    return {(query, passage): rank for query, passage, rank in zip(*columns, strict=True) if query in queries}


def _discount(rank: int | None) -> float:
    return 0.0 if rank is None else float(1 / np.log2(rank + 1))


def _random_number(seed: int, key: Key) -> float:
    digest = hashlib.sha256(f"{seed} {key[0]} {key[1]}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
