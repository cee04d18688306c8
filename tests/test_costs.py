"""The cost of judging, against values computed by hand."""

from typing import Any

import pytest

from pyrite.costs import judge_cost, machine, pairs_per_query
from pyrite.errors import UserError
from pyrite.spec import LabelsJudgeSpec


def test_cost_has_pairs_tokens_hours_and_dollars() -> None:
    on = machine("g5.12xlarge")
    cost = judge_cost(1000, 50, 2, passage_characters=840, on=on, machines=1, probe=None)
    assert cost.pairs == 100_000
    assert cost.computed_tokens == 100_000 * (200 + 24) + 2000 * 350
    assert cost.prompt_tokens == 100_000 * (200 + 24 + 350)
    assert cost.hours == pytest.approx(cost.computed_tokens / 9600 / 3600)
    assert cost.dollars == pytest.approx(cost.hours * 5.672)
    two = judge_cost(1000, 50, 2, passage_characters=840, on=on, machines=2, probe=None)
    assert (two.hours, two.dollars) == (pytest.approx(cost.hours / 2), pytest.approx(cost.dollars))


def test_a_second_request_computes_only_its_end() -> None:
    one, two = (judge_cost(1000, 50, 1, 840, machine("g5.12xlarge"), 1, None, requests) for requests in (1, 2))
    assert (two.pairs, two.prompt_tokens) == (one.pairs, 2 * one.prompt_tokens)
    assert two.computed_tokens == one.computed_tokens + 50_000 * 24
    probe = {"pairs_per_second": 10.0, "prompt_tokens_per_pair": 300.0, "cached_tokens_per_pair": 100.0}
    measured = judge_cost(100, 36, 1, 840, machine("g5.12xlarge"), 1, probe, requests=2)
    assert measured.prompt_tokens == 3600 * 300, "the probe measured both requests"


def test_a_probe_replaces_the_default_speed() -> None:
    probe = {"pairs_per_second": 10.0, "prompt_tokens_per_pair": 300.0, "cached_tokens_per_pair": 100.0, "servers": 4}
    cost = judge_cost(100, 36, 1, 840, machine("g5.12xlarge"), 1, probe)
    assert cost.measured
    assert (cost.hours, cost.prompt_tokens, cost.computed_tokens) == (0.1, 1_080_000, 720_000)
    two = judge_cost(100, 36, 1, 840, machine("g5.12xlarge"), 2, probe)
    assert (two.hours, two.dollars) == (pytest.approx(0.05), pytest.approx(cost.dollars)), (
        "two machines take half the time for the same cost"
    )
    # Regression: each server counted as a machine, so a machine's four servers made a run four times as expensive.
    one_server = judge_cost(100, 36, 1, 840, machine("g5.12xlarge"), 1, probe | {"servers": 1})
    assert one_server.hours == pytest.approx(0.025), "the machine runs three more servers"
    eight_servers = judge_cost(100, 36, 1, 840, machine("g5.12xlarge"), 2, probe | {"servers": 8})
    assert eight_servers.hours == pytest.approx(0.1), "the probe measured both machines"


@pytest.mark.parametrize(
    ("settings", "pairs"),
    [
        ({}, 50),
        ({"rank_window": 20}, 22),
        ({"rank_window": 49}, 50),
    ],
)
def test_known_passages_outside_the_window_are_judged_too(settings: dict[str, Any], pairs: int) -> None:
    assert pairs_per_query(LabelsJudgeSpec(**settings), 50, known=2) == pairs


def test_an_unknown_machine_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"g5\.12xlarge"):
        machine("toaster")
