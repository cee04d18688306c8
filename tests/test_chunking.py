"""Passages: nothing is lost, bounds hold, sentences stay whole where they can."""

import pytest
import sentencex
from hypothesis import example, given
from hypothesis import strategies as st

from pyrite.chunking import split_into_passages

ANY = st.text(alphabet=st.sampled_from(list("aB. \t\n\r?!\"'()“é日。1,-\u2028\x85\u3000\x1c\u200b😀")), max_size=400)
WORDS = st.lists(
    st.sampled_from(
        ["The", "Dr.", "e.g.", "mg.", "(see", "Fig. 1).", "A.", "no.", "dose", "is", "Yes!", "\n\n", "\n-"]
    ),
    max_size=300,
).map(" ".join)
BOUNDS = st.tuples(st.integers(1, 60), st.integers(0, 60)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(st.one_of(ANY, WORDS, st.text(max_size=200)), BOUNDS)
@example("。(”,*:\t).B\u2028.B…'\n”.-“", (1, 5))
@example("x" * 50, (3, 7))
def test_spans_are_in_order_bounded_and_lose_nothing_but_whitespace(text: str, bounds: tuple[int, int]) -> None:
    spans = split_into_passages(text, *bounds)
    at = 0
    for start, end in spans:
        assert start >= at
        assert 0 < end - start <= bounds[1]
        assert text[at:start].strip() == ""
        assert text[start:end] == text[start:end].strip()
        at = end
    assert text[at:].strip() == ""


@given(WORDS, st.integers(20, 60))
def test_no_chunk_is_short_where_cutting_between_words_allows_it(text: str, most: int) -> None:
    text = " ".join(text.split())
    longest_word = max(map(len, text.split()), default=0)
    least = most // 2
    spans = split_into_passages(text, least, most)
    if len(text) <= most:
        assert len(spans) == bool(text)
    else:
        # Half of what is one longer than two halves is off by the word in the middle, and no more.
        assert min(end - start for start, end in spans) >= least - longest_word


def _cut(text: str, least: int, most: int) -> list[str]:
    return [text[start:end] for start, end in split_into_passages(text, least, most)]


def test_chunks_end_with_sentences() -> None:
    text = "Dr. Smith gave 3.5 mg. It helped a little. Then he slept well. He woke up. All was good again."
    assert _cut(text, 15, 50) == [
        "Dr. Smith gave 3.5 mg. It helped a little.",
        "Then he slept well. He woke up.",
        "All was good again.",
    ]


def test_a_short_end_is_joined_or_takes_a_sentence_from_the_chunk_before() -> None:
    text = "It helped them a bit. They all slept well. Then they left. So did we."
    assert _cut(text, 12, 42) == ["It helped them a bit. They all slept well.", "Then they left. So did we."]
    text = "It helped them a bit. They all slept well. Fine."
    assert _cut(text, 12, 42) == ["It helped them a bit.", "They all slept well. Fine."]


def test_a_long_sentence_is_cut_between_words_and_a_long_word_anywhere() -> None:
    text = "one two three four five six seven"
    assert _cut(text, 1, 14) == ["one two three", "four five six", "seven"]
    assert split_into_passages("x" * 25, 1, 10) == [(0, 10), (10, 20), (20, 25)]


def test_a_short_end_is_shared_out_between_words_if_there_is_no_other_way() -> None:
    text = "a" * 9 + " " + "b" * 9 + " " + "c" * 9 + ". Da."
    assert _cut(text, 10, 30) == ["aaaaaaaaa bbbbbbbbb", "ccccccccc. Da."]


def test_a_sentence_library_that_loses_text_costs_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentencex, "segment", lambda _language, _text: ["Lost. "])
    assert _cut("One here. Two here. Three here.", 5, 20) == ["One here. Two here.", "Three here."]


def test_blank_text_has_no_passage() -> None:
    assert split_into_passages(" \n\t ", 5, 10) == []
