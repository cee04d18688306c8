"""Grades from a model's replies. A reply that is none of the four labels is never a grade."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrite.judges.grading import LABELS, LABELS_OF, ParsedGrade, parse_grade, yes_no_distribution
from pyrite.llm.capabilities import DECODING_MODES, DecodingMode
from pyrite.llm.completion import parse_completion
from pyrite.llm.labels import Reading, read_label
from pyrite.llm.pool import Completion


def reply(text: str, logprobs: dict[str, float] | None = None, token: str | None = None) -> Completion:
    """The reply of a server that returns ``logprobs`` for the token ``token``; None: the text."""
    choice: dict[str, object] = {"message": {"content": text}}
    if logprobs is not None:
        token = text if token is None else token
        top = [{"token": name, "logprob": value} for name, value in logprobs.items()]
        choice["logprobs"] = {"content": [{"token": token, "logprob": -0.1, "top_logprobs": top}]}
    return parse_completion({"choices": [choice]}, 0.0, 1)


def read_grade(reply: Completion, mode: DecodingMode) -> ParsedGrade | str:
    """The grade in one reply of the form grades, or why there is none."""
    reading = read_label(reply, LABELS, mode)
    return reading if isinstance(reading, str) else parse_grade("grades", [reading])


def read_yes(reply: Completion, mode: DecodingMode = "logprobs") -> Reading | str:
    return read_label(reply, LABELS_OF["yes_no"], mode)


def logs(**chances: float) -> dict[str, float]:
    return {name.lstrip("_"): math.log(chance) for name, chance in chances.items()}


FOUR = logs(_3=0.4, _1=0.2, _4=0.15, _2=0.05, The=0.2)


@pytest.mark.parametrize("decoding_mode", DECODING_MODES)
def test_the_distribution_is_over_the_labels_only(decoding_mode: DecodingMode) -> None:
    graded = read_grade(reply("3", FOUR), decoding_mode)
    assert isinstance(graded, ParsedGrade)
    assert graded.grade == 3
    assert graded.distribution == pytest.approx((0.25, 0.0625, 0.5, 0.1875))


def test_only_label_ids_grades_a_token_that_is_no_label() -> None:
    assert read_grade(reply("The", FOUR), "label_ids") == read_grade(reply("3", FOUR), "label_ids")
    for mode in ("choice", "logprobs", "text"):
        assert read_grade(reply("The", FOUR), mode) == "the model's reply is none of the grades 1 to 4: 'The'"
    assert isinstance(read_grade(reply("The grade is 3", FOUR, "The"), "label_ids"), str)
    unlikely = logs(_3=0.04, _1=0.02, _4=0.02, _2=0.01, The=0.9)
    assert isinstance(read_grade(reply("The", unlikely), "label_ids"), str)


def test_token_variants_add_up_and_unlikely_labels_are_zero() -> None:
    graded = read_grade(reply(" 2", {" 2": math.log(0.5), "2": math.log(0.2), "▁4": math.log(0.29)}), "logprobs")
    assert isinstance(graded, ParsedGrade)
    assert graded == (2, pytest.approx((0, 0.7 / 0.99, 0, 0.29 / 0.99)))


@pytest.mark.parametrize(
    ("logprobs", "token"),
    [
        (logs(_4=0.3, _3=0.01, _2=0.01, _1=0.01, The=0.3, A=0.3), "4"),  # the labels' share is too small
        (logs(_4=0.6, _3=0.2), "4"),  # 1 and 2 may have .2
        (logs(_3=0.5, _4=0.2, _2=0.2, _1=0.1), "I"),  # another token's
        (logs(_4=0.9, _3=0.9), "4"),  # adds up to more than 1
        ({"4": 0.93, "3": 0.07, "2": 0.0, "1": 0.0}, "4"),  # probabilities
    ],
)
def test_log_probabilities_that_are_no_distribution_are_not_used(logprobs: dict[str, float], token: str) -> None:
    assert read_grade(reply("4", logprobs, token), "logprobs") == (4, None)


def test_the_returned_label_wins_a_tie_then_the_lowest() -> None:
    equal = dict.fromkeys(("4", "3", "2", "1", "<think>"), math.log(0.2))
    assert read_grade(reply("4", equal), "choice") == (4, pytest.approx((0.25,) * 4))
    assert read_grade(reply("", equal, "<think>"), "label_ids") == (1, pytest.approx((0.25,) * 4))
    likelier = logs(_1=0.26, _2=0.25, _3=0.25, _4=0.24)
    assert (
        read_grade(reply("4", likelier), "choice") == "the reply is '4', but by its log probabilities '1' is likelier"
    )


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("3", 3),
        (" 3\n", 3),
        ("\n\n 3", 3),
        ("Grade: 3", 3),
        ("grade 2.", 2),
        ("GRADE:4", 4),
        ("1.", 1),
        ("4\n\nThe passage says so.", 4),
        ("<think>2 or 3?</think>\n3", 3),
        ("\ufeff▁4", 4),
    ],
)
def test_a_valid_reply_is_read_as_its_grade(text: str, grade: int) -> None:
    assert read_grade(reply(text), "text") == (grade, None)


@pytest.mark.parametrize(
    "text",
    ["", "5", "0", "13", "3/4", "3 or 4", "-3", "3.5", "three", "The grade is", "Grade:", "4, since", "٣", "2\n3"],
)
def test_an_invalid_reply_has_no_grade(text: str) -> None:
    assert all(isinstance(read_grade(reply(text), decoding_mode), str) for decoding_mode in DECODING_MODES)


@given(
    st.text(max_size=12) | st.sampled_from("1234"),
    st.dictionaries(st.sampled_from("1234") | st.text(max_size=3), st.floats() | st.floats(-9, 0), max_size=6),
    st.sampled_from(DECODING_MODES),
)
def test_a_grade_is_the_label_in_the_reply_or_the_likeliest(
    text: str, logprobs: dict[str, float], decoding_mode: DecodingMode
) -> None:
    graded = read_grade(reply(text, logprobs), decoding_mode)
    if isinstance(graded, str):
        return
    assert graded.grade in (1, 2, 3, 4)
    if text.strip() in ("1", "2", "3", "4"):
        assert graded.grade == int(text)
    if graded.distribution:
        assert sum(graded.distribution) == pytest.approx(1)
        assert min(graded.distribution) >= 0
        assert graded.distribution[graded.grade - 1] == pytest.approx(max(graded.distribution), rel=0.011)


@pytest.mark.parametrize("text", ["yes", "Yes", "YES", " Yes.", "Yes\n", "▁yes", "<think>No?</think>Yes"])
def test_yes_is_read_in_every_spelling(text: str) -> None:
    assert read_yes(reply(text), "text") == ("yes", None)


@pytest.mark.parametrize("text", ["", "yess", "y", "yes, no", "Yes\nNo", "not", "yes no", "4", "Yes, it does"])
def test_anything_but_yes_or_no_is_no_label(text: str) -> None:
    assert all(isinstance(read_yes(reply(text), mode), str) for mode in DECODING_MODES)


def test_all_spellings_of_a_label_add_up() -> None:
    found = read_yes(reply("Yes", {"Yes": math.log(0.5), " yes": math.log(0.1), "No": math.log(0.2)}))
    assert found == ("yes", pytest.approx((0.75, 0.25)))
    unseen = {"Yes": math.log(0.5), "I": math.log(0.3), "It": math.log(0.1)}  # no may have 0.1
    assert read_yes(reply("Yes", unseen)) == ("yes", None)


def test_the_likeliest_label_wins_over_the_likeliest_spelling() -> None:
    split = {"No": math.log(0.4), "Yes": math.log(0.35), "yes": math.log(0.2)}
    assert read_yes(reply("No", split)) == ("yes", pytest.approx((0.55 / 0.95, 0.4 / 0.95)))
    # A returned token that is not the likeliest one contradicts its log probabilities.
    assert read_yes(reply("yes", {"No": math.log(0.7), "yes": math.log(0.2)})) == (
        "the reply is 'yes', but by its log probabilities 'no' is likelier"
    )
    digits = {"3": math.log(0.4), "4": math.log(0.3), " 4": math.log(0.2), "1": -9.0, "2": -9.0}
    assert isinstance(read_grade(reply("3", digits), "logprobs"), str), "digits have one spelling"


SHARES = st.floats(0, 1)


@given(SHARES, SHARES, SHARES, SHARES)
def test_yes_no_gives_a_distribution_monotone_in_both(answers: float, topic: float, more: float, rest: float) -> None:
    def expected(distribution: tuple[float, ...]) -> float:
        return sum(grade * p for grade, p in enumerate(distribution, 1))

    found = yes_no_distribution(answers, topic)
    assert all(p >= 0 for p in found)
    assert sum(found) == pytest.approx(1)
    assert (found[2] + found[3], found[1] + found[3]) == (pytest.approx(answers), pytest.approx(topic))
    for higher in ((max(answers, more), topic), (answers, max(topic, rest))):
        above = yes_no_distribution(*higher)
        assert expected(above) >= expected(found) - 1e-9
        for grade in (2, 3, 4):  # stochastic dominance
            assert sum(above[grade - 1 :]) >= sum(found[grade - 1 :]) - 1e-9


@given(SHARES, SHARES)
def test_the_grade_of_yes_and_no_is_the_likeliest(answers: float, topic: float) -> None:
    readings = [Reading("yes" if p >= 0.5 else "no", (p, 1 - p)) for p in (answers, topic)]
    grade, distribution = parse_grade("yes_no", readings)
    assert distribution
    assert distribution[grade - 1] == max(distribution)
    assert parse_grade("yes_no", [Reading(each.label, None) for each in readings]) == (grade, None)
