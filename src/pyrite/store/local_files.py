"""Atomic writes, listing and deletion of local files."""

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to the file ``path`` atomically; creates its parent folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        temporary.write_bytes(data)
        move_atomically(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # on a full disk, free the space
        raise


def move_atomically(source: Path, path: Path) -> None:
    """Move the file ``source`` to ``path`` on the same file system; creates its parent folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as file:
        os.fsync(file.fileno())
    source.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename must survive a power failure
    finally:
        os.close(folder)


def temporary_path(path: Path) -> Path:
    """A hidden name next to ``path`` for a file that is being written; ``list_files`` skips it."""
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")


def list_files(folder: Path) -> Iterator[Path]:
    """All files below ``folder`` that are not hidden; none if the folder does not exist."""
    if folder.is_dir():
        for path in folder.rglob("*"):
            if path.is_file() and not path.name.startswith("."):
                yield path


def delete_folder(folder: Path, exclude: str | None) -> None:
    """Delete ``folder``; with ``exclude``, only its other subfolders."""
    if exclude is None:
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.is_dir():
        for path in folder.iterdir():
            if path.name != exclude:
                shutil.rmtree(path, ignore_errors=True)
