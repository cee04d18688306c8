"""From a model's reply to a grade: what is none of the four labels never becomes one."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrite.judges.grading import read_grade
from pyrite.llm.capabilities import DECODING_MODES, DecodingMode
from pyrite.llm.pool import Completion


def answer(text: str, logprobs: dict[str, float] | None = None) -> Completion:
    return Completion(text, logprobs, 10, 0, 0.1, 1)


FOUR = {label: math.log(chance) for label, chance in {"3": 0.4, "1": 0.2, "4": 0.15, "2": 0.05, "The": 0.2}.items()}


@pytest.mark.parametrize("decoding_mode", DECODING_MODES)
def test_the_distribution_is_over_the_labels_alone(decoding_mode: DecodingMode) -> None:
    graded = read_grade(answer("3", FOUR), decoding_mode)
    assert graded is not None
    assert graded.grade == 3
    assert graded.distribution == pytest.approx((0.25, 0.0625, 0.5, 0.1875))


def test_a_held_model_need_not_say_its_label_and_a_free_one_must() -> None:
    graded = read_grade(answer("The", FOUR), "label_ids")
    assert graded is not None
    assert graded.grade == 3
    assert read_grade(answer("The", FOUR), "logprobs") is None


def test_labels_that_are_not_among_the_top_tokens_count_as_nothing_and_variants_add_up() -> None:
    graded = read_grade(answer(" 2", {" 2": math.log(0.5), "2": math.log(0.25), "▁4": math.log(0.25)}), "logprobs")
    assert graded is not None
    assert (graded.grade, graded.distribution) == (2, pytest.approx((0, 0.75, 0, 0.25)))


def test_equally_likely_labels_count_as_the_lower_one() -> None:
    graded = read_grade(answer("4", dict.fromkeys("4321", math.log(0.25))), "choice")
    assert graded is not None
    assert graded.grade == 1


@pytest.mark.parametrize(
    ("text", "grade"),
    [("3", 3), (" 3\n", 3), ("Grade: 3", 3), ("grade 2.", 2), ("GRADE:4", 4), ("1.", 1)],
)
def test_words_that_are_a_grade(text: str, grade: int) -> None:
    assert read_grade(answer(text), "text") == (grade, None)


@pytest.mark.parametrize(
    "text",
    ["", "5", "0", "13", "3/4", "3 or 4", "-3", "3.5", "three", "The grade is", "Grade:", "4, since", "٣", "2\n3"],
)
def test_words_that_are_none(text: str) -> None:
    assert all(read_grade(answer(text), decoding_mode) is None for decoding_mode in DECODING_MODES)


@given(
    st.text(max_size=12), st.dictionaries(st.text(max_size=3), st.floats(), max_size=6), st.sampled_from(DECODING_MODES)
)
def test_whatever_is_replied_a_grade_is_one_to_four_and_its_distribution_adds_up(
    text: str, logprobs: dict[str, float], decoding_mode: DecodingMode
) -> None:
    graded = read_grade(answer(text, logprobs), decoding_mode)
    if graded:
        assert graded.grade in (1, 2, 3, 4)
        if graded.distribution:
            assert sum(graded.distribution) == pytest.approx(1)
            assert min(graded.distribution) >= 0
