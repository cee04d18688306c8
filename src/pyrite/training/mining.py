"""From judged candidates to training examples: pure rules, one query at a time.

A rule says which candidates may be positives and negatives, and whether an example is hard: one that the model gets
wrong as it is now. Whatever the rule, a passage that the data reveals to be relevant is never a negative.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pyrite.judges.base import RELEVANT
from pyrite.spec import MineSpec

Kind = Literal["hard", "easy"]


class Candidate(NamedTuple):
    """A judged candidate. ``grade`` and ``expected`` are None where the judge gave none."""

    passage_id: str
    rank: int
    score: float
    grade: int | None
    expected: float | None


class Example(NamedTuple):
    """A positive and its negatives for one query, and the passages that may never be its negatives."""

    query_id: str
    positive: Candidate
    negatives: tuple[Candidate, ...]
    kind: Kind
    relevant: frozenset[str]


@dataclass(frozen=True)
class Rule:
    """A mining rule: the default least grade of a positive, and what stands beside what.

    ``by_rank``: a positive below ``positive_rank`` beside negatives down to ``negative_rank``, and a positive down to
    ``positive_rank`` beside negatives below ``negative_rank``. Otherwise: any beside any. Whatever the rule, an example
    is hard where an irrelevant candidate that may stand in it outranks the positive, be it chosen or filtered out.
    """

    positive_grade: int
    by_rank: bool


#: The rules by name. "rank" is the known public recipe's; "paper" is arXiv 2512.08088's, which has no rank thresholds.
RULES: dict[str, Rule] = {
    "nearest": Rule(positive_grade=4, by_rank=False),
    "rank": Rule(positive_grade=3, by_rank=True),
    "paper": Rule(positive_grade=4, by_rank=False),
}


def mine_query(
    query_id: str,
    candidates: Sequence[Candidate],
    relevant: set[str],
    spec: MineSpec,
    is_duplicate: Callable[[str, str], bool],
) -> tuple[list[Example], str | None]:
    """Examples of one query, and the reason where there is none.

    Args:
        candidates: the query's candidates, in any order.
        relevant: ids of the passages that are known to be relevant, beside the candidates that are graded so.
        is_duplicate: whether two passage ids have nearly the same text.
    """
    rule = RULES[spec.rule]
    least = spec.positive_grade or rule.positive_grade
    ordered = sorted(candidates, key=lambda c: (c.rank, -c.score, c.passage_id))
    positives = [c for c in ordered if c.grade is not None and c.grade >= least]
    if not positives:
        graded = any(c.grade is not None for c in candidates)
        return [], "no candidate is judged relevant" if graded else "no candidate was judged"
    protected = frozenset(relevant | {c.passage_id for c in ordered if c.grade is not None and c.grade >= RELEVANT})
    negatives = [
        c for c in ordered if c.grade is not None and c.grade <= spec.negative_grade and c.passage_id not in protected
    ]
    if not negatives:
        return [], "no candidate is judged irrelevant"
    examples = []
    for some, others in _sides(rule, positives, negatives, spec):
        for positive in some[: spec.num_positives]:
            chosen = _choose(positive, others, protected, spec, is_duplicate)
            if chosen:
                kind: Kind = "hard" if others[0].rank < positive.rank else "easy"
                examples.append(Example(query_id, positive, chosen, kind, protected))
    return examples, None if examples else "too few irrelevant candidates"


def _sides(
    rule: Rule, positives: Sequence[Candidate], negatives: Sequence[Candidate], spec: MineSpec
) -> list[tuple[Sequence[Candidate], Sequence[Candidate]]]:
    """Which positives stand beside which negatives: by rank, the misplaced together, and the well placed."""
    if not rule.by_rank:
        return [(positives, negatives)]
    high, low = _split(positives, spec.positive_rank)
    above, below = _split(negatives, spec.negative_rank)
    return [(low, above), (high, below)]


def _split(ordered: Sequence[Candidate], rank: int) -> tuple[Sequence[Candidate], Sequence[Candidate]]:
    """Those down to ``rank``, and those below it."""
    return [c for c in ordered if c.rank <= rank], [c for c in ordered if c.rank > rank]


def _choose(
    positive: Candidate,
    negatives: Sequence[Candidate],
    protected: Iterable[str],
    spec: MineSpec,
    is_duplicate: Callable[[str, str], bool],
) -> tuple[Candidate, ...]:
    """As many negatives as an example holds, or none where there are too few.

    The highest-ranked that score low enough beside the positive; where those do not suffice, because the model ranks
    the positive itself so low, the lowest-ranked of the rest: of those, the least likely to be relevant after all.
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
    """All hard examples, and as many easy ones as the ratio allows, drawn by ``seed``; in the order given."""
    if easy_per_hard is None:
        return list(examples)
    easy = [example for example in examples if example.kind == "easy"]
    room = round(easy_per_hard * (len(examples) - len(easy)))
    drawn = set(sorted(easy, key=lambda example: _draw(example, seed))[:room])
    return [example for example in examples if example.kind == "hard" or example in drawn]


def _draw(example: Example, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} {example.query_id} {example.positive.passage_id}".encode()).digest()


def mine(
    by_query: Iterable[tuple[str, Sequence[Candidate]]],
    relevant: Mapping[str, set[str]],
    spec: MineSpec,
    seed: int,
    is_duplicate: Callable[[str, str], bool],
) -> tuple[list[Example], Counter[str]]:
    """Examples of all queries, mixed, and for queries that gave none the count of each reason."""
    reasons: Counter[str] = Counter()

    def each() -> Iterator[Example]:
        for query_id, candidates in by_query:
            found, reason = mine_query(query_id, candidates, relevant.get(query_id, set()), spec, is_duplicate)
            if reason:
                reasons[reason] += 1
            yield from found

    return mix(list(each()), spec.easy_per_hard, seed), reasons


def neighbourhoods(examples: Sequence[Example], ranked: Mapping[str, Sequence[str]], size: int) -> list[int]:
    """A group number for each example: examples whose positives are each other's candidates share one.

    In a batch, an example's positive serves the others as a negative, and a neighbour's is a hard one that costs
    nothing to encode. Greedy, in the order given; a group has at most ``size`` examples, and no two in conflict.

    Args:
        ranked: the ids of each query's candidates, best first.
    """
    owners: dict[str, list[int]] = {}
    for position, example in enumerate(examples):
        owners.setdefault(example.positive.passage_id, []).append(position)
    groups = [-1] * len(examples)
    for position, example in enumerate(examples):
        if groups[position] >= 0:
            continue
        members = [position]
        groups[position] = position
        near = (other for passage_id in ranked[example.query_id] for other in owners.get(passage_id, ()))
        for other in near:
            if len(members) == size:
                break
            if groups[other] < 0 and not any(_conflict(examples[other], examples[m]) for m in members):
                groups[other] = position
                members.append(other)
    return groups


def _conflict(a: Example, b: Example) -> bool:
    """Whether the two may not share a batch: one query, or a passage of one that is relevant to the other."""
    passages_a = {a.positive.passage_id, *(n.passage_id for n in a.negatives)}
    passages_b = {b.positive.passage_id, *(n.passage_id for n in b.negatives)}
    return a.query_id == b.query_id or bool(passages_a & b.relevant) or bool(passages_b & a.relevant)


def shingles(text: str, width: int = 5) -> frozenset[tuple[str, ...]]:
    """The runs of ``width`` words of a text, folded; of a shorter text, all its words as one run."""
    words = text.casefold().split()
    return frozenset(tuple(words[i : i + width]) for i in range(max(1, len(words) - width + 1)))


def near_duplicates(a: frozenset[tuple[str, ...]], b: frozenset[tuple[str, ...]], threshold: float = 0.8) -> bool:
    """Whether the smaller of two shingle sets is nearly contained in the other (Broder's containment, 1997)."""
    smaller = min(len(a), len(b))
    return smaller > 0 and len(a & b) >= threshold * smaller


def twins(
    wanted: Iterable[str], among: Iterable[str], shingles_of: Callable[[str], frozenset[tuple[str, ...]]]
) -> dict[str, set[str]]:
    """For each id of ``wanted``, the ids of ``among`` whose text is nearly the same, its own left out."""
    holders: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for other in among:
        for shingle in shingles_of(other):
            holders[shingle].append(other)
    found = {}
    for one in wanted:
        own = shingles_of(one)
        near = {other for shingle in own for other in holders.get(shingle, ())} - {one}
        found[one] = {other for other in near if near_duplicates(own, shingles_of(other))}
    return found
