"""The pure rules of the client: concurrency, placement, health, backoff."""

from collections import Counter
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrite.llm.backoff import pause, retry_after
from pyrite.llm.circuit_breaker import CircuitBreaker
from pyrite.llm.concurrency import Limiter
from pyrite.llm.placement import first_usable, ranked

NAMES = [f"http://judge-{i}:8000" for i in range(4)]


def run(limiter: Limiter, capacity: int, answers: int, work: float = 0.1) -> None:
    """A server that works on ``capacity`` requests at once, ``work`` seconds each; more wait in its queue."""
    for _ in range(answers):
        limiter.answered(work * max(1.0, limiter.limit / capacity), full=True)


@given(st.lists(st.one_of(st.floats(0, 100), st.none()), max_size=500), st.integers(1, 100))
def test_the_limit_stays_between_one_and_its_cap(events: list[float | None], cap: int) -> None:
    limiter = Limiter(cap, slow=15)
    for latency in events:
        if latency is None:
            limiter.pushed_back(limiter.epoch)
        else:
            limiter.answered(latency, full=True)
        assert 1 <= limiter.limit <= cap


def test_the_limit_starts_low_and_grows_to_what_the_server_takes() -> None:
    roomy, tight = Limiter(64, slow=15), Limiter(64, slow=15)
    assert roomy.limit == 4
    run(roomy, capacity=1000, answers=200)
    assert roomy.limit == 64
    run(tight, capacity=6, answers=2000)
    assert 6 <= tight.limit <= 24


def test_the_limit_does_not_grow_while_nobody_waits_or_answers_are_slow() -> None:
    idle, slow = Limiter(64, slow=15), Limiter(64, slow=15)
    for _ in range(100):
        idle.answered(0.1, full=False)
        slow.answered(16.0, full=True)
    assert idle.limit == slow.limit == 4


def test_requests_that_were_in_flight_together_halve_the_limit_once() -> None:
    limiter = Limiter(64, slow=15)
    run(limiter, capacity=1000, answers=200)
    together = limiter.epoch
    for _ in range(64):
        limiter.pushed_back(together)
    assert limiter.limit == 32
    limiter.pushed_back(limiter.epoch)
    assert limiter.limit == 16
    run(limiter, capacity=1000, answers=16)
    assert limiter.limit == 17, "after the first push back it grows by one a round"


def test_queries_spread_evenly_and_only_those_of_a_lost_server_move() -> None:
    queries = [f"q{i}" for i in range(4000)]
    all_up, one_down = [True] * 4, [True, True, False, True]
    before = [first_usable(ranked(q, NAMES), all_up) for q in queries]
    after = [first_usable(ranked(q, NAMES), one_down) for q in queries]
    assert min(Counter(before).values()) > 900
    moved = [(b, a) for b, a in zip(before, after, strict=True) if b != a]
    assert {b for b, _ in moved} == {2}
    assert len(moved) == Counter(before)[2]
    assert min(Counter(a for _, a in moved).values()) > 250
    assert first_usable(ranked("q", NAMES), [False] * 4) is None


def test_a_server_that_cannot_be_reached_is_set_aside_tried_by_one_and_comes_back() -> None:
    health = CircuitBreaker()
    assert health.failed(now=100.0, gone=True) == 1.0
    assert not health.usable(100.9)
    assert health.usable(101.1)
    health.asked()
    assert not health.usable(101.1), "one trial at a time"
    assert health.failed(101.2, gone=True) == 2.0, "the pause grows"
    assert not health.usable(103.1)
    health.asked()
    health.abandoned()
    assert health.usable(103.3), "a trial that we gave up does not block the next"
    health.asked()
    assert health.answered()
    assert health.usable(103.3)
    assert not health.answered()


def test_failures_set_a_server_aside_only_when_nothing_is_answered_in_between() -> None:
    health = CircuitBreaker()
    for _ in range(10):
        assert health.failed(0.0, gone=False) is None
        assert health.failed(0.0, gone=False) is None
        health.answered()
    assert [health.failed(0.0, gone=False) for _ in range(3)] == [None, None, 1.0]
    assert health.failed(0.5, gone=False) is None, "it was under way already: the pause does not grow"


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True), st.one_of(st.none(), st.floats(0, 1e6)))
def test_a_pause_is_bounded_and_no_shorter_than_the_server_asks(
    failures: int, draw: float, asked: float | None
) -> None:
    waited = pause(failures, asked, draw)
    assert min(asked or 0.0, 120.0) <= waited <= 150.0
    assert waited <= pause(failures + 1, asked, draw)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("Wed, 21 Oct 2026 07:28:09 GMT", 9.0),
        ("Wed, 21 Oct 2020 07:28:09 GMT", 0.0),
        ("soon", None),
        ("", None),
    ],
)
def test_retry_after_is_read_as_seconds_or_a_date(text: str, seconds: float | None) -> None:
    now = datetime(2026, 10, 21, 7, 28, 0, tzinfo=UTC)
    assert retry_after({"Retry-After": text}, now) == seconds
