"""Where a run keeps what it makes: a folder of files under keys.

A key is a relative path with forward slashes. A file appears under its key whole or not at all: it is written beside
its place, synced, and renamed. Work in progress lives under ``scratch``, which is on the same file system.
"""

import hashlib
import os
import shutil
from pathlib import Path

from pyrite.errors import PyriteError, UserError

_BLOCK = 1 << 20


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's contents, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


class Store:
    """A folder as a store.

    Raises:
        UserError: the folder cannot be made or written to.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root).expanduser().absolute()

    def __str__(self) -> str:
        return str(self.root)

    def ensure_writable(self) -> None:
        """Make the store's folder and prove that a file can be written there."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".probe-{os.getpid()}"
            probe.write_bytes(b"x")
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"the store {self.root} cannot be written to ({error.strerror}). "
                "Free space or mend its permissions, or name another with --store."
            ) from error

    def path(self, key: str) -> Path:
        """The local path of ``key``, whether or not something is there."""
        path = (self.root / key).resolve()
        if not path.is_relative_to(self.root.resolve()):
            raise PyriteError(f"key {key!r} leaves the store {self.root}")
        return path

    def exists(self, key: str) -> bool:
        return self.path(key).is_file()

    def size(self, key: str) -> int | None:
        """Bytes under ``key``, or None where nothing is."""
        path = self.path(key)
        return path.stat().st_size if path.is_file() else None

    def read(self, key: str) -> bytes:
        """Contents of ``key``. Raises PyriteError where nothing is."""
        try:
            return self.path(key).read_bytes()
        except FileNotFoundError as error:
            raise PyriteError(f"{self.root} has no {key}") from error

    def write(self, key: str, data: bytes) -> None:
        """Put ``data`` under ``key``, whole or not at all."""
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        _sync_folder(path.parent)

    def publish(self, local: Path, key: str) -> None:
        """Move the file ``local`` (on the store's file system) under ``key``, whole or not at all."""
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with local.open("rb") as file:
            os.fsync(file.fileno())
        local.replace(path)
        _sync_folder(path.parent)

    def keys(self, prefix: str) -> list[str]:
        """Keys of all finished files below ``prefix``, sorted."""
        folder = self.path(prefix)
        if not folder.is_dir():
            return []
        return sorted(
            path.relative_to(self.root.resolve()).as_posix()
            for path in folder.rglob("*")
            if path.is_file() and not path.name.startswith(".")
        )

    def delete(self, key: str) -> None:
        """Remove what is under ``key``; nothing there is no error."""
        self.path(key).unlink(missing_ok=True)

    def scratch(self, prefix: str) -> Path:
        """A folder for work in progress that outlives the process."""
        path = self.path(prefix)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def drop(self, prefix: str) -> None:
        """Remove everything below ``prefix``."""
        shutil.rmtree(self.path(prefix), ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
