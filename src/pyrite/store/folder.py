"""A local folder as a store: ``local`` is the store itself."""

import fcntl
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from pyrite.errors import UserError
from pyrite.store.base import Checksum, ObjectNotFound, Store, VersionedObject, checksum_file
from pyrite.store.local_files import delete_folder, list_files, move_atomically, write_atomically


class FolderStore(Store):
    """A folder as a store. Writes go to a temporary file, which is synced and renamed."""

    def __init__(self, root: str | Path):
        self.local = Path(root).expanduser().absolute()
        self.url = str(self.local)

    def ensure_writable(self) -> None:
        try:
            self.local.mkdir(parents=True, exist_ok=True)
            probe = self.local / f".probe-{os.getpid()}"
            probe.write_bytes(b"x")
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"the store {self} cannot be written to ({error.strerror}). "
                "Free space or fix its permissions, or choose another folder with --store."
            ) from error

    def exists(self, key: str) -> bool:
        return self.local_path(key).is_file()

    def checksum(self, key: str) -> Checksum | None:
        path = self.local_path(key)
        return checksum_file(path) if path.is_file() else None

    def keys(self, prefix: str) -> list[str]:
        root = self.local.resolve()
        return sorted(path.relative_to(root).as_posix() for path in list_files(self.local_path(prefix)))

    def read(self, key: str) -> bytes:
        try:
            return self.local_path(key).read_bytes()
        except FileNotFoundError as error:
            raise ObjectNotFound(f"the store {self} has no {key}") from error

    def write(self, key: str, data: bytes) -> None:
        write_atomically(self.local_path(key), data)

    def publish(self, local: Path, key: str) -> None:
        move_atomically(local, self.local_path(key))

    def read_versioned(self, key: str) -> VersionedObject | None:
        path = self.local_path(key)
        return VersionedObject(path.read_bytes(), "") if path.is_file() else None

    def conditional_put(self, key: str, data: bytes, expected: VersionedObject | None) -> VersionedObject | None:
        folder = self.local_path(key).parent
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            current = self.read_versioned(key)
            if current != expected:
                return current
            self.write(key, data)
            return VersionedObject(data, "")
        finally:
            os.close(descriptor)

    def delete(self, key: str) -> None:
        self.local_path(key).unlink(missing_ok=True)

    def fetch(self, key: str) -> Path:
        path = self.local_path(key)
        if not path.is_file():
            raise ObjectNotFound(f"the store {self} has no {key}")
        return path

    def fetch_folder(self, prefix: str, keys: Sequence[str]) -> Path:
        for key in keys:
            self.fetch(key)
        return self.local_path(prefix)

    def save_scratch(self, prefix: str) -> None:
        """Nothing to do: scratch is in the store already."""

    def restore_scratch(self, prefix: str) -> None:
        """Nothing to do: scratch is in the store already."""

    def delete_scratch(self, prefix: str, exclude: str | None = None) -> None:
        delete_folder(self.local_path(prefix), exclude)

    def disk_full_error(self) -> UserError:
        free = shutil.disk_usage(self.local).free
        return UserError(
            f"no space left in the store {self} ({free / 1e6:.0f} MB free). Free some, or choose another store with "
            "--store, then run the same command again: finished steps are not repeated."
        )
