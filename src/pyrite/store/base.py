"""The interface of a store.

A key is a relative path with forward slashes. Writes are atomic: a reader sees the complete file or none. Every store
has a local folder with the same layout, for locks, logs, work in progress, and copies of remote files.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pyrite.errors import PyriteError, UserError


class Checksum(NamedTuple):
    """Size in bytes and hex sha256; equal checksums mean equal contents."""

    size: int
    sha256: str


class VersionedObject(NamedTuple):
    """The contents of a key at one moment. ``version`` is the store's identifier for them (S3: the ETag)."""

    data: bytes
    version: str


class ObjectNotFound(PyriteError):
    """A key that should exist does not."""


class ObjectCorrupted(PyriteError):
    """The contents of a key do not match the checksum they were written with."""


class Store(ABC):
    """Files addressed by keys. ``url`` opens the same store again; ``local`` is the root of its local folder."""

    url: str
    local: Path

    def __str__(self) -> str:
        return self.url

    @abstractmethod
    def ensure_writable(self) -> None:
        """Write and delete a probe file. Raises UserError if the store cannot be written to."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether ``key`` exists."""

    @abstractmethod
    def checksum(self, key: str) -> Checksum | None:
        """Size and digest of ``key``; None if it does not exist."""

    @abstractmethod
    def keys(self, prefix: str) -> list[str]:
        """Keys of all complete files below ``prefix``, sorted."""

    @abstractmethod
    def read(self, key: str) -> bytes:
        """Contents of ``key``. Raises ObjectNotFound."""

    @abstractmethod
    def write(self, key: str, data: bytes) -> None:
        """Write ``data`` to ``key`` atomically."""

    @abstractmethod
    def publish(self, local: Path, key: str) -> None:
        """Move the file ``local``, which is in the store's local folder, to ``key`` atomically."""

    @abstractmethod
    def read_versioned(self, key: str) -> VersionedObject | None:
        """Contents and version of ``key``; None if it does not exist."""

    @abstractmethod
    def conditional_put(self, key: str, data: bytes, expected: VersionedObject | None) -> VersionedObject | None:
        """Write ``data`` to ``key`` only if its current contents are still ``expected`` (None: it does not exist).

        ``data`` must be unique to this writer: if the store's response is lost, reading back shows whether it was
        written.

        Returns:
            The contents of ``key`` afterwards: ``data``, or another writer's; None if ``expected`` was deleted.
        """

    @abstractmethod
    def delete(self, key: str) -> None:
        """Delete ``key``, if it exists."""

    @abstractmethod
    def fetch(self, key: str) -> Path:
        """Local path of a read-only copy of ``key``. Raises ObjectNotFound."""

    @abstractmethod
    def fetch_folder(self, prefix: str, keys: Sequence[str]) -> Path:
        """Local path of a folder with copies of ``keys``, all of them below ``prefix``. Raises ObjectNotFound."""

    def local_path(self, key: str) -> Path:
        """The local path for ``key``: for locks, logs and work in progress. It need not exist."""
        path = (self.local / key).resolve()
        if not path.is_relative_to(self.local.resolve()):
            raise PyriteError(f"key {key!r} is outside the store {self}")
        return path

    def scratch(self, prefix: str) -> Path:
        """A local folder for work in progress that survives the process."""
        path = self.local_path(prefix)
        path.mkdir(parents=True, exist_ok=True)
        return path

    @abstractmethod
    def save_scratch(self, prefix: str) -> None:
        """Save the scratch folder ``prefix`` in the store, so that it survives this machine.

        Replaces the previous save atomically.
        """

    @abstractmethod
    def restore_scratch(self, prefix: str) -> None:
        """Copy the saved scratch folder ``prefix`` back. Other files in the local folder stay."""

    @abstractmethod
    def delete_scratch(self, prefix: str, exclude: str | None = None) -> None:
        """Delete all scratch below ``prefix``, local and saved, except its subfolder ``exclude``."""

    @abstractmethod
    def disk_full_error(self) -> UserError:
        """The error to show when the disk of the local folder is full."""


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum_file(path: Path) -> Checksum:
    """Size and digest of a local file."""
    return Checksum(path.stat().st_size, sha256_file(path))
