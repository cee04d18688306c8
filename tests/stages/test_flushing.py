"""Work whose results are flushed periodically."""

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


def test_a_failing_flush_stops_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: the periodic flush failed silently, and hours of paid work were not stored."""
    monkeypatch.setattr(flushing, "FLUSH_SECONDS", 0.01)
    stopped = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            stopped.set()

    async def flush() -> None:
        raise PyriteError("the store is full")

    async def run() -> None:
        with pytest.raises(PyriteError, match="the store is full"):
            await flushing.run_with_flush(work(), flush)
        assert stopped.is_set()

    asyncio.run(asyncio.wait_for(run(), 10))


def test_rows_stay_buffered_until_they_are_stored() -> None:
    """Regression: rows left the buffer before they were stored, so a failed write lost them."""
    buffer, stored = WriteBuffer(), list[dict[str, Any]]()

    def fails(_: Sequence[dict[str, Any]]) -> None:
        raise PyriteError("the store is unavailable")

    def stores(rows: Sequence[dict[str, Any]]) -> None:
        buffer.rows.append({"n": 3})  # a row that is added during the write
        stored.extend(rows)

    async def run() -> None:
        buffer.rows += [{"n": 1}, {"n": 2}]
        with pytest.raises(PyriteError):
            await buffer.flush(fails)
        await buffer.flush(stores)

    asyncio.run(run())
    assert stored == [{"n": 1}, {"n": 2}]
    assert buffer.rows == [{"n": 3}]


@pytest.mark.parametrize("waiting_for", ["a request", "the store"])
def test_sigterm_stops_although_the_store_is_unavailable(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, waiting_for: str
) -> None:
    """Regression: SIGTERM waited for a thread that waited for an unavailable store, until the pod was killed."""
    monkeypatch.setattr(flushing, "FINAL_FLUSH_SECONDS", 0.2)
    calls, released = list[str](), threading.Event()

    def block(operation: str) -> None:
        calls.append(operation)
        released.wait(60)

    async def work() -> None:
        asyncio.get_running_loop().call_later(0.1, os.kill, os.getpid(), signal.SIGTERM)
        await (asyncio.to_thread(block, "read") if waiting_for == "the store" else asyncio.sleep(60))

    began, before = time.monotonic(), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted):
        asyncio.run(flushing.run_with_flush(work(), lambda: asyncio.to_thread(block, "write")))
    assert time.monotonic() - began < 5
    assert calls == (["read", "write"] if waiting_for == "the store" else ["write"])
    assert "the store does not respond" in caplog.text
    assert signal.getsignal(signal.SIGTERM) is before
    released.set()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_no_work_is_done_during_the_final_flush(number: signal.Signals) -> None:
    """Regression: after Ctrl-C, work continued during the final flush, and its rows were lost."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest in the background ignores it
    buffer, done, stored = WriteBuffer(), list[dict[str, Any]](), list[dict[str, Any]]()

    async def work() -> None:
        asyncio.get_running_loop().call_later(0.1, os.kill, os.getpid(), number)
        while True:
            await asyncio.sleep(0.01)
            done.append({"n": len(done)})
            buffer.rows.append(done[-1])

    def store(rows: Sequence[dict[str, Any]]) -> None:
        time.sleep(0.3)
        stored.extend(rows)

    with pytest.raises(Interrupted if number == signal.SIGTERM else KeyboardInterrupt):
        asyncio.run(flushing.run_with_flush(work(), lambda: buffer.flush(store)))
    assert done
    assert stored == done
