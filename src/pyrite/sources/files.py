"""Helpers for sources that read files: paths, copies of files on S3, digests, and hints for misspelt names."""

import difflib
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from pyrite.errors import UserError
from pyrite.store import open_store

_BLOCK = 1 << 20


def local_path(path: str, setting: str) -> str:
    """``path`` itself, or, if it is s3://bucket/key, the path of a local copy of that file or folder.

    Files that are in the local cache are not downloaded again.

    Raises:
        UserError: ``path`` does not exist on S3; the message names ``setting``.
    """
    if not path.startswith("s3://"):
        return path
    parent, _, name = path.rstrip("/").rpartition("/")
    store = open_store(parent)
    if store.exists(name):
        return str(store.fetch(name))
    keys = store.keys(name)
    if not keys:
        raise UserError(f"{setting}: there is neither a file nor a folder at {path}. Correct {setting}.")
    return str(store.fetch_folder(name, keys))


def existing(path: str, setting: str = "source.path") -> Path:
    """``path`` as a Path, with ``~`` expanded.

    Raises:
        UserError: ``path`` does not exist; the message has the absolute path and names ``setting``.
    """
    found = Path(path).expanduser()
    if not found.exists():
        raise UserError(f"{found.absolute()}: no such file or folder. Correct {setting} in the run file.")
    return found


def check_characters(where: str, field: str, value: str) -> None:
    """Raise UserError if ``value`` holds a lone surrogate, which UTF-8 cannot encode."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: {field} has an invalid Unicode character ({error.reason}). Fix the text.") from error


def find(path: Path, *suffixes: str) -> list[Path]:
    """The files with one of ``suffixes`` (such as ".xml") at or under ``path``, sorted by relative name.

    Hidden files and folders are skipped, because version control and editors keep copies there.

    Raises:
        UserError: ``path`` is a folder without such a file.
        OSError: a folder cannot be read (``rglob`` would skip it silently).
    """
    if path.is_file():
        return [path]

    def refuse(error: OSError) -> None:
        raise error

    names = sorted(
        file.relative_to(path).as_posix()
        for folder, _, files in os.walk(path, onerror=refuse)
        for file in (Path(folder, name) for name in files)
        if file.suffix.lower() in suffixes and file.is_file()
    )
    visible = [path / name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    if not visible:
        raise UserError(f"{path.absolute()}: no {' or '.join(suffixes)} file in this folder. Correct source.path.")
    return visible


def digest(root: Path, files: Iterable[Path], settings: str) -> str:
    """Hex sha256 of ``settings``, then of the name relative to ``root`` and the contents of each file, in order."""
    total = hashlib.sha256(settings.encode())
    for file in files:
        name = file.relative_to(root).as_posix() if file != root else ""
        total.update(f"\0{len(name)}:{name}:{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(_BLOCK):
                total.update(block)
    return total.hexdigest()


def suggest(wanted: str, names: Iterable[str]) -> str:
    """A hint for an error message: the name in ``names`` that is closest to ``wanted``, if any, and all names."""
    listed = [str(name) for name in names]
    close = difflib.get_close_matches(wanted, listed, n=1, cutoff=0.5)
    hint = f"Did you mean '{close[0]}'? " if close else ""
    shown = ", ".join(listed[:30]) + (", ..." if len(listed) > 30 else "")
    return f"{hint}There are: {shown or 'none'}."
