"""Advisory file locks. The kernel releases a lock when its process ends, even if it is killed."""

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

#: After a run is killed, its last step may hold its lock for a moment.
_TIMEOUT_SECONDS = 5.0

_TIME = "%Y-%m-%d %H:%M:%S UTC"


@contextmanager
def locked(path: Path, what: str, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock file ``path`` while the body runs.

    Args:
        what: what the lock protects, for the error message.
        shared: several processes may hold the lock, if none holds it exclusively.

    Raises:
        UserError: another process holds the lock; the message names the process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    try:
        while not _try_lock(descriptor, shared):
            if time.monotonic() > deadline:
                raise UserError(
                    f"{what} is being worked on by {_read_name(descriptor)}. Wait for it or stop it, then run the same "
                    "command again."
                )
            time.sleep(0.1)
        with _name_in(descriptor):
            yield
    finally:
        os.close(descriptor)


@contextmanager
def _name_in(descriptor: int) -> Iterator[None]:
    """Write this process's name into the lock file while the body runs. Of several processes, the latest is named."""
    name = f"process {os.getpid()} on {socket.gethostname()} since {datetime.now(UTC).strftime(_TIME)}"
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, name.encode(), 0)
    try:
        yield
    finally:
        if _read_name(descriptor) == name:
            os.ftruncate(descriptor, 0)


def _read_name(descriptor: int) -> str:
    return os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"


def _try_lock(descriptor: int, shared: bool) -> bool:
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Holder(NamedTuple):
    """The process that holds a lock, and since when, if known."""

    name: str
    since: datetime | None


def holder(path: Path) -> Holder | None:
    """The process that holds the lock file ``path`` exclusively; None if no process does."""
    if not path.is_file():
        return None
    descriptor = os.open(path, os.O_RDONLY)  # checking a lock needs no write permission
    try:
        if _try_lock(descriptor, shared=True):
            return None
        name = _read_name(descriptor)
        try:
            since = datetime.strptime(name.rpartition(" since ")[2], _TIME).replace(tzinfo=UTC)
        except ValueError:
            since = None
        return Holder(name, since)
    finally:
        os.close(descriptor)
