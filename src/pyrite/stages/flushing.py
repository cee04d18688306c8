"""Runs long and costly work whose results are stored periodically, and which SIGTERM stops cleanly."""

import asyncio
import logging
import signal
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from pyrite.errors import Interrupted, first_error

#: Seconds between flushes, and so the most work that a killed worker loses.
FLUSH_SECONDS = 5.0

#: Time limit of the final flush after SIGTERM. Pods are killed after 60 seconds, steps of `pyrite train` after 20.
FINAL_FLUSH_SECONDS = 15.0

_log = logging.getLogger(__name__)

T = TypeVar("T")


async def run_with_flush(work: Coroutine[Any, Any, T], flush: Callable[[], Awaitable[None]]) -> T:
    """Run ``work`` and return its result. ``flush`` is called every few seconds, and at the end even after an error.

    Raises:
        Interrupted: the process received SIGTERM.
        PyriteError: ``work`` failed (the first error, if several tasks of a group failed), or ``flush`` failed, which
            stops the work.
    """
    loop, stop, previous_handler = asyncio.get_running_loop(), asyncio.Event(), signal.getsignal(signal.SIGTERM)
    loop.set_default_executor(_DaemonExecutor())
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    task, flushing = loop.create_task(work), loop.create_task(_flush_periodically(flush))
    stopping = loop.create_task(stop.wait())
    try:
        await asyncio.wait({task, flushing, stopping}, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:  # Ctrl-C
        stop.set()
        raise
    finally:
        flush_failed = flushing.done()
        # Stop the work first: results that arrive during the final flush would be lost.
        for each in (task, flushing):
            each.cancel()
        await asyncio.gather(task, flushing, return_exceptions=True)
        if not flush_failed:
            await _flush_finally(flush, stopping)
        stopping.cancel()
        loop.remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, previous_handler)
    if stop.is_set():
        raise Interrupted("stopped by a signal; results are stored. Run the same command again to resume.")
    if flush_failed:
        await flushing
    try:
        return await task
    except BaseExceptionGroup as group:
        raise first_error(group) from group


async def _flush_periodically(flush: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(FLUSH_SECONDS)
        await asyncio.shield(flush())


async def _flush_finally(flush: Callable[[], Awaitable[None]], stopping: asyncio.Task[Any]) -> None:
    """Flush once. From SIGTERM on, there is a time limit."""
    final = asyncio.ensure_future(flush())
    await asyncio.wait({final, stopping}, return_when=asyncio.FIRST_COMPLETED)
    done, _ = await asyncio.wait({final}, timeout=FINAL_FLUSH_SECONDS)
    if done:
        await final
    else:
        final.cancel()
        _log.warning(
            "the store does not respond: results of the last seconds are lost; the next run computes them again"
        )


class _DaemonExecutor(ThreadPoolExecutor):
    """Runs each call in a daemon thread, so that the process can exit while a call waits for an unavailable store."""

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
