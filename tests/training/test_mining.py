"""Mining: which pairs become examples, and which never may."""

from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from pyrite.spec import MineSpec
from pyrite.training import mining
from pyrite.training.mining import Candidate, Example, MiningRule, Ranked, mine_query, score_ceiling

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


def with_known(candidates: list[Candidate], *passage_ids: str) -> list[Candidate]:
    return [c._replace(known=c.passage_id in passage_ids) for c in candidates]


def mine_one(candidates: list[Candidate], **settings: Any) -> tuple[list[Example], Any]:
    spec = MineSpec(**{"num_negatives": 1, "relative_margin": None, **settings})
    return mine_query(candidates, set(), spec, no_duplicates)


@given(
    grades=st.lists(GRADES, min_size=1, max_size=30),
    rule=st.sampled_from(["nearest", "rank"]),
    negatives=st.integers(1, 4),
    margin=st.none() | st.floats(0, 0.5),
    violating=st.none() | st.sampled_from([1.0, 1.5, 2.0]),
    data=st.data(),
)
def test_no_example_has_a_known_false_negative(
    grades: list[int | None], rule: str, negatives: int, margin: float | None, violating: float | None, data: Any
) -> None:
    scores = data.draw(st.lists(st.floats(-1, 1), min_size=len(grades), max_size=len(grades)))
    candidates = candidates_with(grades, scores)
    ids = [candidate.passage_id for candidate in candidates]
    known = data.draw(st.sets(st.sampled_from(ids)))
    candidates = with_known(candidates, *known)
    relevant = data.draw(st.sets(st.sampled_from(ids))) | known
    duplicates = data.draw(st.sets(st.sampled_from(ids)))
    spec = MineSpec(rule=rule, num_negatives=negatives, relative_margin=margin, violating_grade=violating)

    def is_duplicate(a: str, b: str) -> bool:
        return a in duplicates and b in relevant

    examples, reason = mine_query(candidates, relevant, spec, is_duplicate)
    assert bool(examples) != bool(reason)
    for example in examples:
        assert len(example.negatives) == negatives
        for negative in example.negatives:
            assert negative.grade in (1, 2)
            assert negative.passage_id not in relevant
            assert not (relevant and negative.passage_id in duplicates)
        if margin is not None:
            ceiling = score_ceiling(example.positive.score, margin)
            eligible = [c for c in candidates if c.grade in (1, 2) and c.passage_id not in relevant | duplicates]
            if rule == "rank":  # low-ranked positives get high-ranked negatives, and the reverse
                is_low = example.positive.rank > spec.positive_rank
                eligible = [c for c in eligible if (c.rank <= spec.negative_rank) == is_low]
            allowed = {c for c in eligible if c.score <= ceiling or (c.grade or 4) <= (violating or 0)}
            assert sum(n in allowed for n in example.negatives) >= min(negatives, len(allowed))
        if rule == "nearest" and known:
            assert example.positive.known
        else:
            assert (example.positive.grade or 0) >= (3 if rule == "rank" else 4)


@given(
    grades=st.lists(st.integers(1, 4), min_size=2, max_size=12),
    known_first=st.booleans(),
    negatives=st.integers(1, 3),
    positives=st.integers(1, 2),
    margin=st.none() | st.floats(0, 0.5),
    violating=st.none() | st.sampled_from([1.0, 2.0]),
    data=st.data(),
)
def test_final_examples_do_not_change(
    grades: list[int],
    known_first: bool,
    negatives: int,
    positives: int,
    margin: float | None,
    violating: float | None,
    data: Any,
) -> None:
    candidates = candidates_with(list(grades), [0.9 - 0.05 * i for i in range(len(grades))])
    ids = [candidate.passage_id for candidate in candidates]
    candidates = with_known(candidates, *data.draw(st.sets(st.sampled_from(ids), max_size=2)))
    relevant = data.draw(st.sets(st.sampled_from(ids), max_size=2))
    duplicates = data.draw(st.sets(st.frozensets(st.sampled_from(ids), min_size=2, max_size=2), max_size=4))
    order = data.draw(st.just(ids) | st.permutations(ids))
    spec = MineSpec(
        known_first=known_first,
        num_negatives=negatives,
        num_positives=positives,
        relative_margin=margin,
        violating_grade=violating,
    )

    def is_duplicate(a: str, b: str) -> bool:
        return frozenset({a, b}) in duplicates

    def mined(candidates: list[Candidate]) -> list[tuple[Any, ...]]:
        found, _ = mine_query(candidates, relevant, spec, is_duplicate)
        return [(e.positive.passage_id, [n.passage_id for n in e.negatives], e.kind) for e in found]

    for count in range(len(ids)):
        judged = order[:count]
        part = [c if c.passage_id in judged else c._replace(grade=None, expected=None) for c in candidates]
        final = mining.examples_are_final(part, order[count:], relevant, spec, is_duplicate)
        if final:
            event("final before the last judgment")
            assert mined(part) == mined(candidates)


@pytest.mark.parametrize(
    ("grades", "settings", "needed"),
    [
        ([2, 1, 1, 1], {"known_first": True}, 1),  # c4 is the known answer
        ([3, 3, 2, 1], {"known_first": True}, 3),
        ([2, 1, 1, 1], {"known_first": True, "num_negatives": 2}, 2),
        ([2, 4, 1, 1], {"known_first": False}, 2),
        ([2, 2, 2, 2], {"known_first": False}, 5),  # no positive: all are needed
        ([2, 2, 1, 1], {"known_first": True, "relative_margin": 0.05, "violating_grade": 1.5}, 3),
        ([2, 2, 1, 1], {"known_first": True, "relative_margin": 0.05, "violating_grade": 2}, 1),
        ([1, 1, 1, 1], {"rule": "rank"}, 5),
    ],
)
def test_examples_are_final_as_early_as_possible(grades: list[int], settings: dict[str, Any], needed: int) -> None:
    candidates = with_known(candidates_with([*grades, 1]), "c4")
    spec = MineSpec(**{"relative_margin": None, **settings})

    def is_final(judged: int) -> bool:
        part = [c if i < judged else c._replace(grade=None, expected=None) for i, c in enumerate(candidates)]
        pending = {c.passage_id for c in part[judged:]}
        return mining.examples_are_final(part, pending, set(), spec, no_duplicates)

    assert [is_final(judged) for judged in range(6)] == [judged >= needed for judged in range(6)]


def test_examples_are_not_final_while_a_better_one_is_unjudged() -> None:
    candidates = candidates_with([None, 4, None, 1, 4])
    settings = MineSpec(relative_margin=None, known_first=False)

    def final(*pending: str) -> bool:
        return mining.examples_are_final(candidates, pending, {"c2"}, settings, no_duplicates)

    assert not final("c0"), "c0 may be the positive or the negative"
    assert final("c2"), "c2 is relevant, and ranks below the positive"
    known = with_known(candidates, "c1")
    assert not mining.examples_are_final(known, {"c0"}, set(), MineSpec(), no_duplicates), "c0 may be the negative"


def test_a_near_duplicate_of_an_unjudged_candidate_is_not_final() -> None:
    candidates = with_known(candidates_with([1, None, None, 1]), "c3")
    settings = MineSpec(relative_margin=None)

    def final(duplicate: str) -> bool:
        return mining.examples_are_final(
            candidates, {"c1", "c2"}, set(), settings, lambda a, b: {a, b} == {"c0", duplicate}
        )

    assert not final("c2"), "if c2 is relevant, c0 is no negative"
    assert final("c9")


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
    ("grades", "known", "settings", "positives"),
    [
        ([4, 1, 3, 1, 2], ("c2", "c4"), {}, ["c2"]),  # a known answer, whatever its grade, before a judged one
        ([4, 1, 3, 1, 2], ("c2", "c4"), {"num_positives": 3}, ["c2", "c4"]),
        ([4, 1, None], ("c2",), {}, ["c2"]),  # the judge's server had no grade for it
        ([4, 1, 3], (), {}, ["c0"]),
        ([4, 1, 3], ("c2",), {"known_first": False}, ["c0"]),
        ([1] + [3] * 10 + [1, 1], ("c11",), {"rule": "rank"}, ["c10", "c1"]),  # grades only
    ],
)
def test_known_answers_come_first(
    grades: list[int | None], known: tuple[str, ...], settings: dict[str, Any], positives: list[str]
) -> None:
    """Regression: a passage that the judge graded 4 was the positive, although the data set named the right one."""
    examples, _ = mine_one(with_known(candidates_with(grades), *known), **settings)
    assert [each.positive.passage_id for each in examples] == positives
    for each in examples:
        graded_4 = {f"c{i}" for i, grade in enumerate(grades) if grade == 4}
        assert each.negatives[0].passage_id not in {*known, *graded_4}


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

    monkeypatch.setitem(mining.RULES, "lowest", LowestRule())
    spec = MineSpec(num_negatives=1, positive_grade=3, relative_margin=None).model_copy(update={"rule": "lowest"})
    examples, _ = mine_query(candidates_with([4, 1, 3, 1]), set(), spec, no_duplicates)
    assert [(e.positive.passage_id, e.negatives[0].passage_id) for e in examples] == [("c2", "c3")]


@pytest.mark.parametrize(
    ("grades", "reason"),
    [
        ([4, 1], None),
        ([1, 1], "no candidate is judged relevant"),
        ([4, 4], "no candidate is judged irrelevant"),
    ],
)
def test_a_query_without_an_example_gives_its_reason(grades: list[int | None], reason: str | None) -> None:
    assert mine_one(candidates_with(grades))[1] == reason


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
    examples, _ = mine_one(candidates, relative_margin=0.2, violating_grade=None)
    assert [n.passage_id for n in examples[0].negatives] == ["c3"]
    assert examples[0].kind == "hard", "c0 outranks the positive, although it was not chosen"
    assert examples[0].negatives[0].rank > examples[0].positive.rank


@pytest.mark.parametrize(
    ("bound", "negatives"),
    [
        (None, ["c4", "c5"]),
        (1.0, ["c4", "c5"]),
        (1.5, ["c1", "c4"]),
        (2, ["c0", "c1"]),
        (3, ["c0", "c1"]),
    ],
)
def test_a_clearly_irrelevant_negative_may_outrank(bound: float | None, negatives: list[str]) -> None:
    """Regression: of 740 hard examples, 122 had a negative that outranks the positive."""
    candidates = candidates_with([2, 1, 4, 2, 1, 1], [0.80, 0.70, 0.50, 0.45, 0.38, 0.20])
    candidates[1] = candidates[1]._replace(expected=1.4)
    examples, _ = mine_one(candidates, num_negatives=2, relative_margin=0.2, violating_grade=bound)
    assert [n.passage_id for n in examples[0].negatives] == negatives


@given(score=st.floats(-1, 1), margin=st.floats(0, 1, exclude_max=True))
def test_the_ceiling_is_never_above_the_score(score: float, margin: float) -> None:
    """Regression: with a negative score, the margin raised the ceiling (sentence-transformers issue 3821)."""
    assert score_ceiling(score, margin) <= score
    assert score_ceiling(score, margin) == pytest.approx(score - margin * abs(score))


def test_the_lowest_ranked_replace_missing_negatives() -> None:
    candidates = candidates_with([1, 1, 4, 1], [0.9, 0.8, 0.5, 0.3])
    examples, _ = mine_one(candidates, num_negatives=2, relative_margin=0.2, violating_grade=None)
    assert [n.passage_id for n in examples[0].negatives] == ["c3", "c1"]


def test_an_example_is_hard_if_a_negative_outranks_it() -> None:
    assert [e.kind for e in mine_one(candidates_with([4, 1]))[0]] == ["easy"]
    assert [e.kind for e in mine_one(candidates_with([1, 4]))[0]] == ["hard"]


@pytest.mark.parametrize(
    ("number", "negatives"),
    [
        (1, ["c0"]),
        (3, ["c0", "c4", "c7"]),  # of c0, c2, c4, c5, c7 and c8: c1 answers, c3 is graded 3, c6 is a near-duplicate
        (6, ["c0", "c2", "c4", "c5", "c7", "c8"]),
        (7, []),
    ],
)
def test_stratified_negatives_cover_all_ranks(number: int, negatives: list[str]) -> None:
    candidates = candidates_with([2, 4, 2, 3, 1, 2, 1, 1, 1])
    spec = MineSpec(num_negatives=number, relative_margin=None)

    def mined(stratified: bool) -> list[str]:
        examples, _ = mine_query(candidates, set(), spec, lambda a, _: a == "c6", stratified)
        return [n.passage_id for each in examples for n in each.negatives]

    assert mined(True) == negatives
    assert (mined(False) == negatives) == (number != 3)


def test_stratified_negatives_respect_the_margin() -> None:
    candidates = candidates_with([2, 4, 2, 1, 2, 1])
    spec = MineSpec(num_negatives=2)  # c0 outranks the positive and is not clearly irrelevant
    examples, _ = mine_query(candidates, set(), spec, no_duplicates, stratified=True)
    assert [n.passage_id for n in examples[0].negatives] == ["c2", "c4"]
