"""Words of texts with and without spaces between words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrite.words import can_divide, count_words, words

ENGLISH = "What helps (really) against gout - and why?"


def test_english_words_are_divided_at_whitespace() -> None:
    assert words(ENGLISH) == ENGLISH.split()
    assert count_words(ENGLISH) == len(ENGLISH.split())
    assert words(ENGLISH, punctuation=False) == ["What", "helps", "really", "against", "gout", "and", "why"]


@pytest.mark.parametrize(
    ("text", "tokens", "number"),
    [
        ("痛风怎么治？", ["痛", "风", "怎", "么", "治", "？"], 3),
        ("ガンの治療", ["ガ", "ン", "の", "治", "療"], 3),
        ("รักษาที่ไหน", ["รั", "ก", "ษ", "า", "ที่", "ไ", "ห", "น"], 3),
        ("COVID-19的症状 now", ["COVID-19", "的", "症", "状", "now"], 4),
        ("통풍은 어떻게 치료하나요?", ["통풍은", "어떻게", "치료하나요?"], 3),
    ],
)
def test_scripts_without_spaces_are_divided_into_characters(text: str, tokens: list[str], number: int) -> None:
    assert words(text) == tokens
    assert count_words(text) == number


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("रक्तचाप (कैसे) कम करें?", ["रक्तचाप", "कैसे", "कम", "करें"]),
        ("இரத்த அழுத்தம், சிகிச்சை", ["இரத்த", "அழுத்தம்", "சிகிச்சை"]),
        ("क्\u200dष, cafe\u0301", ["क्\u200dष", "cafe\u0301"]),
        ("รักษาที่ไหน? A\u0e48", ["รั", "ก", "ษ", "า", "ที่", "ไ", "ห", "น", "A", "\u0e48"]),
        ("heart \u2764\ufe0f 1\ufe0f\u20e3", ["heart", "1"]),
    ],
    ids=["Hindi", "Tamil", "joiner and accent", "Thai", "emoji"],
)
def test_combining_marks_are_part_of_a_word(text: str, expected: list[str]) -> None:
    assert words(text, punctuation=False) == expected


@given(st.text(st.sampled_from("a1 .\n痛風のรที่่ဂါ៉ក。ー"), max_size=40))
def test_words_lose_only_whitespace(text: str) -> None:
    assert "".join(words(text)) == "".join(text.split())


def test_a_text_is_not_divided_before_a_mark_or_within_a_word() -> None:
    assert [offset for offset in range(1, 7) if can_divide("痛風です。 a", offset)] == [1, 2, 3]
    assert [offset for offset in range(1, 6) if can_divide("ที่นี่", offset)] == [3]
    assert not any(can_divide(ENGLISH, offset) for offset in range(1, len(ENGLISH)))
