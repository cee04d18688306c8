"""The circuit breaker of one server. The admission queue is tested through the pool."""

from pyrite.llm.server import CircuitBreaker


def test_unreachable_server_opens_circuit_until_a_probe_succeeds() -> None:
    breaker = CircuitBreaker()
    assert breaker.record_failure(now=100.0, unreachable=True) == 1.0
    assert breaker.state == "open"
    assert not breaker.allows(100.9)
    assert breaker.allows(101.1)
    breaker.acquire()
    assert breaker.state == "half-open"
    assert not breaker.allows(101.1), "one probe at a time"
    assert breaker.record_failure(101.2, unreachable=True) == 2.0, "the delay doubles"
    assert not breaker.allows(103.1)
    breaker.acquire()
    breaker.release()
    assert breaker.allows(103.3), "a cancelled probe does not block the next one"
    breaker.acquire()
    assert breaker.record_success()
    assert breaker.state == "closed"
    assert breaker.allows(103.3)
    assert not breaker.record_success()


def test_only_consecutive_failures_open_the_circuit() -> None:
    breaker = CircuitBreaker()
    for _ in range(10):
        assert breaker.record_failure(0.0, unreachable=False) is None
        assert breaker.record_failure(0.0, unreachable=False) is None
        breaker.record_success()
    assert [breaker.record_failure(0.0, unreachable=False) for _ in range(3)] == [None, None, 1.0]
    assert breaker.record_failure(0.5, unreachable=False) is None, (
        "a request that was in flight when the circuit opened does not raise the delay"
    )
