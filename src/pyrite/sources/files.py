"""Helpers for sources that read files: paths, copies of files on S3, digests, and hints for misspelt names."""

import difflib
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pyrite.errors import UserError
from pyrite.sources.base import Note
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

    Hidden files are not included; see ``is_hidden``.

    Raises:
        UserError: ``path`` is a folder without such a file.
        OSError: a folder cannot be read (``rglob`` would skip it silently).
    """
    if path.is_file():
        return [path]
    found = [path / name for name in _visible_files(path) if name.lower().endswith(suffixes)]
    if not found:
        wanted = " or ".join(filter(None, (", ".join(suffixes[:-1]), suffixes[-1])))
        raise UserError(f"{path.absolute()}: no {wanted} file in this folder. Correct source.path.")
    return found


def is_hidden(name: str) -> bool:
    """Whether a relative file name has a part that starts with a dot, or is in macOS's folder ``__MACOSX``.

    Version control, editors and macOS keep copies and metadata in such files.
    """
    return any(part == "__MACOSX" or (part.startswith(".") and part not in (".", "..")) for part in name.split("/"))


def skipped(path: Path, *suffixes: str) -> list[str]:
    """Relative names of the files under ``path`` that ``find`` does not return, without hidden files."""
    return [] if path.is_file() else [name for name in _visible_files(path) if not name.lower().endswith(suffixes)]


def skipped_note(names: Sequence[str], reason: str) -> Iterator[Note]:
    """Yield a note that the files ``names`` were not read, if there are any."""
    if names:
        shown = ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")
        count = f"{len(names):,} file{' was' if len(names) == 1 else 's were'}"
        yield Note(f"{count} not read, because {reason}: {shown}.")


def _visible_files(folder: Path) -> list[str]:
    """Relative names of the files under ``folder`` that are not hidden, sorted."""

    def refuse(error: OSError) -> None:
        raise error

    names = (
        file.relative_to(folder).as_posix()
        for root, _, files in os.walk(folder, onerror=refuse)
        for file in (Path(root, name) for name in files)
        if file.is_file()
    )
    return sorted(name for name in names if not is_hidden(name))


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
