"""A folder as a store: its local place is itself."""

import fcntl
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from pyrite.errors import UserError
from pyrite.store.base import Absent, Stamp, Standing, Store, stamp_file
from pyrite.store.files import below, drop_folders, replace, write_whole


class FolderStore(Store):
    """A folder as a store. A file is written beside its place, synced, and renamed."""

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
                "Free space or mend its permissions, or name another with --store."
            ) from error

    def exists(self, key: str) -> bool:
        return self.place(key).is_file()

    def stamp(self, key: str) -> Stamp | None:
        path = self.place(key)
        return stamp_file(path) if path.is_file() else None

    def keys(self, prefix: str) -> list[str]:
        root = self.local.resolve()
        return sorted(path.relative_to(root).as_posix() for path in below(self.place(prefix)))

    def read(self, key: str) -> bytes:
        try:
            return self.place(key).read_bytes()
        except FileNotFoundError as error:
            raise Absent(f"the store {self} has no {key}") from error

    def write(self, key: str, data: bytes) -> None:
        write_whole(self.place(key), data)

    def publish(self, local: Path, key: str) -> None:
        replace(local, self.place(key))

    def look(self, key: str) -> Standing | None:
        path = self.place(key)
        return Standing(path.read_bytes(), "") if path.is_file() else None

    def commit(self, key: str, data: bytes, over: Standing | None) -> Standing | None:
        folder = self.place(key).parent
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            now = self.look(key)
            if now != over:
                return now
            self.write(key, data)
            return Standing(data, "")
        finally:
            os.close(descriptor)

    def delete(self, key: str) -> None:
        self.place(key).unlink(missing_ok=True)

    def fetch(self, key: str) -> Path:
        path = self.place(key)
        if not path.is_file():
            raise Absent(f"the store {self} has no {key}")
        return path

    def fetch_folder(self, prefix: str, keys: Sequence[str]) -> Path:
        for key in keys:
            self.fetch(key)
        return self.place(prefix)

    def keep(self, prefix: str) -> None:
        """Nothing to do: scratch lies in the store."""

    def bring_back(self, prefix: str) -> None:
        """Nothing to do: scratch lies in the store."""

    def drop(self, prefix: str, but: str | None = None) -> None:
        drop_folders(self.place(prefix), but)

    def no_room(self) -> UserError:
        free = shutil.disk_usage(self.local).free
        return UserError(
            f"no space left in the store {self} ({free / 1e6:.0f} MB free). Free some, or name another store with "
            "--store, and give the same command again: what is finished is kept."
        )
