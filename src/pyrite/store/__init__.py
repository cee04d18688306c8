"""Where a run keeps what it makes: files under keys, in a folder or on S3."""

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
    from pyrite.store.s3_faults import RetryPolicy

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
    """The store at ``url``: a folder's path, or s3://bucket/prefix.

    Args:
        retry_policy: with an S3 store that does not answer; None: a worker's, which has nothing else to do.

    Raises:
        UserError: it is a URL of another kind, or names no bucket.
    """
    scheme, separator, _ = url.partition("://")
    if not separator:
        return FolderStore(url)
    if scheme == "s3":
        # Here, so that a run that keeps its store in a folder does not wait for boto3.
        from pyrite.store.s3 import S3Store

        return S3Store(url, retry_policy) if retry_policy else S3Store(url)
    raise UserError(f"--store {url}: a store is a folder's path or s3://bucket/prefix; {scheme}:// is not known.")
