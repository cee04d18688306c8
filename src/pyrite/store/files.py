"""Files that appear whole or not at all."""

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Put ``data`` into the file ``path``, whole or not at all; folders above it are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = beside_of(path)
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)  # a full disk must not stay full of what could not be written
        raise
    _sync_folder(path.parent)


def replace(local: Path, path: Path) -> None:
    """Move the file ``local``, on the same file system, to ``path``, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with local.open("rb") as file:
        os.fsync(file.fileno())
    local.replace(path)
    _sync_folder(path.parent)


def beside_of(path: Path) -> Path:
    """A name beside ``path`` for a file that is being written; ``below`` passes over it."""
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")


def below(folder: Path) -> Iterator[Path]:
    """All finished files below ``folder``; none where there is no folder."""
    if folder.is_dir():
        for path in folder.rglob("*"):
            if path.is_file() and not path.name.startswith("."):
                yield path


def drop_folders(folder: Path, but: str | None) -> None:
    """Remove ``folder``; where ``but`` is given, all that is in it but that."""
    if but is None:
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.is_dir():
        for path in folder.iterdir():
            if path.name != but:
                shutil.rmtree(path, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
