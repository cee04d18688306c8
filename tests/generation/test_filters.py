"""Replies to questions, and questions that are the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrite.generation import filters
from pyrite.generation.dedup import NEARLY_SAME, SAME, deduplicate, gist
from pyrite.generation.filters import clean, refusal
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
def test_a_question_is_taken_out_of_what_stands_around_it(reply: str, question: str) -> None:
    assert clean(reply) == question
    assert refusal(question, SPEC) is None


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (" \n ", filters.EMPTY),
        ("Sure! Here is a question:\nWhat helps against gout?", filters.NOT_A_QUESTION),
        ("Gout is a disease of the joints.", filters.NOT_A_QUESTION),
        ("???", filters.NOT_A_QUESTION),
        ("Why gout?", filters.TOO_SHORT),
        ("What " + "very " * 20 + "long?", filters.TOO_LONG),
        ("What does the passage say on gout?", filters.POINTS_AT_PASSAGE),
        ("According to this article, what helps against gout?", filters.POINTS_AT_PASSAGE),
    ],
)
def test_what_is_no_question_is_refused_with_its_reason(reply: str, reason: str) -> None:
    assert refusal(clean(reply), SPEC) == reason


def test_anatomy_is_not_taken_for_talk_about_the_passage() -> None:
    for question in ("What narrows the nasal passage?", "What slows the passage of food?"):
        assert refusal(question, SPEC) is None


@given(st.text(alphabet=st.sampled_from("ab1 .?\"'“”*_-:Qq\n("), max_size=40))
def test_cleaning_what_is_clean_changes_nothing(reply: str) -> None:
    assert clean(clean(reply)) == clean(reply)


def test_nearly_the_same_is_the_same_words_but_for_fillers_and_never_another_disease() -> None:
    same = "What are the early symptoms of gout in men?"
    for other in ("what are early symptoms of gout in a man or men", "In men, which are gout's early symptoms?"):
        assert (gist(other) == gist(same)) == ("man" not in other)
    for other in ("acne", "gouty arthritis"):
        assert gist(same.replace("gout", other)) != gist(same)
    assert gist("How does gout hurt?") != gist("When does gout hurt?")
    assert gist("What is it?") == gist("what is it") != gist("Who are they?")


def made(text: str, split: Split = "train", passage: str = "") -> GeneratedQuestion:
    return GeneratedQuestion(text, split, "", "", (passage,) if passage else (), (passage or "few-shot-0",))


def test_the_same_question_on_two_passages_of_a_split_knows_both_and_is_on_one_side_only() -> None:
    kept, dropped = deduplicate(
        ["Is this known already?"],
        [
            made("What is gout?", "test", "t1"),
            made("what is  gout?", "train", "c1"),
            made("What is gout?", "train", "c2"),
            made("Is this known already?", "train", "c3"),
            made("Who has the gout?", passage=""),
            made("Who has gout?", "val", "v1"),
        ],
    )
    assert [(q.text, q.split, q.passage_ids) for q in kept] == [
        ("what is  gout?", "train", ("c1", "c2")),
        ("Who has gout?", "val", ("v1",)),
    ]
    assert dropped == {SAME: 3, NEARLY_SAME: 1}


WORDS = st.lists(st.sampled_from(["What", "is", "the", "gout", "gouts", "acne", "why", "hurt"]), min_size=1, max_size=4)
MADE = st.builds(
    lambda words, split, passage: made(" ".join(words) + "?", split if passage else "train", passage),
    WORDS,
    st.sampled_from(["train", "val", "test"]),
    st.sampled_from(["", "c1", "c2"]),
)


@given(st.lists(WORDS.map(" ".join), max_size=3), st.lists(MADE, max_size=12))
def test_every_question_is_kept_once_or_counted(existing: list[str], questions: list[GeneratedQuestion]) -> None:
    kept, dropped = deduplicate(existing, questions)
    assert len(kept) + dropped.total() == len(questions)
    gists = [gist(question.text) for question in kept]
    assert len(set(gists)) == len(kept)
    assert set(gists).isdisjoint(map(gist, existing))
    # Reading shards and dropping their common questions again changes nothing more.
    assert deduplicate(existing, kept)[0] == kept
    assert from_tables(*to_tables(kept)) == kept
