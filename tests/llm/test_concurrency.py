"""The concurrency limiter and exponential backoff."""

from hypothesis import given
from hypothesis import strategies as st

from pyrite.llm.concurrency import ConcurrencyLimiter, backoff_delay


def simulate(limiter: ConcurrencyLimiter, capacity: int, replies: int, seconds: float = 0.1) -> None:
    """A server that processes ``capacity`` requests at once, ``seconds`` each, and queues the others."""
    for _ in range(replies):
        limiter.record_success(seconds * max(1.0, limiter.limit / capacity), saturated=True)


@given(st.lists(st.one_of(st.floats(0, 100), st.none()), max_size=500), st.integers(1, 100))
def test_limit_stays_between_one_and_its_maximum(events: list[float | None], max_limit: int) -> None:
    limiter = ConcurrencyLimiter(max_limit, max_latency=15)
    for latency in events:
        if latency is None:
            limiter.record_overload(limiter.epoch)
        else:
            limiter.record_success(latency, saturated=True)
        assert 1 <= limiter.limit <= max_limit


def test_limit_grows_from_low_to_server_capacity() -> None:
    large, small = ConcurrencyLimiter(64, max_latency=15), ConcurrencyLimiter(64, max_latency=15)
    assert large.limit == 4
    simulate(large, capacity=1000, replies=200)
    assert large.limit == 64
    simulate(small, capacity=6, replies=2000)
    assert 6 <= small.limit <= 24


def test_limit_does_not_grow_if_unsaturated_or_slow() -> None:
    idle, slow = ConcurrencyLimiter(64, max_latency=15), ConcurrencyLimiter(64, max_latency=15)
    for _ in range(100):
        idle.record_success(0.1, saturated=False)
        slow.record_success(16.0, saturated=True)
    assert idle.limit == slow.limit == 4


def test_requests_in_flight_together_halve_the_limit_once() -> None:
    limiter = ConcurrencyLimiter(64, max_latency=15)
    simulate(limiter, capacity=1000, replies=200)
    epoch = limiter.epoch
    for _ in range(64):
        limiter.record_overload(epoch)
    assert limiter.limit == 32
    limiter.record_overload(limiter.epoch)
    assert limiter.limit == 16
    simulate(limiter, capacity=1000, replies=16)
    assert limiter.limit == 17, "after the first overload it grows by one per round"


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True), st.one_of(st.none(), st.floats(0, 1e6)))
def test_backoff_is_bounded_and_honours_retry_after(failures: int, jitter: float, retry_after: float | None) -> None:
    delay = backoff_delay(failures, retry_after, jitter)
    assert min(retry_after or 0.0, 120.0) <= delay <= 150.0
    assert delay <= backoff_delay(failures + 1, retry_after, jitter)
