"""Mining: which pairs become examples, and which never may."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrite.spec import MineSpec
from pyrite.training import mining
from pyrite.training.mining import Candidate, Example, MiningRule, Ranked, mine, mine_query, mix

GRADES = st.sampled_from([None, 1, 2, 3, 4])


def candidates_with(grades: list[int | None], scores: list[float] | None = None) -> list[Candidate]:
    """Candidates c0, c1, ... by rank."""
    scores = scores or [0.9 - 0.05 * i for i in range(len(grades))]
    return [
        Candidate(f"c{i}", i + 1, score, grade, None if grade is None else float(grade))
        for i, (grade, score) in enumerate(zip(grades, scores, strict=True))
    ]


def no_duplicates(*_: str) -> bool:
    return False


def mine_one(candidates: list[Candidate], **settings: Any) -> tuple[list[Example], Any]:
    spec = MineSpec(**{"num_negatives": 1, "relative_margin": None, **settings})
    return mine_query("q", candidates, set(), spec, no_duplicates)


@given(
    grades=st.lists(GRADES, min_size=1, max_size=30),
    rule=st.sampled_from(["nearest", "rank"]),
    negatives=st.integers(1, 4),
    margin=st.none() | st.floats(0, 0.5),
    data=st.data(),
)
def test_no_example_has_a_known_false_negative(
    grades: list[int | None], rule: str, negatives: int, margin: float | None, data: Any
) -> None:
    scores = data.draw(st.lists(st.floats(0.1, 1), min_size=len(grades), max_size=len(grades)))
    candidates = candidates_with(grades, scores)
    ids = [candidate.passage_id for candidate in candidates]
    relevant = data.draw(st.sets(st.sampled_from(ids)))
    duplicates = data.draw(st.sets(st.sampled_from(ids)))
    spec = MineSpec(rule=rule, num_negatives=negatives, relative_margin=margin)

    def is_duplicate(a: str, b: str) -> bool:
        return a in duplicates and b in relevant

    examples, reason = mine_query("q", candidates, relevant, spec, is_duplicate)
    assert bool(examples) != bool(reason)
    for example in examples:
        assert len(example.negatives) == negatives
        for negative in example.negatives:
            assert negative.grade in (1, 2)
            assert negative.passage_id not in relevant
            assert not (relevant and negative.passage_id in duplicates)
        if margin is not None:
            ceiling = (1 - margin) * example.positive.score
            eligible = [c for c in candidates if c.grade in (1, 2) and c.passage_id not in relevant | duplicates]
            if rule == "rank":  # low-ranked positives get high-ranked negatives, and the reverse
                is_low = example.positive.rank > spec.positive_rank
                eligible = [c for c in eligible if (c.rank <= spec.negative_rank) == is_low]
            low = [c for c in eligible if c.score <= ceiling]
            assert sum(n.score <= ceiling for n in example.negatives) >= min(negatives, len(low))
        assert example.positive.grade is not None
        assert example.positive.grade >= (3 if rule == "rank" else 4)
        assert {c.passage_id for c in candidates if (c.grade or 0) >= 3} | relevant <= example.relevant


def test_an_ungraded_pair_is_neither_positive_nor_negative() -> None:
    examples, _ = mine_one(candidates_with([None, 4, None, 1]))
    assert [n.passage_id for n in examples[0].negatives] == ["c3"]
    assert mine_one(candidates_with([None, None])) == ([], "no candidate was judged")


def test_nearest_pairs_the_highest_ranked_of_both_grades() -> None:
    examples, _ = mine_one(candidates_with([2, 1, 4, 1, 4]), num_negatives=2)
    assert [(e.positive.passage_id, [n.passage_id for n in e.negatives], e.kind) for e in examples] == [
        ("c2", ["c0", "c1"], "hard")
    ]


def test_nearest_ignores_grade_three() -> None:
    examples, _ = mine_one(candidates_with([3, 2, 4, 1]))
    assert (examples[0].positive.passage_id, examples[0].negatives[0].passage_id) == ("c2", "c1")
    assert mine_one(candidates_with([3, 3, 1])) == ([], "no candidate is judged relevant")


@pytest.mark.parametrize(
    ("grades", "expected"),
    [
        # hard: a relevant passage below rank 10, an irrelevant one in the top 5; easy: the well-ranked passages
        ([1] + [3] * 4 + [1] * 10 + [3], [("c15", "c0", "hard"), ("c1", "c5", "easy")]),
        ([3, 1, 3] + [1] * 3, [("c0", "c5", "easy")]),  # no relevant passage is low, so c1 is unused
        ([1] * 10 + [3], [("c10", "c0", "hard")]),  # no relevant passage is high
    ],
)
def test_rank_gives_hard_and_easy_examples(grades: list[int | None], expected: list[tuple[str, str, str]]) -> None:
    """Regression: with hard examples alone, the model learned to invert its ranking."""
    examples, _ = mine_one(candidates_with(grades), rule="rank")
    assert [(e.positive.passage_id, e.negatives[0].passage_id, e.kind) for e in examples] == expected


def test_rank_without_a_pairing_gives_its_reason() -> None:
    assert mine_one(candidates_with([3, 1]), rule="rank") == ([], "too few irrelevant candidates")


def test_mining_uses_a_registered_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    class LowestRule(MiningRule):
        """The lowest-ranked positive against the lowest-ranked negatives."""

        def pairings(self, positives: Ranked, negatives: Ranked, spec: MineSpec) -> list[tuple[Ranked, Ranked]]:
            del spec
            return [(positives[::-1], negatives[::-1])]

    monkeypatch.setitem(mining.RULES, "lowest", LowestRule(positive_grade=3))
    spec = MineSpec(num_negatives=1, relative_margin=None).model_copy(update={"rule": "lowest"})
    queries = [("q", candidates_with([4, 1, 3, 1])), ("r", candidates_with([2, 1]))]
    examples, reasons = mine(queries, {}, spec, 0, no_duplicates)
    assert [(e.positive.passage_id, e.negatives[0].passage_id) for e in examples] == [("c2", "c3")]
    assert reasons == {"no candidate is judged relevant": 1}


@given(hard=st.integers(0, 20), easy=st.integers(0, 20), ratio=st.floats(0, 5), seed=st.integers(0, 9))
def test_mix_limits_easy_examples_only(hard: int, easy: int, ratio: float, seed: int) -> None:
    positive, negative = candidates_with([4, 1])
    kinds = ["hard"] * hard + ["easy"] * easy
    examples = [Example(f"q{i}", positive, (negative,), kind, frozenset()) for i, kind in enumerate(kinds)]  # type: ignore[arg-type]
    mixed = mix(examples, ratio, seed)
    assert sum(e.kind == "hard" for e in mixed) == hard
    assert sum(e.kind == "easy" for e in mixed) == min(easy, round(ratio * hard))
    assert mixed == mix(examples, ratio, seed)


def example(query: str, positive: str, negative: str) -> Example:
    return Example(
        query,
        Candidate(positive, 1, 1.0, 4, 4.0),
        (Candidate(negative, 9, 0.1, 1, 1.0),),
        "easy",
        frozenset(positive),
    )


@given(st.lists(st.permutations("abcdef"), min_size=1, max_size=6), st.integers(1, 4))
def test_a_group_of_neighbours_has_no_conflict(ranked_lists: list[list[str]], size: int) -> None:
    examples = [example(f"q{i}", order[0], order[1]) for i, order in enumerate(ranked_lists)]
    groups = mining.group_neighbours(examples, {f"q{i}": order for i, order in enumerate(ranked_lists)}, size)
    for number in set(groups):
        members = [e for e, g in zip(examples, groups, strict=True) if g == number]
        assert len(members) <= size
        for a in members:
            for b in members:
                if a is not b:
                    passages = {a.positive.passage_id, a.negatives[0].passage_id}
                    assert passages.isdisjoint(b.relevant)


def test_mutual_hard_negatives_share_a_group() -> None:
    examples = [example("q0", "a", "z"), example("q1", "b", "z"), example("q2", "c", "z"), example("q3", "d", "a")]
    ranked = {"q0": ["a", "d", "c"], "q1": ["b"], "q2": ["c", "a"], "q3": ["d", "a"]}
    assert mining.group_neighbours(examples, ranked, 4) == [0, 1, 0, 3]  # q3 conflicts: its negative answers q0


def test_reasons_are_counted() -> None:
    grades = {"a": [4, 1], "b": [1, 1], "c": [4, 4], "d": [1]}
    queries = [(query, candidates_with(each)) for query, each in grades.items()]
    examples, reasons = mine(queries, {}, MineSpec(num_negatives=1, relative_margin=None), 0, no_duplicates)
    assert [e.query_id for e in examples] == ["a"]
    assert reasons == {"no candidate is judged relevant": 2, "no candidate is judged irrelevant": 1}


def test_near_duplicates_are_recognised() -> None:
    a = "Rest the ankle, keep it raised, and put ice on it for ten minutes every few hours of the first day."
    b = f"{a} Call a doctor if it does not get better."
    c = "Rest the wrist in a splint and take a painkiller with food for no more than three days in a row."
    assert mining.near_duplicates(mining.shingles(a), mining.shingles(b))
    assert not mining.near_duplicates(mining.shingles(a), mining.shingles(c))
    a = "痛风是一种常见的关节炎，由血液中尿酸过高引起，会使关节突然剧烈疼痛。"
    b = "据说" + a
    c = "麻疹是一种常见的传染病，由病毒引起，会使病人发热、咳嗽并出现皮疹。"
    assert mining.near_duplicates(mining.shingles(a), mining.shingles(b))
    assert not mining.near_duplicates(mining.shingles(a), mining.shingles(c))


def test_a_negative_within_the_margin_is_replaced() -> None:
    # The positive scores .50, so the ceiling is .40: .80 and .45 are above it, .38 and .20 are not.
    candidates = candidates_with([1, 4, 1, 1, 1], [0.80, 0.50, 0.45, 0.38, 0.20])
    examples, _ = mine_one(candidates, relative_margin=0.2)
    assert [n.passage_id for n in examples[0].negatives] == ["c3"]
    assert examples[0].kind == "hard", "c0 outranks the positive, although it was not chosen"


def test_the_lowest_ranked_replace_missing_negatives() -> None:
    candidates = candidates_with([1, 1, 4, 1], [0.9, 0.8, 0.5, 0.3])
    examples, _ = mine_one(candidates, num_negatives=2, relative_margin=0.2)
    assert [n.passage_id for n in examples[0].negatives] == ["c3", "c1"]


def test_an_example_is_hard_if_a_negative_outranks_it() -> None:
    assert [e.kind for e in mine_one(candidates_with([4, 1]))[0]] == ["easy"]
    assert [e.kind for e in mine_one(candidates_with([1, 4]))[0]] == ["hard"]
