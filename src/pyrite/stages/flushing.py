"""Doing work that takes long and is paid for: what is done is put away as it comes, and SIGTERM ends it in order."""

import asyncio
import logging
import signal
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from pyrite.errors import Interrupted, first_error

#: Seconds between two times of putting away: what a killed worker has to do again.
FLUSH_SECONDS = 5.0

#: Who is told to stop waits so long for a store that does not answer. A Job's pod is killed after 60, a step of
#: `pyrite train` after 20.
LAST_SECONDS = 15.0

_log = logging.getLogger(__name__)

T = TypeVar("T")


async def run_with_flush(doing: Coroutine[Any, Any, T], flush: Callable[[], Awaitable[None]]) -> T:
    """What ``doing`` returns. ``flush`` is called every few seconds meanwhile and once at the end, however it ends.

    Raises:
        Interrupted: the process was told to stop (SIGTERM).
        PyriteError: as ``doing`` does, of several that tasks of a group raised the first; or as ``flush`` does, since
            work that cannot be put away is not gone on with.
    """
    loop, told, before = asyncio.get_running_loop(), asyncio.Event(), signal.getsignal(signal.SIGTERM)
    loop.set_default_executor(_Unawaited())
    loop.add_signal_handler(signal.SIGTERM, told.set)
    task, flushing = loop.create_task(doing), loop.create_task(_often(flush))
    telling = loop.create_task(told.wait())
    try:
        await asyncio.wait({task, flushing, telling}, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:  # Ctrl-C
        told.set()
        raise
    finally:
        broken = flushing.done()
        # First nothing more is done: what came during the last flush would be lost.
        for each in (task, flushing):
            each.cancel()
        await asyncio.gather(task, flushing, return_exceptions=True)
        if not broken:
            await _put_away(flush, telling)
        telling.cancel()
        loop.remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, before)
    if told.is_set():
        raise Interrupted("told to stop; what was done is kept. The same command goes on from here.")
    if broken:
        await flushing
    try:
        return await task
    except BaseExceptionGroup as group:
        raise first_error(group) from group


async def _often(flush: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(FLUSH_SECONDS)
        await asyncio.shield(flush())


async def _put_away(flush: Callable[[], Awaitable[None]], telling: asyncio.Task[Any]) -> None:
    """The last flush. Who is told to stop, before or meanwhile, does not wait for ever."""
    last = asyncio.ensure_future(flush())
    await asyncio.wait({last, telling}, return_when=asyncio.FIRST_COMPLETED)
    done, _ = await asyncio.wait({last}, timeout=LAST_SECONDS)
    if done:
        await last
    else:
        last.cancel()
        _log.warning("the store does not answer: what was done in the last seconds is not kept, and is done again")


class _Unawaited(ThreadPoolExecutor):
    """A thread for each call, and nobody waits for it when the process ends: it may be asking a store that is away."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()

        def call() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=call, daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        del wait, cancel_futures
