"""The pool against stub servers that fail on demand. The stubs count the faults that they cause."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import pytest

from pyrite.errors import UserError
from pyrite.llm.pool import Completion, NoServerAvailable, Pool, RetriesExhausted, rank_servers
from pyrite.spec import JudgeServers
from stub_judge import MODEL, Fault, Pair, Raw, Stub

KEY = "sk-very-secret-0123456789"
T = TypeVar("T")


@pytest.fixture
def stub() -> Iterator[Stub]:
    with Stub() as server:
        yield server


def body(query: str, passage: str = "p") -> dict[str, Any]:
    message = f"<query>\n{query}\n</query>\n<passage>\n{passage}\n</passage>"
    return {"messages": [{"role": "user", "content": message}], "temperature": 0, "max_tokens": 1}


def with_pool(pool: Pool, use: Callable[[Pool], Awaitable[T]]) -> T:
    async def run() -> T:
        async with pool:
            return await asyncio.wait_for(use(pool), 60)  # a hang becomes a failure

    return asyncio.run(run())


def make_pool(*stubs: Stub, key: str | None = None, timeout: float = 5.0, outage_seconds: float = 20.0) -> Pool:
    servers = JudgeServers([stub.url for stub in stubs], 8, timeout, outage_seconds=outage_seconds)
    return Pool(servers, MODEL, key)


async def send_all(pool: Pool, queries: int, passages: int = 1) -> list[Completion]:
    async def send(query: str) -> list[Completion]:
        return [await pool.chat(query, body(query, f"p{i}")) for i in range(passages)]

    return [reply for replies in await asyncio.gather(*(send(f"q{i}") for i in range(queries))) for reply in replies]


def first_requests(times: int, fault: Fault) -> Callable[[int, Pair], Fault | None]:
    return lambda number, _pair: fault if number <= times else None


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        ((429, {}), "429"),
        ((429, {"Retry-After": "0.2"}), "429"),
        ((503, {}), "503"),
        ((503, {"Retry-After": "0.2"}), "503"),
        ((502, {}), "502"),
        ((502, {"Retry-After": "0.2"}), "502"),
        ((500, {}), "500"),
        ((408, {}), "408"),
        ((409, {}), "409"),
        ((425, {}), "425"),
        ("hang", "hang"),
        ("cut", "cut"),
        ("cut half-way", "cut half-way"),
        ("garbage", "garbage"),
        ("other JSON", "other JSON"),
    ],
)
def test_transient_faults_are_retried_until_a_reply(stub: Stub, fault: Fault, name: str) -> None:
    stub.fault = first_requests(3, fault)
    replies = with_pool(make_pool(stub, timeout=1.5 if fault == "hang" else 20.0), lambda pool: send_all(pool, 10))
    assert stub.faults[name] == 3
    assert len(replies) == 10
    assert sum(reply.attempts for reply in replies) == 13
    assert sorted(stub.graded.values()) == [1] * 10
    assert all(reply.prompt_tokens > 0 and reply.cached_tokens > 0 for reply in replies)


def test_retry_after_is_honoured(stub: Stub) -> None:
    stub.fault = first_requests(1, (429, {"Retry-After": "1.5"}))
    started = time.monotonic()
    with_pool(make_pool(stub), lambda pool: pool.chat("q", body("q")))
    assert stub.faults["429"] == 1
    assert time.monotonic() - started >= 1.5


@pytest.mark.parametrize("fault", [(429, {"Retry-After": "0.1"}), (503, {"Retry-After": "0.1"}), "hang"])
def test_overload_lowers_the_concurrency_limit(stub: Stub, fault: Fault) -> None:
    stub.delay = 0.02

    async def use(pool: Pool) -> tuple[int, int]:
        await send_all(pool, 60)
        grown = pool.servers[0].limiter.limit
        stub.fault = lambda number, _pair: fault if number <= 64 else None
        await send_all(pool, 4)
        return grown, pool.servers[0].limiter.limit

    grown, lowered = with_pool(make_pool(stub, timeout=1.0 if fault == "hang" else 5.0), use)
    assert stub.faults.total() >= 4
    assert grown == stub.max_in_flight == 8
    assert lowered <= 4


@pytest.mark.parametrize(
    ("fault", "parts"),
    [
        ((400, {}), ["rejects the request", "stub says 400"]),
        ((422, {}), ["rejects the request", "stub says 422"]),
        ((404, {}), ["does not have this path or model", "judge.model"]),
        ((301, {"Location": "http://elsewhere"}), ["redirects requests"]),
    ],
)
def test_rejected_requests_are_not_retried(stub: Stub, fault: Fault, parts: list[str]) -> None:
    stub.fault = first_requests(10, fault)
    with pytest.raises(UserError) as raised:
        with_pool(make_pool(stub), lambda pool: pool.chat("q", body("q")))
    assert sum(stub.faults.values()) == 1
    assert all(part in str(raised.value) for part in [*parts, stub.url])


def test_rejected_key_is_not_retried_and_never_shown(stub: Stub, caplog: pytest.LogCaptureFixture) -> None:
    stub.key = "another"
    caplog.set_level(logging.DEBUG)
    pool = make_pool(stub, key=KEY)
    with pytest.raises(UserError, match="does not accept the API key") as raised:
        with_pool(pool, lambda pool: pool.chat("q", body("q")))
    assert stub.paths.total() == 1, "a rejected key is not retried"
    assert "Incorrect API key provided" in str(raised.value), "the server's message is shown, without the key"
    shown = [str(raised.value), repr(raised.value), repr(pool), *map(repr, pool.servers), caplog.text]
    assert not any(KEY in text for text in shown)
    stub.key = KEY
    assert with_pool(make_pool(stub, key=KEY), lambda pool: pool.chat("q", body("q"))).attempts == 1


def test_failing_request_exhausts_its_retries_alone(stub: Stub) -> None:
    stub.fault = lambda _number, pair: (500, {}) if pair[0] == "q3" else None

    async def use(pool: Pool) -> list[Completion | BaseException]:
        return await asyncio.gather(*(pool.chat(f"q{i}", body(f"q{i}")) for i in range(8)), return_exceptions=True)

    results = with_pool(make_pool(stub), use)
    failed = [result for result in results if isinstance(result, RetriesExhausted)]
    assert len(failed) == 1
    assert failed[0].attempts == stub.faults["500"] == 6
    assert failed[0].reason == "HTTP 500: stub says 500"
    assert sum(isinstance(result, Completion) for result in results) == 7


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "0.01"}])
def test_gateway_errors_do_not_count_as_attempts(
    stub: Stub, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: 502 counted as a failure of the request, so the sixth one made the pair missing."""
    monkeypatch.setattr("pyrite.llm.pool.backoff_delay", lambda *_: 0.0)
    monkeypatch.setattr("pyrite.llm.server._MAX_OPEN_SECONDS", 0.01)
    stub.fault = first_requests(8, (502, headers))
    reply = with_pool(make_pool(stub), lambda pool: pool.chat("q", body("q")))
    assert stub.faults["502"] == 8
    assert reply.attempts == 9


def test_queries_of_a_failed_server_move_and_return() -> None:
    with Stub() as one, Stub() as two:
        one.delay = two.delay = 0.01

        async def send(pool: Pool) -> tuple[set[str], set[str]]:
            """Which queries each server received. Every request gets a reply, even if a server fails meanwhile."""
            one.graded.clear()
            two.graded.clear()
            assert len(await send_all(pool, 100, passages=2)) == 200
            assert len(one.graded + two.graded) == 200
            return {query for query, _ in one.graded}, {query for query, _ in two.graded}

        async def use(pool: Pool) -> None:
            first, second = await send(pool)
            assert len(first) > 10
            assert not first & second, "a query's requests go to one server"

            failover = asyncio.ensure_future(send(pool))
            await asyncio.sleep(0.1)
            await asyncio.to_thread(one.down)
            first_during, second_during = await failover
            assert first_during, "the first server failed after some replies"
            assert second < second_during <= first | second, "the second server takes over the rest"
            assert pool.servers[0].breaker.state != "closed"

            await asyncio.to_thread(one.up)
            while pool.servers[0].breaker.state != "closed":
                await asyncio.gather(*(pool.chat(query, body(query, "probe")) for query in first))
            assert await send(pool) == (first, second)

        with_pool(make_pool(one, two), use)


def test_requests_survive_a_short_outage(stub: Stub, caplog: pytest.LogCaptureFixture) -> None:
    async def use(pool: Pool) -> list[Completion]:
        await send_all(pool, 3)
        await asyncio.to_thread(stub.down)
        requests = asyncio.ensure_future(send_all(pool, 30))
        await asyncio.sleep(2.5)
        assert not requests.done()
        await asyncio.to_thread(stub.up)
        return await requests

    replies = with_pool(make_pool(stub), use)
    assert len(replies) == 30
    assert "no server responds" in caplog.text
    assert "responds again" in caplog.text
    assert max(reply.attempts for reply in replies) > 1


def test_servers_that_stay_down_are_an_outage(stub: Stub) -> None:
    """Regression: an outage failed the requests in flight one by one, each after the full wait."""

    async def use(pool: Pool) -> None:
        await send_all(pool, 3)
        await asyncio.to_thread(stub.down)
        await send_all(pool, 30)

    started = time.monotonic()
    with pytest.raises(
        NoServerAvailable, match=r"no reply for 1 s; last error: (no connection|the connection was closed)"
    ):
        with_pool(make_pool(stub, outage_seconds=1.0), use)
    assert 1.0 < time.monotonic() - started < 5.0


def test_server_that_is_always_busy_is_an_outage(stub: Stub) -> None:
    stub.status = 429
    with pytest.raises(NoServerAvailable, match=r"no reply for 1 s; last error: HTTP 429"):
        with_pool(make_pool(stub, outage_seconds=1.0), lambda pool: send_all(pool, 4))
    assert stub.faults["429"] >= 4


@pytest.mark.parametrize("refused", [False, True])
def test_request_that_always_gets_502_fails_alone(stub: Stub, monkeypatch: pytest.MonkeyPatch, refused: bool) -> None:
    """Regression: a gateway's 502 for the last pair counted as an outage, so the shard never finished."""
    monkeypatch.setattr("pyrite.llm.server._MAX_OPEN_SECONDS", 0.1)
    stub.fault = lambda _number, pair: (502, {}) if pair[0] == "q3" else None
    # The test request has max_tokens, which the server may refuse: it responds nevertheless.
    stub.refuse = lambda sent: Raw(400, {}) if refused and "Say yes" in str(sent) else None

    async def use(pool: Pool) -> list[Completion | BaseException]:
        return await asyncio.gather(*(pool.chat(f"q{i}", body(f"q{i}")) for i in range(8)), return_exceptions=True)

    results = with_pool(make_pool(stub, outage_seconds=2.0), use)
    assert stub.faults["502"] > 1
    assert [result.reason for result in results if isinstance(result, RetriesExhausted)] == ["HTTP 502: stub says 502"]
    assert sum(isinstance(result, Completion) for result in results) == 7


def test_request_gets_a_last_attempt_after_an_outage(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: a waiting request failed at the moment when its server responded again."""
    monkeypatch.setattr("pyrite.llm.server._MAX_OPEN_SECONDS", 0.1)
    checked: list[bool] = []

    async def any_server_responds(_pool: Pool) -> bool:
        stub.fault = lambda _number, _pair: None
        checked.append(True)
        return True

    monkeypatch.setattr(Pool, "_any_server_responds", any_server_responds)
    stub.fault = lambda _number, _pair: (502, {})
    assert with_pool(make_pool(stub, outage_seconds=1.0), lambda pool: pool.chat("q", body("q"))).attempts > 1
    assert checked


def test_slow_request_survives_while_others_get_replies(stub: Stub) -> None:
    stub.fault = lambda number, pair: (429, {}) if pair[0] == "q0" and number < 40 else None
    stub.delay = 0.05

    async def use(pool: Pool) -> int:
        slow = asyncio.ensure_future(send_all(pool, 1))
        while not slow.done():
            await pool.chat("other", body("other"))
        return len(await slow)

    assert with_pool(make_pool(stub, outage_seconds=0.2), use) == 1
    assert stub.faults["429"] > 1


def test_cancelled_requests_release_their_slots(stub: Stub) -> None:
    stub.delay = 0.3

    async def use(pool: Pool) -> int:
        tasks = [asyncio.ensure_future(pool.chat(f"q{i}", body(f"q{i}"))) for i in range(20)]
        await asyncio.sleep(0.1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert all(task.cancelled() for task in tasks)
        assert pool.servers[0].admission.in_flight == 0
        stub.delay = 0
        return len(await send_all(pool, 5))

    assert with_pool(make_pool(stub), use) == 5


def test_queries_spread_evenly_and_move_only_on_failure() -> None:
    urls = [f"http://judge-{i}:8000" for i in range(4)]
    rankings = [rank_servers(f"q{i}", urls) for i in range(4000)]
    before = [ranking[0] for ranking in rankings]
    after = [next(server for server in ranking if server != 2) for ranking in rankings]
    assert min(Counter(before).values()) > 900
    moved = [(b, a) for b, a in zip(before, after, strict=True) if b != a]
    assert {b for b, _ in moved} == {2}
    assert len(moved) == Counter(before)[2]
    assert min(Counter(a for _, a in moved).values()) > 250
