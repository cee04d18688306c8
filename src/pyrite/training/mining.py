"""Turns judged candidates into training examples, one query at a time. Pure functions.

A mining rule decides which positives are paired with which negatives. Under every rule, a passage known to be relevant
is never a negative, and an example is hard if an irrelevant passage outranks its positive, chosen as negative or not.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from functools import cache
from itertools import chain, islice
from typing import Literal, NamedTuple

import pyarrow as pa

from pyrite.judges.base import GRADES, RELEVANT
from pyrite.spec import MineSpec
from pyrite.words import words

Kind = Literal["hard", "easy"]

#: The share of the smaller text's shingles that the larger one must have to be its near-duplicate.
CONTAINMENT = 0.8

#: The number of words of a shingle.
SHINGLE_WORDS = 5

#: 64-bit hashes of the word n-grams of a text, which differ between processes.
Shingles = frozenset[int]


class Candidate(NamedTuple):
    """A candidate. ``grade`` and ``expected`` (the expected grade) are None if it was not judged.

    ``known``: whether the passage is a known answer: labelled in the data set, or the query was generated from it.
    """

    passage_id: str
    rank: int
    score: float
    grade: int | None
    expected: float | None
    known: bool = False


class Example(NamedTuple):
    """A positive and negatives of one query."""

    positive: Candidate
    negatives: tuple[Candidate, ...]
    kind: Kind


#: Candidates by rank, best first.
Ranked = Sequence[Candidate]


class MiningRule:
    """Pairs the highest-ranked positives with the highest-ranked negatives.

    To add a rule, override the methods in a subclass, and add it to ``RULES`` and to ``spec.MineSpec.rule``.
    """

    def pairings(self, positives: Ranked, negatives: Ranked, spec: MineSpec) -> list[tuple[Ranked, Ranked]]:
        """The groups of positives and negatives to combine. Each group gives up to mine.num_positives examples."""
        del spec
        return [(positives, negatives)]

    def misranked(self, positives: Ranked, negatives: Ranked, spec: MineSpec) -> tuple[Ranked, Ranked]:
        """The positives ranked too low and the negatives ranked too high."""
        del spec
        if not positives or not negatives:
            return [], []
        best, worst = min(c.rank for c in positives), min(c.rank for c in negatives)
        return [c for c in positives if c.rank > worst], [c for c in negatives if c.rank < best]


class RankRule(MiningRule):
    """Pairs low-ranked positives with high-ranked negatives, and high-ranked positives with low-ranked negatives.

    The thresholds are mine.positive_rank and mine.negative_rank. The second group gives easy examples.
    """

    def pairings(self, positives: Ranked, negatives: Ranked, spec: MineSpec) -> list[tuple[Ranked, Ranked]]:
        low, high = self.misranked(positives, negatives, spec)
        return [
            (low, high),
            (
                [c for c in positives if c.rank <= spec.positive_rank],
                [c for c in negatives if c.rank > spec.negative_rank],
            ),
        ]

    def misranked(self, positives: Ranked, negatives: Ranked, spec: MineSpec) -> tuple[Ranked, Ranked]:
        return (
            [c for c in positives if c.rank > spec.positive_rank],
            [c for c in negatives if c.rank <= spec.negative_rank],
        )


#: The rules by name. "nearest" is the rule of arXiv 2512.08088; "rank" is that of examples/known-recipe.yaml.
RULES: dict[str, MiningRule] = {"nearest": MiningRule(), "rank": RankRule()}


def mine_query(
    candidates: Sequence[Candidate],
    relevant: set[str],
    spec: MineSpec,
    is_duplicate: Callable[[str, str], bool],
    stratified: bool = False,
) -> tuple[list[Example], str | None]:
    """The examples of one query, or the reason why it has none.

    Args:
        candidates: the query's candidates, in any order.
        relevant: ids of passages known to be relevant, in addition to the known answers and to those graded as
            relevant here.
        is_duplicate: whether two passage ids are near-duplicates.
        stratified: whether the negatives of an example are spread over the ranks (``_strata``).
    """
    ranked = sorted(candidates, key=lambda c: (c.rank, -c.score, c.passage_id))
    positives, negatives = split_by_grade(ranked, relevant, spec)
    if not positives:
        graded = any(c.grade is not None for c in candidates)
        return [], "no candidate is judged relevant" if graded else "no candidate was judged"
    if not negatives:
        return [], "no candidate is judged irrelevant"
    protected = relevant | {c.passage_id for c in ranked if c.known or (c.grade or 0) >= RELEVANT}
    examples = []
    for paired_positives, paired_negatives in RULES[spec.rule].pairings(positives, negatives, spec):
        for positive in paired_positives[: spec.num_positives]:
            chosen = _choose_negatives(positive, paired_negatives, protected, spec, is_duplicate, stratified)
            if chosen:
                kind: Kind = "hard" if paired_negatives[0].rank < positive.rank else "easy"
                examples.append(Example(positive, chosen, kind))
    return examples, None if examples else "too few irrelevant candidates"


def examples_are_final(
    candidates: Sequence[Candidate],
    pending: Container[str],
    relevant: set[str],
    spec: MineSpec,
    is_duplicate: Callable[[str, str], bool],
) -> bool:
    """Whether the examples of a query stay the same, whatever the grades of the ``pending`` candidates will be.

    This holds for the positives, the negatives and the kind. The negatives must be the highest-ranked ones (rule
    nearest, not ``stratified``): other rules read grades of all ranks.

    Args:
        candidates: as in ``mine_query``.
        pending: ids of the candidates without a grade that can still get one.
        relevant: as in ``mine_query``.
    """
    ranked = sorted(candidates, key=lambda c: (c.rank, -c.score, c.passage_id))
    place = {c.passage_id: place for place, c in enumerate(ranked)}
    open_ones = [c for c in ranked if c.passage_id in pending]
    if not open_ones:
        return True
    if spec.rule != "nearest":
        return False
    positives = split_by_grade(ranked, relevant, spec)[0][: spec.num_positives]
    if not positives:
        return False
    # Unless known answers are the positives, a pending candidate above the last positive may be a better one.
    if not (spec.uses_known_answers and any(c.known for c in ranked)) and (
        len(positives) < spec.num_positives or place[open_ones[0].passage_id] < place[positives[-1].passage_id]
    ):
        return False
    # A pending candidate above a chosen negative may be a negative that is preferred to it.
    rivals = [place[c.passage_id] for c in open_ones if not c.known and c.passage_id not in relevant]
    first_rival = min(rivals, default=len(ranked))
    examples, _ = mine_query(ranked, relevant, spec, is_duplicate)
    return bool(examples) and all(
        _is_safe(negative, example.positive, spec)
        and place[negative.passage_id] < first_rival
        # A pending candidate that turns out to be relevant protects its near-duplicates.
        and not any(is_duplicate(negative.passage_id, c.passage_id) for c in open_ones)
        for example in examples
        for negative in example.negatives
    )


def split_by_grade(
    candidates: Iterable[Candidate], relevant: Container[str], spec: MineSpec
) -> tuple[list[Candidate], list[Candidate]]:
    """The possible positives and the possible negatives, in the given order.

    A known answer is a better positive than a passage that the judge grades as relevant. So if there are known answers
    and the spec uses them, no other passage is a positive. Known answers and passages in ``relevant`` are never
    negatives.
    """
    candidates = list(candidates)
    graded = [(c, c.grade) for c in candidates if c.grade is not None]
    known = [c for c in candidates if c.known] if spec.uses_known_answers else []
    return (
        known or [c for c, grade in graded if grade >= spec.min_positive_grade],
        [c for c, grade in graded if grade <= spec.negative_grade and not c.known and c.passage_id not in relevant],
    )


def target_grade(candidate: Candidate, spec: MineSpec) -> float | None:
    """The expected grade to train on. A known answer counts as the highest grade if the spec uses known answers.

    Otherwise a judge that underrates a known answer would teach the model to rank its negatives higher.
    """
    return float(max(GRADES)) if candidate.known and spec.uses_known_answers else candidate.expected


def score_ceiling(score: float, margin: float | None) -> float:
    """The highest score of a negative that respects ``margin``, a share of the positive's ``score``.

    It is never above ``score``, which may be negative. Without a margin, it is infinite.
    """
    return float("inf") if margin is None else score - abs(score) * margin


def _choose_negatives(
    positive: Candidate,
    negatives: Ranked,
    protected: Iterable[str],
    spec: MineSpec,
    is_duplicate: Callable[[str, str], bool],
    stratified: bool,
) -> tuple[Candidate, ...]:
    """``spec.num_negatives`` negatives for ``positive``, or none if there are too few.

    First, the highest-ranked of those that score at least ``relative_margin`` below the positive or are clearly
    irrelevant. If they do not suffice, because the positive itself ranks low, then the lowest-ranked of the others,
    which are the least likely to be relevant.

    With ``stratified``, the first of each stratum of those that the margin allows, not the highest-ranked ones.
    """
    # Generators, because usually only the first few negatives are looked at.
    preferred: Iterable[Candidate] = (n for n in negatives if _is_safe(n, positive, spec))
    others = (n for n in reversed(negatives) if not _is_safe(n, positive, spec))

    def eligible(negatives: Iterable[Candidate]) -> Iterator[Candidate]:
        return (n for n in negatives if not any(is_duplicate(n.passage_id, other) for other in protected))

    if stratified:
        preferred = _strata(list(eligible(preferred)), spec.num_negatives)
    chosen = tuple(islice(eligible(chain(preferred, others)), spec.num_negatives))
    return chosen if len(chosen) == spec.num_negatives else ()


def _strata(negatives: list[Candidate], number: int) -> list[Candidate]:
    """The first of each of ``number`` equal strata of ``negatives`` by rank; all if there are at most ``number``.

    A loss that fits grades needs scores from the complete range: the highest-ranked negatives have nearly equal scores
    and grades. Passages of middle grades, which are no negatives, are left out: the same examples serve a contrastive
    loss, and there they would be pushed away.
    """
    if len(negatives) <= number:
        return negatives
    return [negatives[i * len(negatives) // number] for i in range(number)]


def _is_safe(negative: Candidate, positive: Candidate, spec: MineSpec) -> bool:
    """Whether a negative scores below the margin, or is clearly irrelevant.

    The margin protects against unjudged passages that are relevant. It needs no protection from a passage that the
    judge is sure about, and a model learns most from such a passage above the positive.
    """
    if negative.score <= score_ceiling(positive.score, spec.relative_margin):
        return True
    bound = spec.violating_grade
    return bound is not None and negative.expected is not None and negative.expected <= bound


def shingles(text: str) -> Shingles:
    """The case-folded n-grams of ``SHINGLE_WORDS`` words of a text; all its words as one shingle if it is shorter.

    In scripts without spaces between words, a character counts as a word.
    """
    found = words(text.casefold())
    several = frozenset(map(hash, zip(*(found[i:] for i in range(SHINGLE_WORDS)), strict=False)))
    return several or frozenset([hash(tuple(found))])


def shingles_by_id(passages: pa.Table) -> Callable[[str], Shingles]:
    """A function that returns the shingles of a passage's text by its id. They are computed once."""
    rows = {passage_id: row for row, passage_id in enumerate(passages["passage_id"].to_pylist())}
    texts = passages["text"]  # stays in Arrow: Python strings would double the memory of a large corpus
    return cache(lambda passage_id: shingles(texts[rows[passage_id]].as_py()))


def duplicate_check(shingles_of: Callable[[str], Shingles]) -> Callable[[str, str], bool]:
    """A function that returns whether two ids are near-duplicates. ``shingles_of`` as from ``shingles_by_id``."""
    return lambda a, b: near_duplicates(shingles_of(a), shingles_of(b))


def near_duplicates(a: Shingles, b: Shingles) -> bool:
    """Whether the larger set contains at least ``CONTAINMENT`` of the smaller one (containment: Broder, 1997).

    ``duplicates.find_across`` is stricter with short texts. It removes passages from training, so it must not match a
    heading with each passage that quotes it. Here, a match only keeps a passage from being a negative: a false match
    costs one negative, and a missed one trains against an answer.
    """
    smaller = min(len(a), len(b))
    return smaller > 0 and len(a & b) >= CONTAINMENT * smaller
