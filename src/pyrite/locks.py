"""One writer at a time: advisory locks that the kernel lets go of when their holder dies, however it dies."""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from pyrite.errors import UserError

#: A killed run's last step may hold its lock for a moment after its parent is gone.
_PATIENCE_SECONDS = 5.0

_TIME = "%Y-%m-%d %H:%M:%S UTC"


@contextmanager
def locked(path: Path, what: str, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock file ``path`` while the body runs.

    Raises:
        UserError: somebody else holds it; the message says who.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    try:
        while not _try_lock(descriptor, shared):
            if time.monotonic() > deadline:
                raise UserError(
                    f"{what} is being worked on by {_named(descriptor)}. Wait for it, or stop it, and give the same "
                    "command again."
                )
            time.sleep(0.1)
        with _signed(descriptor):
            yield
    finally:
        os.close(descriptor)


@contextmanager
def _signed(descriptor: int) -> Iterator[None]:
    """The file says who holds it. Of several who share it, the last to come; once that one is gone, nobody by name."""
    name = f"process {os.getpid()} on {socket.gethostname()} since {datetime.now(UTC).strftime(_TIME)}"
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, name.encode(), 0)
    try:
        yield
    finally:
        if _named(descriptor) == name:
            os.ftruncate(descriptor, 0)


def _named(descriptor: int) -> str:
    return os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"


def _try_lock(descriptor: int, shared: bool) -> bool:
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Holder(NamedTuple):
    """Who holds a lock, in words, and since when where that is known."""

    name: str
    since: datetime | None


def holder(path: Path) -> Holder | None:
    """Who holds the lock file ``path`` for itself alone now, or None where nobody does."""
    if not path.is_file():
        return None
    descriptor = os.open(path, os.O_RDONLY)  # who looks need not be allowed to write
    try:
        if _try_lock(descriptor, shared=True):
            return None
        name = _named(descriptor)
        try:
            since = datetime.strptime(name.rpartition(" since ")[2], _TIME).replace(tzinfo=UTC)
        except ValueError:
            since = None
        return Holder(name, since)
    finally:
        os.close(descriptor)
