"""Work whose results are put away while it goes on."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

from pyrite.append_log import WriteBuffer
from pyrite.errors import Interrupted, PyriteError
from pyrite.stages import flushing


def test_work_that_cannot_be_put_away_stops_with_the_stores_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug: the periodic flush dies alone, and hours of paid work go on with nothing kept."""
    monkeypatch.setattr(flushing, "FLUSH_SECONDS", 0.01)
    stopped = asyncio.Event()

    async def doing() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            stopped.set()

    async def flush() -> None:
        raise PyriteError("the store is full")

    async def go() -> None:
        with pytest.raises(PyriteError, match="the store is full"):
            await flushing.run_with_flush(doing(), flush)
        assert stopped.is_set()

    asyncio.run(asyncio.wait_for(go(), 10))


def test_rows_stay_fresh_until_they_are_kept() -> None:
    """The bug: rows leave the memory before the store has them, so a write that fails loses what was paid for."""
    fresh, kept = WriteBuffer(), list[dict[str, Any]]()

    def fails(_: Sequence[dict[str, Any]]) -> None:
        raise PyriteError("the store is away")

    def keeps(rows: Sequence[dict[str, Any]]) -> None:
        fresh.rows.append({"n": 3})  # an answer that comes while the store writes
        kept.extend(rows)

    async def go() -> None:
        fresh.rows += [{"n": 1}, {"n": 2}]
        with pytest.raises(PyriteError):
            await fresh.flush(fails)
        await fresh.flush(keeps)

    asyncio.run(go())
    assert kept == [{"n": 1}, {"n": 2}]
    assert fresh.rows == [{"n": 3}]


@pytest.mark.parametrize("working_on", ["a question", "the store"])
def test_told_to_stop_it_stops_though_the_store_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, working_on: str
) -> None:
    """The bug: SIGTERM waits for a thread that asks a store which is away, until the pod is killed."""
    monkeypatch.setattr(flushing, "LAST_SECONDS", 0.2)
    asked, away = list[str](), threading.Event()

    def ask(what: str) -> None:
        asked.append(what)
        away.wait(60)

    async def doing() -> None:
        asyncio.get_running_loop().call_later(0.1, os.kill, os.getpid(), signal.SIGTERM)
        await (asyncio.to_thread(ask, "read") if working_on == "the store" else asyncio.sleep(60))

    began, before = time.monotonic(), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted):
        asyncio.run(flushing.run_with_flush(doing(), lambda: asyncio.to_thread(ask, "write")))
    assert time.monotonic() - began < 5
    assert asked == (["read", "write"] if working_on == "the store" else ["write"])
    assert "the store does not answer" in caplog.text
    assert signal.getsignal(signal.SIGTERM) is before
    away.set()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_nothing_is_done_any_more_while_the_last_is_put_away(number: signal.Signals) -> None:
    """The bug: on Ctrl-C questions are asked during the last flush, and their answers are lost."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
    fresh, answered, kept = WriteBuffer(), list[dict[str, Any]](), list[dict[str, Any]]()

    async def doing() -> None:
        asyncio.get_running_loop().call_later(0.1, os.kill, os.getpid(), number)
        while True:
            await asyncio.sleep(0.01)
            answered.append({"n": len(answered)})
            fresh.rows.append(answered[-1])

    def keep(rows: Sequence[dict[str, Any]]) -> None:
        time.sleep(0.3)
        kept.extend(rows)

    with pytest.raises(Interrupted if number == signal.SIGTERM else KeyboardInterrupt):
        asyncio.run(flushing.run_with_flush(doing(), lambda: fresh.flush(keep)))
    assert answered
    assert kept == answered
