"""Which passages and which examples are drawn."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from pyrite.generation.sampling import Place, draw_passages, request_seed, shares, shots
from pyrite.spec import SplitSpec

SHARES = SplitSpec()


@given(st.integers(0, 5000), st.floats(0.02, 0.9), st.floats(0.02, 0.9))
def test_shares_add_up_and_leave_no_split_empty(count: int, train: float, val: float) -> None:
    rest = 1 - train
    split = SplitSpec(train=train, val=rest * val, test=rest * (1 - val))
    given = shares(count, split)
    assert sum(given.values()) == count
    assert count < 3 or min(given.values()) >= 1
    for name, share in (("train", split.train), ("val", split.val), ("test", split.test)):
        assert abs(given[name] - share * count) < 3  # type: ignore[index]


PLACES = st.lists(
    st.tuples(st.sampled_from(["train", "val", "test"]), st.sampled_from(["", "gout", "acne"]), st.integers(0, 4)),
    max_size=40,
).map(lambda rows: [Place(f"c{i}", split, topic, f"{topic}{doc}") for i, (split, topic, doc) in enumerate(rows)])


@given(PLACES, st.integers(0, 20), st.integers(0, 3), st.randoms(use_true_random=False))
def test_passages_are_drawn_once_spread_over_topics_and_in_no_order_of_the_source(
    places: list[Place], count: int, seed: int, order: object
) -> None:
    wanted = shares(count, SHARES)
    drawn = draw_passages(places, wanted, seed)
    assert len(set(drawn)) == len(drawn)
    for split, number in wanted.items():
        there = [place for place in places if place.split == split]
        ours = [place for place in drawn if place.split == split]
        assert len(ours) == min(number, len(there))
        topics = Counter(place.topic or place.document for place in there)
        taken = Counter(place.topic or place.document for place in ours)
        # Nobody has two more than another that could have given one.
        assert all(taken[a] <= taken[b] + 1 for a in topics for b in topics if taken[b] < topics[b])
    shuffled = list(places)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    assert draw_passages(shuffled, wanted, seed) == drawn


def test_within_a_topic_every_document_comes_before_one_comes_twice() -> None:
    places = [Place(f"{doc}{i}", "train", "gout", doc) for doc in "abcd" for i in range(10)]
    drawn = draw_passages(places, {"train": 8}, 0)
    assert Counter(place.document for place in drawn[:4]) == Counter("abcd")
    assert Counter(place.document for place in drawn) == Counter("aabbccdd")


def test_shots_are_different_questions_and_differ_from_prompt_to_prompt() -> None:
    pool = [f"question {i}?" for i in range(50)]
    drawn = [shots(pool, 5, 0, f"few-shot-{number}") for number in range(40)]
    assert all(len(set(each)) == 5 for each in drawn)
    assert len({tuple(each) for each in drawn}) == 40
    assert sorted(shots(pool[:3], 5, 0, "x")) == pool[:3]
    assert len({request_seed(0, f"few-shot-{number}") for number in range(40)}) == 40
    assert all(0 <= request_seed(seed, "x") < 2**31 for seed in range(100))
