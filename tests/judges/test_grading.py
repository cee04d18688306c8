"""Grades from a model's replies. A reply that is none of the four labels is never a grade."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrite.judges.grading import read_grade
from pyrite.llm.capabilities import DECODING_MODES, DecodingMode
from pyrite.llm.pool import Completion


def reply(text: str, logprobs: dict[str, float] | None = None) -> Completion:
    return Completion(text, logprobs, 10, 0, 0.1, 1)


FOUR = {label: math.log(chance) for label, chance in {"3": 0.4, "1": 0.2, "4": 0.15, "2": 0.05, "The": 0.2}.items()}


@pytest.mark.parametrize("decoding_mode", DECODING_MODES)
def test_the_distribution_is_over_the_labels_only(decoding_mode: DecodingMode) -> None:
    graded = read_grade(reply("3", FOUR), decoding_mode)
    assert graded is not None
    assert graded.grade == 3
    assert graded.distribution == pytest.approx((0.25, 0.0625, 0.5, 0.1875))


def test_only_free_decoding_needs_a_label_in_the_reply() -> None:
    graded = read_grade(reply("The", FOUR), "label_ids")
    assert graded is not None
    assert graded.grade == 3
    assert read_grade(reply("The", FOUR), "logprobs") is None


def test_token_variants_add_up_and_absent_labels_are_zero() -> None:
    graded = read_grade(reply(" 2", {" 2": math.log(0.5), "2": math.log(0.25), "▁4": math.log(0.25)}), "logprobs")
    assert graded is not None
    assert (graded.grade, graded.distribution) == (2, pytest.approx((0, 0.75, 0, 0.25)))


def test_the_lowest_of_equally_likely_labels_wins() -> None:
    graded = read_grade(reply("4", dict.fromkeys("4321", math.log(0.25))), "choice")
    assert graded is not None
    assert graded.grade == 1


@pytest.mark.parametrize(
    ("text", "grade"),
    [("3", 3), (" 3\n", 3), ("Grade: 3", 3), ("grade 2.", 2), ("GRADE:4", 4), ("1.", 1)],
)
def test_a_valid_reply_is_read_as_its_grade(text: str, grade: int) -> None:
    assert read_grade(reply(text), "text") == (grade, None)


@pytest.mark.parametrize(
    "text",
    ["", "5", "0", "13", "3/4", "3 or 4", "-3", "3.5", "three", "The grade is", "Grade:", "4, since", "٣", "2\n3"],
)
def test_an_invalid_reply_has_no_grade(text: str) -> None:
    assert all(read_grade(reply(text), decoding_mode) is None for decoding_mode in DECODING_MODES)


@given(
    st.text(max_size=12), st.dictionaries(st.text(max_size=3), st.floats(), max_size=6), st.sampled_from(DECODING_MODES)
)
def test_any_grade_is_1_to_4_and_its_distribution_sums_to_1(
    text: str, logprobs: dict[str, float], decoding_mode: DecodingMode
) -> None:
    graded = read_grade(reply(text, logprobs), decoding_mode)
    if graded:
        assert graded.grade in (1, 2, 3, 4)
        if graded.distribution:
            assert sum(graded.distribution) == pytest.approx(1)
            assert min(graded.distribution) >= 0
