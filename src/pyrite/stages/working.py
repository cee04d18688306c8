"""Doing work that takes long and is paid for: what is done is put away as it comes, and SIGTERM ends it in order."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from pyrite.errors import Interrupted, first_of

#: Seconds between two times of putting away: what a killed worker has to do again.
FLUSH_SECONDS = 5.0

T = TypeVar("T")


async def work(doing: Coroutine[Any, Any, T], flush: Callable[[], Awaitable[None]]) -> T:
    """What ``doing`` returns. ``flush`` is called every few seconds meanwhile and once at the end, however it ends.

    Raises:
        Interrupted: the process was told to stop (SIGTERM).
        PyriteError: as ``doing`` does, of several that tasks of a group raised the first; or as ``flush`` does, since
            work that cannot be put away is not gone on with.
    """
    loop = asyncio.get_running_loop()
    task = loop.create_task(doing)
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    flushing = loop.create_task(_often(flush))
    try:
        await asyncio.wait({task, flushing}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await flushing
        return await task
    except asyncio.CancelledError:
        raise Interrupted("told to stop; what was done is kept. The same command goes on from here.") from None
    except BaseExceptionGroup as group:
        raise first_of(group) from group
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        flushing.cancel()
        await asyncio.gather(flushing, return_exceptions=True)
        await flush()


async def _often(flush: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(FLUSH_SECONDS)
        await asyncio.shield(flush())
