"""Cleaning and rejecting replies, and removing duplicate questions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrite.generation import filters
from pyrite.generation.filters import (
    DUPLICATE,
    NEAR_DUPLICATE,
    TOO_LONG,
    TOO_SHORT,
    clean,
    content_words,
    deduplicate,
    rejection_reason,
)
from pyrite.generation.questions import GeneratedQuestion, from_tables, to_tables
from pyrite.sources.base import Split
from pyrite.spec import GenerateSpec

SPEC = GenerateSpec(min_words=3, max_words=12)

REPLIES = {
    "What helps against gout?": "What helps against gout?",
    '\n\n1. "What helps against gout?"\nBecause the passage says so.': "What helps against gout?",
    "**Question 3:** What helps against gout?": "What helps against gout?",
    "- Q: “What helps against gout?”": "What helps against gout?",
    "1.5 mg of what helps   against gout?": "1.5 mg of what helps against gout?",
    "What did the 'Times' write?": "What did the 'Times' write?",
}


@pytest.mark.parametrize(("reply", "question"), REPLIES.items())
def test_question_is_extracted_from_the_reply(reply: str, question: str) -> None:
    assert clean(reply) == question
    assert rejection_reason(question, SPEC) is None


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (" \n ", filters.EMPTY),
        ("Sure! Here is a question:\nWhat helps against gout?", filters.NOT_A_QUESTION),
        ("Gout is a disease of the joints.", filters.NOT_A_QUESTION),
        ("???", filters.NOT_A_QUESTION),
        ("Why gout?", filters.TOO_SHORT),
        ("What " + "very " * 20 + "long?", filters.TOO_LONG),
        ("What does the passage say on gout?", filters.MENTIONS_PASSAGE),
        ("According to this article, what helps against gout?", filters.MENTIONS_PASSAGE),
    ],
)
def test_unusable_replies_are_rejected_with_a_reason(reply: str, reason: str) -> None:
    assert rejection_reason(clean(reply), SPEC) == reason


def test_words_are_counted_in_text_without_spaces() -> None:
    assert rejection_reason("痛风的早期症状是什么？", SPEC) is None
    assert rejection_reason("痛吗？", SPEC) == TOO_SHORT
    assert rejection_reason(f"{'痛风的早期症状' * 4}是什么？", SPEC) == TOO_LONG
    assert content_words("痛风的症状是什么？") == content_words("什么是痛风的症状？")
    assert content_words("痛风的症状是什么？") != content_words("麻疹的症状是什么？")


def test_anatomical_passages_are_not_rejected() -> None:
    for question in ("What narrows the nasal passage?", "What slows the passage of food?"):
        assert rejection_reason(question, SPEC) is None


@given(st.text(alphabet=st.sampled_from("ab1 .?\"'“”*_-:Qq\n("), max_size=40))
def test_clean_is_idempotent(reply: str) -> None:
    assert clean(clean(reply)) == clean(reply)


def test_near_duplicates_share_content_words_but_not_topics() -> None:
    question = "What are the early symptoms of gout in men?"
    for other in ("what are early symptoms of gout in a man or men", "In men, which are gout's early symptoms?"):
        assert (content_words(other) == content_words(question)) == ("man" not in other)
    for other in ("acne", "gouty arthritis"):
        assert content_words(question.replace("gout", other)) != content_words(question)
    assert content_words("How does gout hurt?") != content_words("When does gout hurt?")
    assert content_words("What is it?") == content_words("what is it") != content_words("Who are they?")


def question_from(text: str, split: Split = "train", passage: str = "") -> GeneratedQuestion:
    return GeneratedQuestion(text, split, "", "", (passage,) if passage else (), (passage or "few-shot-0",))


def test_duplicates_merge_within_a_split_and_drop_across_splits() -> None:
    unique, dropped = deduplicate(
        ["Is this known already?"],
        [
            question_from("What is gout?", "test", "t1"),
            question_from("what is  gout?", "train", "c1"),
            question_from("What is gout?", "train", "c2"),
            question_from("Is this known already?", "train", "c3"),
            question_from("Who has the gout?", passage=""),
            question_from("Who has gout?", "val", "v1"),
        ],
    )
    assert [(q.text, q.split, q.passage_ids) for q in unique] == [
        ("what is  gout?", "train", ("c1", "c2")),
        ("Who has gout?", "val", ("v1",)),
    ]
    assert dropped == {DUPLICATE: 3, NEAR_DUPLICATE: 1}


WORDS = st.lists(st.sampled_from(["What", "is", "the", "gout", "gouts", "acne", "why", "hurt"]), min_size=1, max_size=4)
QUESTIONS = st.builds(
    lambda words, split, passage: question_from(" ".join(words) + "?", split if passage else "train", passage),
    WORDS,
    st.sampled_from(["train", "val", "test"]),
    st.sampled_from(["", "c1", "c2"]),
)


@given(st.lists(WORDS.map(" ".join), max_size=3), st.lists(QUESTIONS, max_size=12))
def test_each_question_is_unique_or_counted_as_dropped(existing: list[str], questions: list[GeneratedQuestion]) -> None:
    unique, dropped = deduplicate(existing, questions)
    assert len(unique) + dropped.total() == len(questions)
    words = [content_words(question.text) for question in unique]
    assert len(set(words)) == len(unique)
    assert set(words).isdisjoint(map(content_words, existing))
    # Readers deduplicate all shards again, which must not change the questions of one.
    assert deduplicate(existing, unique)[0] == unique
    assert from_tables(*to_tables(unique)) == unique
