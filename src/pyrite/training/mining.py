"""Turns judged candidates into training examples, one query at a time. Pure functions.

A mining rule decides which positives are paired with which negatives. Under every rule, a passage known to be relevant
is never a negative, and an example is hard if an irrelevant passage outranks its positive.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pyrite.judges.base import RELEVANT
from pyrite.spec import MineSpec
from pyrite.words import words

Kind = Literal["hard", "easy"]

#: The word n-grams of a text.
Shingles = frozenset[tuple[str, ...]]


class Candidate(NamedTuple):
    """A candidate. ``grade`` and ``expected`` (the expected grade) are None if it was not judged."""

    passage_id: str
    rank: int
    score: float
    grade: int | None
    expected: float | None


class Example(NamedTuple):
    """A query's positive and negatives. ``relevant``: the passages that must never be its negatives."""

    query_id: str
    positive: Candidate
    negatives: tuple[Candidate, ...]
    kind: Kind
    relevant: frozenset[str]


#: Candidates by rank, best first.
Ranked = Sequence[Candidate]


@dataclass(frozen=True)
class MiningRule:
    """Pairs the highest-ranked positives with the highest-ranked negatives.

    To add a rule, override the methods in a subclass, and add it to ``RULES`` and to ``spec.MineSpec.rule``.
    """

    #: Minimum grade of a positive, unless mine.positive_grade is set.
    positive_grade: int = 4

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
RULES: dict[str, MiningRule] = {"nearest": MiningRule(), "rank": RankRule(positive_grade=3)}


def mine_query(
    query_id: str,
    candidates: Sequence[Candidate],
    relevant: set[str],
    spec: MineSpec,
    is_duplicate: Callable[[str, str], bool],
) -> tuple[list[Example], str | None]:
    """The examples of one query, or the reason why it has none.

    Args:
        candidates: the query's candidates, in any order.
        relevant: ids of passages known to be relevant, in addition to those graded as relevant here.
        is_duplicate: whether two passage ids are near-duplicates.
    """
    ranked = sorted(candidates, key=lambda c: (c.rank, -c.score, c.passage_id))
    positives, negatives = split_by_grade(ranked, relevant, spec)
    if not positives:
        graded = any(c.grade is not None for c in candidates)
        return [], "no candidate is judged relevant" if graded else "no candidate was judged"
    if not negatives:
        return [], "no candidate is judged irrelevant"
    protected = frozenset(relevant | {c.passage_id for c in ranked if c.grade is not None and c.grade >= RELEVANT})
    examples = []
    for paired_positives, paired_negatives in RULES[spec.rule].pairings(positives, negatives, spec):
        for positive in paired_positives[: spec.num_positives]:
            chosen = _choose_negatives(positive, paired_negatives, protected, spec, is_duplicate)
            if chosen:
                kind: Kind = "hard" if paired_negatives[0].rank < positive.rank else "easy"
                examples.append(Example(query_id, positive, chosen, kind, protected))
    return examples, None if examples else "too few irrelevant candidates"


def split_by_grade(
    candidates: Iterable[Candidate], relevant: Container[str], spec: MineSpec
) -> tuple[list[Candidate], list[Candidate]]:
    """The possible positives and the possible negatives. Passages in ``relevant`` are never negatives."""
    minimum = spec.positive_grade or RULES[spec.rule].positive_grade
    graded = [(c, c.grade) for c in candidates if c.grade is not None]
    return (
        [c for c, grade in graded if grade >= minimum],
        [c for c, grade in graded if grade <= spec.negative_grade and c.passage_id not in relevant],
    )


def _choose_negatives(
    positive: Candidate,
    negatives: Ranked,
    protected: Iterable[str],
    spec: MineSpec,
    is_duplicate: Callable[[str, str], bool],
) -> tuple[Candidate, ...]:
    """``spec.num_negatives`` negatives for ``positive``, or none if there are too few.

    First, the highest-ranked of those that score at least ``relative_margin`` below the positive. If they do not
    suffice, because the positive itself ranks low, then the lowest-ranked of the others, which are the least likely to
    be relevant.
    """
    ceiling = float("inf") if spec.relative_margin is None else positive.score * (1 - spec.relative_margin)
    below = [n for n in negatives if n.score <= ceiling]
    above = [n for n in reversed(negatives) if n.score > ceiling]
    chosen: list[Candidate] = []
    for negative in [*below, *above]:
        if not any(is_duplicate(negative.passage_id, other) for other in protected):
            chosen.append(negative)
        if len(chosen) == spec.num_negatives:
            return tuple(chosen)
    return ()


def mix(examples: Sequence[Example], easy_per_hard: float | None, seed: int) -> list[Example]:
    """All hard examples and at most ``easy_per_hard`` times as many easy ones, drawn by ``seed``. Keeps the order."""
    if easy_per_hard is None:
        return list(examples)
    easy = [example for example in examples if example.kind == "easy"]
    limit = round(easy_per_hard * (len(examples) - len(easy)))
    selected = set(sorted(easy, key=lambda example: _sort_key(example, seed))[:limit])
    return [example for example in examples if example.kind == "hard" or example in selected]


def _sort_key(example: Example, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} {example.query_id} {example.positive.passage_id}".encode()).digest()


def mine(
    by_query: Iterable[tuple[str, Sequence[Candidate]]],
    relevant: Mapping[str, set[str]],
    spec: MineSpec,
    seed: int,
    is_duplicate: Callable[[str, str], bool],
) -> tuple[list[Example], Counter[str]]:
    """The examples of all queries after ``mix``, and the number of queries without an example by reason."""
    reasons: Counter[str] = Counter()

    def examples() -> Iterator[Example]:
        for query_id, candidates in by_query:
            found, reason = mine_query(query_id, candidates, relevant.get(query_id, set()), spec, is_duplicate)
            if reason:
                reasons[reason] += 1
            yield from found

    return mix(list(examples()), spec.easy_per_hard, seed), reasons


def group_neighbours(examples: Sequence[Example], ranked: Mapping[str, Sequence[str]], size: int) -> list[int]:
    """A group number for each example. A group joins an example with those whose positives are its candidates.

    In a batch, an example's positive is a negative of the others, and a neighbour's positive is a hard one at no extra
    encoding cost. Greedy, in the given order. A group has at most ``size`` examples and no conflicts.

    Args:
        ranked: the ids of each query's candidates, best first.
    """
    by_positive: dict[str, list[int]] = {}
    for position, example in enumerate(examples):
        by_positive.setdefault(example.positive.passage_id, []).append(position)
    groups = [-1] * len(examples)
    for position, example in enumerate(examples):
        if groups[position] >= 0:
            continue
        members = [position]
        groups[position] = position
        neighbours = (other for passage_id in ranked[example.query_id] for other in by_positive.get(passage_id, ()))
        for other in neighbours:
            if len(members) == size:
                break
            if groups[other] < 0 and not any(_conflict(examples[other], examples[m]) for m in members):
                groups[other] = position
                members.append(other)
    return groups


def _conflict(a: Example, b: Example) -> bool:
    """Whether two examples must not share a batch: same query, or a passage of one is relevant to the other's query."""
    passages_a = {a.positive.passage_id, *(n.passage_id for n in a.negatives)}
    passages_b = {b.positive.passage_id, *(n.passage_id for n in b.negatives)}
    return a.query_id == b.query_id or bool(passages_a & b.relevant) or bool(passages_b & a.relevant)


def shingles(text: str, width: int = 5) -> Shingles:
    """The case-folded word ``width``-grams of a text; all its words as one shingle if it is shorter.

    In scripts without spaces between words, a character counts as a word.
    """
    found = words(text.casefold())
    return frozenset(tuple(found[i : i + width]) for i in range(max(1, len(found) - width + 1)))


def near_duplicates(a: Shingles, b: Shingles, threshold: float = 0.8) -> bool:
    """Whether the larger set contains at least ``threshold`` of the smaller one (containment: Broder, 1997)."""
    smaller = min(len(a), len(b))
    return smaller > 0 and len(a & b) >= threshold * smaller


def find_near_duplicates(
    passage_ids: Iterable[str], among: Iterable[str], shingles_of: Callable[[str], Shingles]
) -> dict[str, set[str]]:
    """For each of ``passage_ids``, its near-duplicates in ``among``, without the passage itself."""
    index: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for other in among:
        for shingle in shingles_of(other):
            index[shingle].append(other)
    found = {}
    for passage_id in passage_ids:
        own = shingles_of(passage_id)
        overlapping = {other for shingle in own for other in index.get(shingle, ())} - {passage_id}
        found[passage_id] = {other for other in overlapping if near_duplicates(own, shingles_of(other))}
    return found
