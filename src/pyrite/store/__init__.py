"""Storage for runs: files addressed by keys, in a local folder or in an S3 bucket."""

from typing import TYPE_CHECKING

from pyrite.errors import UserError
from pyrite.store.base import (
    Checksum,
    ObjectCorrupted,
    ObjectNotFound,
    Store,
    VersionedObject,
    checksum_file,
    sha256_file,
)
from pyrite.store.folder import FolderStore

if TYPE_CHECKING:
    from pyrite.store.s3_errors import RetryPolicy

__all__ = [
    "Checksum",
    "FolderStore",
    "ObjectCorrupted",
    "ObjectNotFound",
    "Store",
    "VersionedObject",
    "checksum_file",
    "open_store",
    "sha256_file",
]


def open_store(url: str, retry_policy: "RetryPolicy | None" = None) -> Store:
    """Open the store at ``url``: a folder's path, or s3://bucket/prefix.

    Args:
        retry_policy: timeouts and retries of an S3 store; by default, those of a worker.

    Raises:
        UserError: the URL has another scheme, or lacks a bucket.
    """
    scheme, separator, _ = url.partition("://")
    if not separator:
        return FolderStore(url)
    if scheme == "s3":
        # Imported here: boto3 is slow to import, and a folder does not need it.
        from pyrite.store.s3 import S3Store

        return S3Store(url, retry_policy) if retry_policy else S3Store(url)
    raise UserError(f"--store {url}: {scheme}:// is not supported; use a folder's path or s3://bucket/prefix.")
