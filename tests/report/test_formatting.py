"""Numbers and sentences as the report prints them."""

import pytest

from pyrite.llm.capabilities import DECODING_MODES
from pyrite.report import formatting


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5652, ".565"), (1.0231, "1.023"), (-0.02, "-.020"), (0.0, ".000"), (1.0, "1.000"), (None, "-"),
     (float("nan"), "-")],
)  # fmt: skip
def test_numbers_have_three_decimals(value: float | None, text: str) -> None:
    assert formatting.number(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.3234, "+32%"), (0.0841, "+8.4%"), (-0.0049, "-0.5%"), (0.0994, "+9.9%"), (0.0996, "+10%"),
     (0.0, "0%"), (-0.00001, "0%"), (1.12, "+112%"), (None, "-")],
)  # fmt: skip
def test_percentages_below_ten_have_one_decimal(share: float | None, text: str) -> None:
    assert formatting.percent(share) == text


@pytest.mark.parametrize(("value", "text"), [(0.183, "+.183"), (-0.02, "-.020"), (0.0, ".000"), (-0.0001, ".000")])
def test_differences_have_a_sign(value: float, text: str) -> None:
    assert formatting.signed(value) == text


@pytest.mark.parametrize(("p", "text"), [(0.0002, "p < .001"), (0.034, "p = .034"), (1.0, "p = 1.000")])
def test_small_p_values_are_shown_as_a_limit(p: float, text: str) -> None:
    assert formatting.p_value(p) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "under 1 s"), (48.4, "48 s"), (59.6, "1 min 00 s"), (392, "6 min 32 s"), (3599.6, "1 h 00 min"),
     (None, "-")],
)  # fmt: skip
def test_durations_have_at_most_two_units(seconds: float | None, text: str) -> None:
    assert formatting.duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(12, "12 B"), (1500, "1.5 kB"), (90_900_000, "90.9 MB"), (5e12, "5.0 TB")])
def test_sizes_have_decimal_units(count: float, text: str) -> None:
    assert formatting.size(count) == text


def test_minus_signs_only_before_numbers() -> None:
    assert formatting.minus("-5.2% to -.1, well-known, c-1, iteration-2") == (
        "\N{MINUS SIGN}5.2% to \N{MINUS SIGN}.1, well-known, c-1, iteration-2"
    )
    assert formatting.minus("p = .034") == "p\xa0=\xa0.034"


@pytest.mark.parametrize(("value", "text"), [(3120.4, "3,120"), (85.2, "85"), (6.34, "6.3"), (None, "-")])
def test_rates_below_ten_have_one_decimal(value: float | None, text: str) -> None:
    assert formatting.rate(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.0, "0.00"), (0.004, "under 0.01"), (6.1, "6.10"), (1234.5, "1,234.50")])
def test_dollars_have_cents(value: float, text: str) -> None:
    assert formatting.dollars(value) == text


def test_decoding_modes_by_iteration_only_if_they_differ() -> None:
    one, two, none = (
        {"iteration": number, "decoding_modes": modes} for number, modes in enumerate((["choice"], ["text"], []), 1)
    )
    described = formatting.decoding_modes([one])
    assert described.startswith("one token")
    assert formatting.decoding_modes([one, none]) == described
    assert formatting.decoding_modes([one, {**one, "iteration": 2}]) == described
    assert formatting.decoding_modes([one, two]).startswith(f"iteration 1: {described}; iteration 2: a short reply")
    assert formatting.decoding_modes([none]) == "not used, because all judgments were cached"
    for mode in DECODING_MODES:
        text = formatting.decoding_modes([{"iteration": 1, "decoding_modes": [mode]}])
        assert text.startswith(("one ", "a ")), "every mode has a description"
