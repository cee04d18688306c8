"""Sources that lie on S3: brought to this machine as a store brings its files."""

from pathlib import Path

from pyrite.errors import UserError
from pyrite.store import open_store


def is_remote(path: str) -> bool:
    """Whether ``path`` is an address rather than a path of this machine."""
    return path.startswith("s3://")


def brought(url: str, setting: str) -> Path:
    """The local path of a copy of the file, or of the folder, at s3://bucket/key. What is here already stays.

    Raises:
        UserError: nothing is there; names the ``setting`` that holds the address.
    """
    above, _, name = url.rstrip("/").rpartition("/")
    store = open_store(above)
    if store.exists(name):
        return store.fetch(name)
    keys = store.keys(name)
    if not keys:
        raise UserError(f"{setting}: there is neither a file nor a folder at {url}.")
    return store.fetch_folder(name, keys)
