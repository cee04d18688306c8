"""Reads one member of a .7z archive as a stream. Nothing is unpacked to disk."""

import queue
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from pyrite.errors import UserError
from pyrite.sources.optional import import_library

_BLOCK = 1 << 20


class _Stopped(Exception):
    """The reader needs no more bytes."""


def read_member(archive: Path, is_wanted: Callable[[str], bool], name: str) -> Generator[bytes]:
    """Yield the bytes of the only member that ``is_wanted``, by its name in the archive, in blocks of at most 1 MiB.

    py7zr only writes to a file. So a thread unpacks, and waits while two blocks are unread.

    Args:
        name: of the member, for messages.

    Raises:
        UserError: py7zr is not installed, the archive is damaged or encrypted, or it has no such member or several.
    """
    py7zr = import_library("py7zr", "py7zr", f"{archive.absolute()}: reading .7z archives")
    blocks: queue.Queue[bytes | Exception | None] = queue.Queue(maxsize=2)
    stopped = threading.Event()

    def unpack() -> None:
        end: Exception | None = None
        try:
            with archive.open("rb") as stream, py7zr.SevenZipFile(stream) as opened:
                found = [each for each in opened.getnames() if is_wanted(each)]
                if len(found) != 1:
                    raise UserError(
                        f"{archive.absolute()}: {len(found)} files called {name} in this archive; one is needed. Set "
                        "source.path to an archive of one site, or unpack it and name the file."
                    )
                opened.extract(targets=found, factory=_Writers(blocks, stopped))
        except Exception as error:
            end = error
        _put(blocks, end, stopped)

    thread = threading.Thread(target=unpack, name="unpack", daemon=True)
    thread.start()
    try:
        while (block := blocks.get()) is not None:
            if isinstance(block, Exception):
                raise _user_error(archive, block) from block
            yield block
    finally:
        stopped.set()
        thread.join()


def _user_error(archive: Path, error: Exception) -> UserError:
    if isinstance(error, UserError):
        return error
    # A damaged archive can make py7zr raise any error.
    return UserError(
        f"{archive.absolute()}: not a readable .7z archive ({error or type(error).__name__}). If it has a password, "
        "unpack it and name the file. If it is damaged, get it again."
    )


class _Writers:
    """py7zr's factory of files to write to."""

    def __init__(self, blocks: queue.Queue[Any], stopped: threading.Event) -> None:
        self._blocks, self._stopped = blocks, stopped

    def create(self, filename: str) -> "_Writer":
        """The file for the member ``filename``."""
        del filename
        return _Writer(self._blocks, self._stopped)


class _Writer:
    """A file whose bytes go to a queue, with the methods that py7zr calls."""

    def __init__(self, blocks: queue.Queue[Any], stopped: threading.Event) -> None:
        self._blocks, self._stopped, self._size = blocks, stopped, 0

    def write(self, content: bytes | bytearray) -> int:
        for start in range(0, len(content), _BLOCK):
            if not _put(self._blocks, bytes(content[start : start + _BLOCK]), self._stopped):
                raise _Stopped
        self._size += len(content)
        return len(content)

    def seekable(self) -> bool:
        return False

    def flush(self) -> None:
        """Nothing to do: each block is in the queue."""

    def close(self) -> None:
        """Nothing to do: ``read_member`` puts the end into the queue, after the checksum was verified."""

    def size(self) -> int:
        return self._size


def _put(blocks: queue.Queue[Any], item: object, stopped: threading.Event) -> bool:
    """Put ``item`` into the queue; return False if the reader has ``stopped``."""
    while not stopped.is_set():
        try:
            blocks.put(item, timeout=0.1)
        except queue.Full:
            continue
        return True
    return False
