"""The pool against a server that fails on demand. Every fault is counted by who made it."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import pytest

from pyrite.errors import UserError
from pyrite.llm.pool import Completion, NoServerAvailable, Pool, RetriesExhausted
from stub_judge import MODEL, Fault, Pair, Stub

KEY = "sk-very-secret-0123456789"
T = TypeVar("T")


@pytest.fixture
def stub() -> Iterator[Stub]:
    with Stub() as server:
        yield server


def body(query: str, passage: str = "p") -> dict[str, Any]:
    message = f"<query>\n{query}\n</query>\n<passage>\n{passage}\n</passage>"
    return {"messages": [{"role": "user", "content": message}], "temperature": 0, "max_tokens": 1}


def with_pool(pool: Pool, work: Callable[[Pool], Awaitable[T]]) -> T:
    async def run() -> T:
        async with pool:
            return await asyncio.wait_for(work(pool), 60)  # what waits for ever fails, and does not hang

    return asyncio.run(run())


def pool_of(*stubs: Stub, key: str | None = None, timeout: float = 5.0, patience: float = 20.0) -> Pool:
    return Pool([stub.url for stub in stubs], MODEL, key, 8, timeout, patience)


async def ask_all(pool: Pool, queries: int, each: int = 1) -> list[Completion]:
    async def walk(query: str) -> list[Completion]:
        return [await pool.chat(query, body(query, f"p{i}")) for i in range(each)]

    return [answer for walk in await asyncio.gather(*(walk(f"q{i}") for i in range(queries))) for answer in walk]


def first(times: int, fault: Fault) -> Callable[[int, Pair], Fault | None]:
    return lambda number, _pair: fault if number <= times else None


@pytest.mark.parametrize(
    ("fault", "counted"),
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
def test_what_passes_is_asked_again_until_it_is_answered(stub: Stub, fault: Fault, counted: str) -> None:
    stub.fault = first(3, fault)
    answers = with_pool(pool_of(stub, timeout=1.5 if fault == "hang" else 20.0), lambda pool: ask_all(pool, 10))
    assert stub.faults[counted] == 3
    assert len(answers) == 10
    assert sum(answer.attempts for answer in answers) == 13
    assert sorted(stub.answered.values()) == [1] * 10
    assert all(answer.prompt_tokens > 0 and answer.cached_tokens > 0 for answer in answers)


def test_a_pause_that_the_server_asks_for_is_kept(stub: Stub) -> None:
    stub.fault = first(1, (429, {"Retry-After": "1.5"}))
    began = time.monotonic()
    with_pool(pool_of(stub), lambda pool: pool.chat("q", body("q")))
    assert stub.faults["429"] == 1
    assert time.monotonic() - began >= 1.5


@pytest.mark.parametrize("fault", [(429, {"Retry-After": "0.1"}), (503, {"Retry-After": "0.1"}), "hang"])
def test_pushing_back_lowers_what_is_in_flight(stub: Stub, fault: Fault) -> None:
    stub.delay = 0.02

    async def work(pool: Pool) -> tuple[int, int]:
        await ask_all(pool, 60)
        grown = pool.servers[0].limiter.limit
        stub.fault = lambda number, _pair: fault if number <= 64 else None
        await ask_all(pool, 4)
        return grown, pool.servers[0].limiter.limit

    grown, lowered = with_pool(pool_of(stub, timeout=1.0 if fault == "hang" else 5.0), work)
    assert stub.faults.total() >= 4
    assert grown == stub.most_at_once == 8
    assert lowered <= 4


@pytest.mark.parametrize(
    ("fault", "parts"),
    [
        ((400, {}), ["refuses the request", "stub says 400"]),
        ((422, {}), ["refuses the request", "stub says 422"]),
        ((404, {}), ["no such address or model", "judge.model"]),
        ((301, {"Location": "http://elsewhere"}), ["sends requests elsewhere"]),
    ],
)
def test_what_trying_again_cannot_mend_stops_at_once(stub: Stub, fault: Fault, parts: list[str]) -> None:
    stub.fault = first(10, fault)
    with pytest.raises(UserError) as stopped:
        with_pool(pool_of(stub), lambda pool: pool.chat("q", body("q")))
    assert sum(stub.faults.values()) == 1
    assert all(part in str(stopped.value) for part in [*parts, stub.url])


def test_a_refused_key_stops_at_once_and_is_never_shown(stub: Stub, caplog: pytest.LogCaptureFixture) -> None:
    stub.key = "another"
    caplog.set_level(logging.DEBUG)
    pool = pool_of(stub, key=KEY)
    with pytest.raises(UserError, match="does not accept the API key") as stopped:
        with_pool(pool, lambda pool: pool.chat("q", body("q")))
    assert stub.paths.total() == 1, "a refused key is not tried again"
    assert "Incorrect API key provided" in str(stopped.value), "the server's own words, which repeat the key"
    shown = [str(stopped.value), repr(stopped.value), repr(pool), *map(repr, pool.servers), caplog.text]
    assert not any(KEY in text for text in shown)
    stub.key = KEY
    assert with_pool(pool_of(stub, key=KEY), lambda pool: pool.chat("q", body("q"))).attempts == 1


def test_a_request_that_always_fails_is_given_up_and_the_others_are_not(stub: Stub) -> None:
    stub.fault = lambda _number, pair: (500, {}) if pair[0] == "q3" else None

    async def work(pool: Pool) -> list[Completion | BaseException]:
        return await asyncio.gather(*(pool.chat(f"q{i}", body(f"q{i}")) for i in range(8)), return_exceptions=True)

    results = with_pool(pool_of(stub), work)
    given_up = [result for result in results if isinstance(result, RetriesExhausted)]
    assert len(given_up) == 1
    assert given_up[0].attempts == stub.faults["500"] == 6
    assert given_up[0].reason == "HTTP 500: stub says 500"
    assert sum(isinstance(result, Completion) for result in results) == 7


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "0.01"}])
def test_a_gateway_whose_server_is_away_is_no_fault_of_a_lone_request(
    stub: Stub, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bug: 502 counts as a wrong answer, so the sixth within a minute or two makes the pair missing."""
    monkeypatch.setattr("pyrite.llm.pool.pause", lambda *_: 0.0)
    monkeypatch.setattr("pyrite.llm.circuit_breaker._LONGEST_PAUSE", 0.01)
    stub.fault = first(8, (502, headers))
    answer = with_pool(pool_of(stub), lambda pool: pool.chat("q", body("q")))
    assert stub.faults["502"] == 8
    assert answer.attempts == 9


def test_a_server_that_dies_loses_its_queries_to_the_other_and_gets_them_back() -> None:
    with Stub() as one, Stub() as two:
        one.delay = two.delay = 0.01

        async def ask(pool: Pool) -> tuple[set[str], set[str]]:
            """Which queries each server answered. All are answered, whatever happens meanwhile."""
            one.answered.clear()
            two.answered.clear()
            assert len(await ask_all(pool, 40, each=5)) == 200
            assert len(one.answered + two.answered) == 200
            return {query for query, _ in one.answered}, {query for query, _ in two.answered}

        async def work(pool: Pool) -> None:
            ours, theirs = await ask(pool)
            assert len(ours) > 10
            assert not ours & theirs, "a query's requests go to one server"

            dying = asyncio.ensure_future(ask(pool))
            await asyncio.sleep(0.1)
            await asyncio.to_thread(one.down)
            answered_by_one, answered_by_two = await dying
            assert answered_by_one, "it died after it had begun"
            assert theirs < answered_by_two <= ours | theirs, "what it left undone was done by the other"
            assert pool.servers[0].breaker.aside

            await asyncio.to_thread(one.up)
            while pool.servers[0].breaker.aside:
                await asyncio.gather(*(pool.chat(query, body(query, "trial")) for query in ours))
            assert await ask(pool) == (ours, theirs)

        with_pool(pool_of(one, two), work)


def test_all_servers_down_for_a_while_costs_time_and_nothing_else(stub: Stub, caplog: pytest.LogCaptureFixture) -> None:
    async def work(pool: Pool) -> list[Completion]:
        await ask_all(pool, 3)
        await asyncio.to_thread(stub.down)
        asking = asyncio.ensure_future(ask_all(pool, 30))
        await asyncio.sleep(2.5)
        assert not asking.done()
        await asyncio.to_thread(stub.up)
        return await asking

    answers = with_pool(pool_of(stub), work)
    assert len(answers) == 30
    assert "no server answers" in caplog.text
    assert "answers again" in caplog.text
    assert max(answer.attempts for answer in answers) > 1


def test_servers_that_stay_down_are_an_outage_and_no_fault_of_the_requests(stub: Stub) -> None:
    """The bug: an outage makes dead letters of what is in flight, one patience after the other."""

    async def work(pool: Pool) -> None:
        await ask_all(pool, 3)
        await asyncio.to_thread(stub.down)
        await ask_all(pool, 30)

    began = time.monotonic()
    with pytest.raises(NoServerAvailable, match=r"nothing for 1 s; last: (no connection|the connection was cut)"):
        with_pool(pool_of(stub, patience=1.0), work)
    assert 1.0 < time.monotonic() - began < 5.0


def test_a_server_that_is_only_ever_busy_is_an_outage_too(stub: Stub) -> None:
    stub.status = 429
    with pytest.raises(NoServerAvailable, match=r"nothing for 1 s; last: HTTP 429"):
        with_pool(pool_of(stub, patience=1.0), lambda pool: ask_all(pool, 4))
    assert stub.faults["429"] >= 4


def test_one_that_no_server_ever_takes_is_given_up_though_it_is_the_last(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bug: a gateway's 502 for one pair is an outage each time it is alone, and its shard is never finished."""
    monkeypatch.setattr("pyrite.llm.circuit_breaker._LONGEST_PAUSE", 0.1)
    stub.fault = lambda _number, pair: (502, {}) if pair[0] == "q3" else None

    async def work(pool: Pool) -> list[Completion | BaseException]:
        return await asyncio.gather(*(pool.chat(f"q{i}", body(f"q{i}")) for i in range(8)), return_exceptions=True)

    results = with_pool(pool_of(stub, patience=2.0), work)
    assert stub.faults["502"] > 1
    assert [result.reason for result in results if isinstance(result, RetriesExhausted)] == ["HTTP 502: stub says 502"]
    assert sum(isinstance(result, Completion) for result in results) == 7


def test_a_server_that_is_back_when_patience_ends_answers_what_has_waited(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bug: what waits is given up the moment that the server can be seen again."""
    monkeypatch.setattr("pyrite.llm.circuit_breaker._LONGEST_PAUSE", 0.1)
    back: list[bool] = []

    async def any_answers(_pool: Pool) -> bool:
        stub.fault = lambda _number, _pair: None
        back.append(True)
        return True

    monkeypatch.setattr(Pool, "_any_answers", any_answers)
    stub.fault = lambda _number, _pair: (502, {})
    assert with_pool(pool_of(stub, patience=1.0), lambda pool: pool.chat("q", body("q"))).attempts > 1
    assert back


def test_one_that_waits_long_while_others_are_answered_is_not_given_up(stub: Stub) -> None:
    stub.fault = lambda number, pair: (429, {}) if pair[0] == "q0" and number < 40 else None
    stub.delay = 0.05

    async def work(pool: Pool) -> int:
        walk = asyncio.ensure_future(ask_all(pool, 1))
        while not walk.done():
            await pool.chat("other", body("other"))
        return len(await walk)

    assert with_pool(pool_of(stub, patience=0.2), work) == 1
    assert stub.faults["429"] > 1


def test_a_request_that_is_called_off_leaves_its_place(stub: Stub) -> None:
    stub.delay = 0.3

    async def work(pool: Pool) -> int:
        asking = [asyncio.ensure_future(pool.chat(f"q{i}", body(f"q{i}"))) for i in range(20)]
        await asyncio.sleep(0.1)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        assert all(task.cancelled() for task in asking)
        assert pool.servers[0].admission.in_flight == 0
        stub.delay = 0
        return len(await ask_all(pool, 5))

    assert with_pool(pool_of(stub), work) == 5
