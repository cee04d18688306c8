"""Mining: what becomes an example, and what never may."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrite.spec import MineSpec
from pyrite.training.mining import (
    Candidate,
    Example,
    group_neighbours,
    mine,
    mine_query,
    mix,
    near_duplicates,
    shingles,
)

GRADES = st.sampled_from([None, 1, 2, 3, 4])


def ranked(grades: list[int | None], scores: list[float] | None = None) -> list[Candidate]:
    scores = scores or [0.9 - 0.05 * i for i in range(len(grades))]
    return [
        Candidate(f"c{i}", i + 1, score, grade, None if grade is None else float(grade))
        for i, (grade, score) in enumerate(zip(grades, scores, strict=True))
    ]


def never(*_: str) -> bool:
    return False


def one(candidates: list[Candidate], relevant: set[str] | None = None, **settings: Any) -> tuple[list[Example], Any]:
    spec = MineSpec(**{"num_negatives": 1, "relative_margin": None, **settings})
    return mine_query("q", candidates, relevant or set(), spec, never)


@given(
    grades=st.lists(GRADES, min_size=1, max_size=30),
    rule=st.sampled_from(["nearest", "rank"]),
    negatives=st.integers(1, 4),
    margin=st.none() | st.floats(0, 0.5),
    data=st.data(),
)
def test_no_example_holds_a_false_negative_that_the_data_reveals(
    grades: list[int | None], rule: str, negatives: int, margin: float | None, data: Any
) -> None:
    candidates = ranked(grades, data.draw(st.lists(st.floats(0.1, 1), min_size=len(grades), max_size=len(grades))))
    ids = [candidate.passage_id for candidate in candidates]
    relevant = data.draw(st.sets(st.sampled_from(ids)))
    twins = data.draw(st.sets(st.sampled_from(ids)))
    spec = MineSpec(rule=rule, num_negatives=negatives, relative_margin=margin)

    def is_duplicate(a: str, b: str) -> bool:
        return a in twins and b in relevant

    examples, reason = mine_query("q", candidates, relevant, spec, is_duplicate)
    assert bool(examples) != bool(reason)
    for example in examples:
        assert len(example.negatives) == negatives
        for negative in example.negatives:
            assert negative.grade in (1, 2)
            assert negative.passage_id not in relevant
            assert not (relevant and negative.passage_id in twins)
        if margin is not None:
            ceiling = (1 - margin) * example.positive.score
            fitting = [c for c in candidates if c.grade in (1, 2) and c.passage_id not in relevant | twins]
            low = [c for c in fitting if c.score <= ceiling]
            assert sum(n.score <= ceiling for n in example.negatives) >= min(negatives, len(low))
        assert example.positive.grade is not None
        assert example.positive.grade >= (3 if rule == "rank" else 4)
        assert {c.passage_id for c in candidates if (c.grade or 0) >= 3} | relevant <= example.relevant


def test_a_pair_without_a_grade_is_neither_positive_nor_negative() -> None:
    examples, _ = one(ranked([None, 4, None, 1]))
    assert [n.passage_id for n in examples[0].negatives] == ["c3"]
    assert one(ranked([None, None])) == ([], "no candidate was judged")


def test_nearest_takes_the_highest_relevant_and_the_highest_irrelevant() -> None:
    examples, _ = one(ranked([2, 1, 4, 1, 4]), num_negatives=2)
    assert [(e.positive.passage_id, [n.passage_id for n in e.negatives], e.kind) for e in examples] == [
        ("c2", ["c0", "c1"], "hard")
    ]


@pytest.mark.parametrize(
    ("grades", "examples"),
    [
        # a relevant passage below rank 10 and an irrelevant one in the first 5; beside them what is well placed
        ([1] + [3] * 4 + [1] * 10 + [3], [("c15", "c0", "hard"), ("c1", "c5", "easy")]),
        ([3, 1, 3] + [1] * 3, [("c0", "c5", "easy")]),  # nothing relevant is low, so the high irrelevant one is left
        ([1] * 10 + [3], [("c10", "c0", "hard")]),  # nothing relevant is high
    ],
)
def test_rank_rule(grades: list[int | None], examples: list[tuple[str, str, str]]) -> None:
    """The bug: hard examples alone, which teach a model to turn its order around until it knows nothing."""
    found, _ = one(ranked(grades), rule="rank")
    assert [(e.positive.passage_id, e.negatives[0].passage_id, e.kind) for e in found] == examples


def test_rank_rule_without_a_pair_to_make_gives_its_reason() -> None:
    assert one(ranked([3, 1]), rule="rank") == ([], "too few irrelevant candidates")


def test_nearest_ignores_grade_three() -> None:
    examples, _ = one(ranked([3, 2, 4, 1]))
    assert (examples[0].positive.passage_id, examples[0].negatives[0].passage_id) == ("c2", "c1")
    assert one(ranked([3, 3, 1])) == ([], "no candidate is judged relevant")


@given(hard=st.integers(0, 20), easy=st.integers(0, 20), ratio=st.floats(0, 5), seed=st.integers(0, 9))
def test_mix_keeps_all_hard_and_no_more_easy_than_asked(hard: int, easy: int, ratio: float, seed: int) -> None:
    c = ranked([4, 1])
    kinds = ["hard"] * hard + ["easy"] * easy
    examples = [Example(f"q{i}", c[0], (c[1],), kind, frozenset()) for i, kind in enumerate(kinds)]  # type: ignore[arg-type]
    kept = mix(examples, ratio, seed)
    assert sum(e.kind == "hard" for e in kept) == hard
    assert sum(e.kind == "easy" for e in kept) == min(easy, round(ratio * hard))
    assert kept == mix(examples, ratio, seed)


@given(st.lists(st.permutations("abcdef"), min_size=1, max_size=6), st.integers(1, 4))
def test_neighbours_share_a_group_unless_they_are_in_conflict(ranked_lists: list[list[str]], size: int) -> None:
    examples = [
        Example(
            f"q{i}",
            Candidate(order[0], 1, 1.0, 4, 4.0),
            (Candidate(order[1], 2, 0.5, 1, 1.0),),
            "easy",
            frozenset(order[0]),
        )
        for i, order in enumerate(ranked_lists)
    ]
    groups = group_neighbours(examples, {f"q{i}": order for i, order in enumerate(ranked_lists)}, size)
    for number in set(groups):
        members = [e for e, g in zip(examples, groups, strict=True) if g == number]
        assert len(members) <= size
        for a in members:
            for b in members:
                if a is not b:
                    passages = {a.positive.passage_id, a.negatives[0].passage_id}
                    assert passages.isdisjoint(b.relevant)


def test_a_question_stands_beside_those_whose_answers_it_is_confused_by() -> None:
    def example(query: str, positive: str, negative: str) -> Example:
        return Example(
            query,
            Candidate(positive, 1, 1.0, 4, 4.0),
            (Candidate(negative, 9, 0.1, 1, 1.0),),
            "easy",
            frozenset(positive),
        )

    examples = [example("q0", "a", "z"), example("q1", "b", "z"), example("q2", "c", "z"), example("q3", "d", "a")]
    ranked = {"q0": ["a", "d", "c"], "q1": ["b"], "q2": ["c", "a"], "q3": ["d", "a"]}
    assert group_neighbours(examples, ranked, 4) == [0, 1, 0, 3]  # d conflicts: its negative answers q0


def test_reasons_are_counted() -> None:
    queries = [("a", ranked([4, 1])), ("b", ranked([1, 1])), ("c", ranked([4, 4])), ("d", ranked([1]))]
    examples, reasons = mine(queries, {}, MineSpec(num_negatives=1, relative_margin=None), 0, never)
    assert [e.query_id for e in examples] == ["a"]
    assert reasons == {"no candidate is judged relevant": 2, "no candidate is judged irrelevant": 1}


def test_near_duplicates_are_seen_and_others_are_not() -> None:
    a = "Rest the ankle, keep it raised, and put ice on it for ten minutes every few hours of the first day."
    b = a.replace("ten minutes", "ten minutes") + " Call a doctor where it does not get better."
    c = "Rest the wrist in a splint and take a painkiller with food for no more than three days in a row."
    assert near_duplicates(shingles(a), shingles(b))
    assert not near_duplicates(shingles(a), shingles(c))


def test_a_negative_too_close_to_the_positive_gives_way_to_one_that_is_not() -> None:
    # Positive .50, ceiling .40: .80 and .45 are suspect, .38 and .20 are not.
    candidates = ranked([1, 4, 1, 1, 1], [0.80, 0.50, 0.45, 0.38, 0.20])
    examples, _ = one(candidates, relative_margin=0.2)
    assert [n.passage_id for n in examples[0].negatives] == ["c3"]
    assert examples[0].kind == "hard", "c0 outranks the positive, chosen or not"


def test_where_too_few_are_far_enough_the_least_suspect_fill_up() -> None:
    candidates = ranked([1, 1, 4, 1], [0.9, 0.8, 0.5, 0.3])
    examples, _ = one(candidates, num_negatives=2, relative_margin=0.2)
    assert [n.passage_id for n in examples[0].negatives] == ["c3", "c1"]


def test_an_example_is_easy_where_nothing_irrelevant_outranks_its_positive() -> None:
    assert [e.kind for e in one(ranked([4, 1]))[0]] == ["easy"]
    assert [e.kind for e in one(ranked([1, 4]))[0]] == ["hard"]
