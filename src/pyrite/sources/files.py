"""What all file sources share: does the path exist, a digest of contents, the nearest name to a misspelt
one.
"""

import difflib
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from pyrite.errors import UserError

BLOCK = 1 << 20


def existing(path: str, setting: str = "source.path") -> Path:
    """Return ``path`` as a Path, with ``~`` expanded.

    Raises:
        UserError: there is nothing at ``path``; names the absolute path and the ``setting`` that holds it.
    """
    found = Path(path).expanduser()
    if not found.exists():
        raise UserError(f"{found.absolute()}: no such file or folder. Correct {setting} in the run file.")
    return found


def check_characters(where: str, field: str, value: str) -> None:
    """Raise UserError where ``value`` holds half a character (a lone surrogate), which UTF-8 cannot."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: {field} holds half a character ({error.reason}). Mend the text.") from error


def find(path: Path, *suffixes: str) -> list[Path]:
    """The files with one of ``suffixes`` (such as ".xml") at or under ``path``, sorted by relative name.

    Hidden files and what lies in hidden folders are left out: version control and editors put copies there.

    Raises:
        UserError: ``path`` is a folder and holds none.
        OSError: a folder in it cannot be read; ``rglob`` would pass over it.
    """
    if path.is_file():
        return [path]
    found = sorted(
        (
            file
            for file in _below(path)
            if file.suffix.lower() in suffixes
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
            and file.is_file()
        ),
        key=lambda file: file.relative_to(path).as_posix(),
    )
    if not found:
        raise UserError(f"{path.absolute()}: no {' or '.join(suffixes)} file in this folder. Correct source.path.")
    return found


def _below(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise error

    for above, _, names in os.walk(folder, onerror=refuse):
        yield from (Path(above, name) for name in names)


def digest(root: Path, files: Iterable[Path], settings: str) -> str:
    """Hex sha256 of ``settings`` and of each file's contents and name relative to ``root``, in that order."""
    total = hashlib.sha256(settings.encode())
    for file in files:
        name = file.relative_to(root).as_posix() if file != root else ""
        total.update(f"\0{len(name)}:{name}:{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(BLOCK):
                total.update(block)
    return total.hexdigest()


def suggest(wanted: str, names: Iterable[str]) -> str:
    """A sentence that names the nearest of ``names`` to ``wanted``, if any is near, and lists them all."""
    listed = [str(name) for name in names]
    near = difflib.get_close_matches(wanted, listed, n=1, cutoff=0.5)
    hint = f"Did you mean '{near[0]}'? " if near else ""
    shown = ", ".join(listed[:30]) + (", ..." if len(listed) > 30 else "")
    return f"{hint}There are: {shown or 'none'}."
