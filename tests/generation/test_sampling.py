"""Sampling of source passages and of examples."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from pyrite.generation.sampling import SourcePassage, request_seed, sample_examples, sample_passages, split_counts
from pyrite.spec import SplitSpec


@given(st.integers(0, 5000), st.floats(0.02, 0.9), st.floats(0.02, 0.9))
def test_split_counts_add_up_and_leave_no_split_empty(count: int, train: float, val: float) -> None:
    rest = 1 - train
    split = SplitSpec(train=train, val=rest * val, test=rest * (1 - val))
    counts = split_counts(count, split)
    assert sum(counts.values()) == count
    assert count < 3 or min(counts.values()) >= 1
    for name, share in (("train", split.train), ("val", split.val), ("test", split.test)):
        assert abs(counts[name] - share * count) < 3  # type: ignore[index]


PASSAGES = st.lists(
    st.tuples(st.sampled_from(["train", "val", "test"]), st.sampled_from(["", "gout", "acne"]), st.integers(0, 4)),
    max_size=40,
).map(
    lambda rows: [SourcePassage(f"c{i}", split, topic, f"{topic}{doc}") for i, (split, topic, doc) in enumerate(rows)]
)


@given(PASSAGES, st.integers(0, 20), st.integers(0, 3), st.randoms(use_true_random=False))
def test_sample_has_no_repeats_and_covers_topics_in_any_order(
    passages: list[SourcePassage], count: int, seed: int, random: object
) -> None:
    counts = split_counts(count, SplitSpec())
    sample = sample_passages(passages, counts, seed)
    assert len(set(sample)) == len(sample)
    for split, number in counts.items():
        available = [passage for passage in passages if passage.split == split]
        sampled = [passage for passage in sample if passage.split == split]
        assert len(sampled) == min(number, len(available))
        supply = Counter(passage.topic or passage.document for passage in available)
        taken = Counter(passage.topic or passage.document for passage in sampled)
        # No topic is two passages ahead of a topic that still has some.
        assert all(taken[a] <= taken[b] + 1 for a in supply for b in supply if taken[b] < supply[b])
    shuffled = list(passages)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert sample_passages(shuffled, counts, seed) == sample


def test_documents_of_a_topic_take_turns() -> None:
    passages = [SourcePassage(f"{doc}{i}", "train", "gout", doc) for doc in "abcd" for i in range(10)]
    sample = sample_passages(passages, {"train": 8}, 0)
    assert Counter(passage.document for passage in sample[:4]) == Counter("abcd")
    assert Counter(passage.document for passage in sample) == Counter("aabbccdd")


def test_examples_are_distinct_and_differ_between_requests() -> None:
    questions = [f"question {i}?" for i in range(50)]
    samples = [sample_examples(questions, 5, 0, f"few-shot-{number}") for number in range(40)]
    assert all(len(set(sample)) == 5 for sample in samples)
    assert len({tuple(sample) for sample in samples}) == 40
    assert sorted(sample_examples(questions[:3], 5, 0, "x")) == questions[:3]
    assert len({request_seed(0, f"few-shot-{number}") for number in range(40)}) == 40
    assert all(0 <= request_seed(seed, "x") < 2**31 for seed in range(100))
