"""The choice of the final model: rules that always hold, and examples."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrite.evaluation.selection import (
    Candidate,
    LossLimit,
    choose,
    current_iteration,
    largest_weight,
    model_name,
    parse_model_name,
)

WEIGHTS = (0.3, 0.6, 1.0)


def candidate(
    iteration: int, weight: float, val: list[float] | np.ndarray, retention: float | np.ndarray | None = None
) -> Candidate:
    """A candidate. A single number as ``retention`` is the value of each of two queries."""
    values = None if retention is None else np.broadcast_to(retention, (max(2, np.size(retention)),))
    return Candidate(model_name(iteration, weight), iteration, weight, np.asarray(val, dtype=float), values)


def limit(max_loss: float | None, confidence: float = 0.8) -> LossLimit | None:
    return None if max_loss is None else LossLimit(max_loss, confidence, 500, 0)


def constant(mean: float, noise: float = 0.0) -> np.ndarray:
    """100 values with the given mean, alternately ``noise`` above and below it."""
    return mean + noise * np.tile([1.0, -1.0], 50)


@st.composite
def candidate_lists(draw: st.DrawFn) -> list[Candidate]:
    queries = draw(st.integers(1, 12))
    values = st.lists(st.sampled_from([0.0, 0.2, 0.25, 1 / 3, 0.5, 1.0]), min_size=queries, max_size=queries)
    retention = st.floats(0.0, 0.6)
    base = candidate(0, 0.0, draw(values), draw(retention))
    tuned = [
        candidate(iteration, weight, draw(values), draw(st.none() | retention))
        for iteration in range(1, draw(st.integers(0, 3)) + 1)
        for weight in WEIGHTS
    ]
    return draw(st.permutations([base, *tuned]))


losses = st.none() | st.floats(0, 1)


@given(candidate_lists(), losses)
def test_choice_is_never_worse_than_the_base_on_validation(candidates: list[Candidate], max_loss: float | None) -> None:
    by_name = {c.name: c for c in candidates}
    chosen = by_name[choose(candidates, limit(max_loss)).name]
    assert chosen.name == "base" or chosen.mean > by_name["base"].mean


@given(candidate_lists(), st.floats(0, 1))
def test_choice_never_loses_more_than_allowed_on_retention(candidates: list[Candidate], max_loss: float) -> None:
    by_name = {c.name: c for c in candidates}
    chosen, base = by_name[choose(candidates, limit(max_loss)).name], by_name["base"]
    assert base.retention is not None
    if chosen is not base:
        assert chosen.retention is not None
        assert chosen.retention.mean() >= (1 - max_loss) * base.retention.mean() - 1e-12


@given(candidate_lists(), losses)
def test_order_of_candidates_does_not_matter(candidates: list[Candidate], max_loss: float | None) -> None:
    assert choose(candidates, limit(max_loss)).name == choose(candidates[::-1], limit(max_loss)).name


@given(candidate_lists(), losses)
def test_every_candidate_has_a_one_line_reason(candidates: list[Candidate], max_loss: float | None) -> None:
    choice = choose(candidates, limit(max_loss))
    assert list(choice.reasons) == [c.name for c in candidates]
    assert all(reason and "\n" not in reason for reason in choice.reasons.values())
    assert [name for name, reason in choice.reasons.items() if reason.startswith("chosen")] == [choice.name]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.none() | st.floats(0, 1))
def test_a_single_base_model_is_chosen(val: list[float], max_loss: float | None) -> None:
    assert choose([candidate(0, 0, val, 0.4)], limit(max_loss)).name == "base"


def test_the_clearly_best_candidate_is_chosen() -> None:
    choice = choose(
        [candidate(0, 0, constant(0.5)), candidate(1, 0.3, constant(0.6)), candidate(1, 1, constant(0.7))], None
    )
    assert choice.name == "iteration-1"
    assert "not above" not in choice.reasons["base"]
    assert "more than one standard error" in choice.reasons["iteration-1@0.3"]


def test_smallest_weight_within_one_standard_error_is_chosen() -> None:
    # Paired differences of +-0.2 around 0.01: a standard error of 0.02.
    candidates = [
        candidate(0, 0, constant(0.4)),
        candidate(2, 0.3, constant(0.69, 0.2)),
        candidate(1, 0.3, constant(0.69, 0.2)),
        candidate(1, 1, constant(0.69, 0.2)),
        candidate(2, 1, constant(0.70)),
    ]
    choice = choose(candidates, None)
    assert choice.name == "iteration-1@0.3"
    assert "within one standard error" in choice.reasons["iteration-2"]
    assert "is closer to the base model" in choice.reasons["iteration-1"]


def test_the_base_wins_if_the_gain_is_within_one_error() -> None:
    choice = choose([candidate(0, 0, constant(0.50)), candidate(1, 1, constant(0.51, 0.2))], None)
    assert choice.name == "base"


def test_a_noisy_candidate_below_the_base_is_rejected() -> None:
    candidates = [
        candidate(0, 0, constant(0.50)),
        candidate(1, 0.3, constant(0.49, 0.9)),
        candidate(1, 1, constant(0.53)),
    ]
    choice = choose(candidates, None)
    assert choice.name == "iteration-1"
    assert choice.reasons["iteration-1@0.3"].startswith("rejected: validation score 0.4900")


def test_loss_on_the_retention_set_rejects_the_best() -> None:
    candidates = [
        candidate(0, 0, constant(0.5), 0.400),
        candidate(1, 0.3, constant(0.6), 0.398),
        candidate(1, 1.0, constant(0.7), 0.380),
        candidate(1, 0.6, constant(0.65), None),
    ]
    choice = choose(candidates, limit(0.02))
    assert choice.name == "iteration-1@0.3"
    assert choice.reasons["iteration-1"] == (
        "rejected: nDCG@10 on the retention set changes by -5.0%, and by -5.0% at the one-sided 80% bound; a loss of "
        "at most 2.0% is allowed"
    )
    assert choice.reasons["iteration-1@0.6"] == "rejected: not scored on the retention set"
    assert choose(candidates, None).name == "iteration-1"


def test_an_uncertain_loss_is_rejected_by_its_bound() -> None:
    # The change is -1% with a standard error of 2%: the one-sided 80% bound is about -2.7%, the 60% bound -1.5%.
    candidates = [
        candidate(0, 0, constant(0.5), constant(0.5)),
        candidate(1, 1, constant(0.7), constant(0.495, 0.1)),
    ]
    choice = choose(candidates, limit(0.02))
    assert choice.name == "base"
    assert "changes by -1.0%, and by -2." in choice.reasons["iteration-1"]
    assert choose(candidates, limit(0.02, confidence=0.6)).name == "iteration-1"


def test_one_standard_error_counts_topics_not_queries() -> None:
    # 100 queries in 4 topics whose differences agree: as queries they have an error of 0.02, as topics of 0.115.
    topics = np.repeat(np.arange(4), 25)
    difference = np.array([0.2, -0.2, 0.2, -0.2])[topics]
    candidates = [candidate(0, 0, constant(0.4)), candidate(1, 0.3, 0.66 + difference), candidate(1, 1, constant(0.7))]
    assert choose(candidates, None).name == "iteration-1"
    assert choose(candidates, None, topics.tolist()).name == "iteration-1@0.3"


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ([], "base model once"),
        ([candidate(1, 1, [1.0])], "base model once"),
        ([candidate(0, 0, [1.0]), candidate(1, 1, [1.0, 0.0])], "same queries"),
        ([candidate(0, 0, [])], "at least one"),
        ([candidate(0, 0, [1.0]), candidate(1, 1, [1.0]), candidate(1, 1, [1.0])], "same name"),
        ([candidate(0, 0, [1.0])], "retention was not measured"),
    ],
)
def test_candidates_that_cannot_be_compared_are_rejected(candidates: list[Candidate], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose(candidates, limit(0.02))


@given(st.integers(1, 99), st.integers(1, 100))
def test_model_names_can_be_parsed(iteration: int, percent: int) -> None:
    assert parse_model_name(model_name(iteration, percent / 100)) == (iteration, percent / 100)
    assert parse_model_name(model_name(0, 0)) == (0, 0)


@pytest.mark.parametrize("name", ["", "iteration-", "iteration-0", "iteration-1@", "iteration-1@x", "Base"])
def test_invalid_model_names_are_rejected(name: str) -> None:
    with pytest.raises(ValueError, match="not a model name"):
        parse_model_name(name)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_the_current_model_never_falls(scores: list[float]) -> None:
    chosen = [current_iteration(scores[: count + 1]) for count in range(len(scores))]
    for iteration in range(1, len(scores)):
        start = chosen[iteration - 1]
        assert chosen[iteration] == (start if scores[iteration] < scores[start] else iteration)
    assert scores[chosen[-1]] == max(scores)


def test_a_fallen_iteration_is_skipped_and_equals_are_not() -> None:
    assert current_iteration([0.5]) == 0
    assert current_iteration([0.5, 0.4]) == 0
    assert current_iteration([0.5, 0.4, 0.6, 0.55]) == 2
    assert current_iteration([0.5, 0.5]) == 1
    assert current_iteration([0.5, float("nan"), 0.4]) == 0


@given(st.floats(0, 1))
def test_search_finds_the_largest_weight_within_the_limit(largest: float) -> None:
    tried: list[float] = []

    def is_within(weight: float) -> bool:
        tried.append(weight)
        return weight <= largest

    found = largest_weight(is_within)
    assert found <= largest
    assert found == 15 / 16 or found + 1 / 16 > largest
    assert len(tried) == 4
