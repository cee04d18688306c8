"""Cutting texts: no text is lost, lengths are within bounds, and sentences stay intact if possible."""

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
def test_spans_are_ordered_bounded_and_lose_only_whitespace(text: str, bounds: tuple[int, int]) -> None:
    spans = split_into_passages(text, *bounds)
    position = 0
    for start, end in spans:
        assert start >= position
        assert 0 < end - start <= bounds[1]
        assert text[position:start].strip() == ""
        assert text[start:end] == text[start:end].strip()
        position = end
    assert text[position:].strip() == ""


@given(WORDS, st.integers(20, 60))
def test_no_passage_is_short_if_it_can_be_avoided(text: str, max_chars: int) -> None:
    text = " ".join(text.split())
    longest_word = max(map(len, text.split()), default=0)
    min_chars = max_chars // 2
    spans = split_into_passages(text, min_chars, max_chars)
    if len(text) <= max_chars:
        assert len(spans) == bool(text)
    else:
        # Dividing a text in two between words misses the middle by at most one word.
        assert min(end - start for start, end in spans) >= min_chars - longest_word


def _cut(text: str, min_chars: int, max_chars: int) -> list[str]:
    return [text[start:end] for start, end in split_into_passages(text, min_chars, max_chars)]


def test_passages_end_with_sentences() -> None:
    text = "Dr. Smith gave 3.5 mg. It helped a little. Then he slept well. He woke up. All was good again."
    assert _cut(text, 15, 50) == [
        "Dr. Smith gave 3.5 mg. It helped a little.",
        "Then he slept well. He woke up.",
        "All was good again.",
    ]


def test_a_short_end_is_joined_or_gets_a_sentence() -> None:
    text = "It helped them a bit. They all slept well. Then they left. So did we."
    assert _cut(text, 12, 42) == ["It helped them a bit. They all slept well.", "Then they left. So did we."]
    text = "It helped them a bit. They all slept well. Fine."
    assert _cut(text, 12, 42) == ["It helped them a bit.", "They all slept well. Fine."]


def test_a_long_sentence_is_cut_between_words_if_possible() -> None:
    text = "one two three four five six seven"
    assert _cut(text, 1, 14) == ["one two three", "four five six", "seven"]
    assert split_into_passages("x" * 25, 1, 10) == [(0, 10), (10, 20), (20, 25)]


def test_a_short_end_may_be_divided_between_words() -> None:
    text = "a" * 9 + " " + "b" * 9 + " " + "c" * 9 + ". Da."
    assert _cut(text, 10, 30) == ["aaaaaaaaa bbbbbbbbb", "ccccccccc. Da."]


def test_text_that_sentencex_drops_is_preserved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentencex, "segment", lambda _language, _text: ["Lost. "])
    assert _cut("One here. Two here. Three here.", 5, 20) == ["One here. Two here.", "Three here."]


def test_blank_text_has_no_passage() -> None:
    assert split_into_passages(" \n\t ", 5, 10) == []


def test_text_without_spaces_is_cut_after_sentences() -> None:
    assert _cut("痛风是一种关节炎。它会引起剧烈疼痛！需要治疗吗？是的。", 5, 12) == [
        "痛风是一种关节炎。",
        "它会引起剧烈疼痛！",
        "需要治疗吗？是的。",
    ]


def test_a_long_sentence_without_spaces_is_cut_evenly() -> None:
    # The only blank is not where a cut is needed.
    assert list(map(len, _cut("痛风 " + "很长的句子没有标点符号" * 3, 8, 12))) == [12, 12, 12]
    # A blank that is near is preferred, and no cut separates a mark from its letter.
    assert _cut("โรคเกาต์เป็นโรค ทำให้เจ็บปวดมาก", 5, 18) == ["โรคเกาต์เป็นโรค", "ทำให้เจ็บปวดมาก"]
    assert all(part[0] not in "\u0e31\u0e34\u0e35\u0e48\u0e49\u0e4c" for part in _cut("ที่นี่" * 20, 3, 10))
