"""What a store can do, wherever it is.

A key is a relative path with forward slashes. A file appears under its key whole or not at all. Every store has a
local place: a folder laid out by the same keys, for locks, logs and work in progress, and for local copies of what
the store keeps elsewhere.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pyrite.errors import PyriteError, UserError

_BLOCK = 1 << 20


class Checksum(NamedTuple):
    """What tells whether contents are the same: size in bytes and hex sha256."""

    size: int
    sha256: str


class VersionedObject(NamedTuple):
    """What stands under a key at one moment. ``version`` is the store's own word for it."""

    data: bytes
    version: str


class ObjectNotFound(PyriteError):
    """Nothing stands under a key that should have something."""


class ObjectCorrupted(PyriteError):
    """What stands under a key is not what was put there: it was changed or damaged."""


class Store(ABC):
    """Files under keys. ``url`` opens the same store again; ``local`` is the root of its local place."""

    url: str
    local: Path

    def __str__(self) -> str:
        return self.url

    @abstractmethod
    def ensure_writable(self) -> None:
        """Prove that a file can be written. Raises UserError where it cannot."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether something stands under ``key``."""

    @abstractmethod
    def checksum(self, key: str) -> Checksum | None:
        """Size and digest of what stands under ``key``, or None where nothing does."""

    @abstractmethod
    def keys(self, prefix: str) -> list[str]:
        """Keys of all finished files below ``prefix``, sorted."""

    @abstractmethod
    def read(self, key: str) -> bytes:
        """Contents of ``key``. Raises ObjectNotFound where nothing is."""

    @abstractmethod
    def write(self, key: str, data: bytes) -> None:
        """Put ``data`` under ``key``, whole or not at all."""

    @abstractmethod
    def publish(self, local: Path, key: str) -> None:
        """Move the file ``local``, which lies below the store's local place, under ``key``, whole or not at all."""

    @abstractmethod
    def read_versioned(self, key: str) -> VersionedObject | None:
        """What stands under ``key`` now, or None where nothing does."""

    @abstractmethod
    def conditional_put(self, key: str, data: bytes, expected: VersionedObject | None) -> VersionedObject | None:
        """Put ``data`` under ``key`` only where ``over`` (None: nothing) still stands there.

        ``data`` must be unlike anybody else's, so that it says of itself who put it there. An answer of the store that
        is lost is found out by reading back; nothing is ever taken away.

        Returns:
            What stands there now: ``data``, or what somebody else has put there; None where ``over`` was taken away.
        """

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove what is under ``key``; nothing there is no error."""

    @abstractmethod
    def fetch(self, key: str) -> Path:
        """The local path of a file with the contents of ``key``; to be read only.

        Raises:
            ObjectNotFound: nothing stands there.
        """

    @abstractmethod
    def fetch_folder(self, prefix: str, keys: Sequence[str]) -> Path:
        """The local path of a folder with the contents of ``keys``, all of which are below ``prefix``.

        Raises:
            ObjectNotFound: something is not there.
        """

    def local_path(self, key: str) -> Path:
        """The local path for ``key``: for locks, logs and work in progress. Nothing need be there."""
        path = (self.local / key).resolve()
        if not path.is_relative_to(self.local.resolve()):
            raise PyriteError(f"key {key!r} leaves the store {self}")
        return path

    def scratch(self, prefix: str) -> Path:
        """A local folder for work in progress that outlives the process."""
        path = self.local_path(prefix)
        path.mkdir(parents=True, exist_ok=True)
        return path

    @abstractmethod
    def save_scratch(self, prefix: str) -> None:
        """Make what now lies in the scratch folder ``prefix`` outlive this machine. It replaces what was kept before.

        Killed in the middle, it leaves what was kept before.
        """

    @abstractmethod
    def restore_scratch(self, prefix: str) -> None:
        """Put what was kept of the scratch folder ``prefix`` back into it, beside what is there."""

    @abstractmethod
    def delete_scratch(self, prefix: str, but: str | None = None) -> None:
        """Remove all scratch below ``prefix``, kept or not; the folder named ``but`` in it stays."""

    @abstractmethod
    def disk_full_error(self) -> UserError:
        """What to tell a person when the disk of the local place is full."""


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's contents, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def checksum_file(path: Path) -> Checksum:
    """Size and digest of a local file."""
    return Checksum(path.stat().st_size, sha256_file(path))
