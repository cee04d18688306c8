"""Work whose results are put away while it goes on."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from pyrite.errors import PyriteError
from pyrite.parts import Fresh
from pyrite.stages import working


def test_work_that_cannot_be_put_away_stops_with_the_stores_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug: the periodic flush dies alone, and hours of paid work go on with nothing kept."""
    monkeypatch.setattr(working, "FLUSH_SECONDS", 0.01)
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
            await working.work(doing(), flush)
        assert stopped.is_set()

    asyncio.run(asyncio.wait_for(go(), 10))


def test_rows_stay_fresh_until_they_are_kept() -> None:
    """The bug: rows leave the memory before the store has them, so a write that fails loses what was paid for."""
    fresh, kept = Fresh(), list[dict[str, Any]]()

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
