"""Where a run keeps what it makes: files under keys, in a folder or on S3."""

from typing import TYPE_CHECKING

from pyrite.errors import UserError
from pyrite.store.base import Absent, Damaged, Stamp, Standing, Store, sha256_file, stamp_file
from pyrite.store.folder import FolderStore

if TYPE_CHECKING:
    from pyrite.store.s3_faults import Patience

__all__ = ["Absent", "Damaged", "FolderStore", "Stamp", "Standing", "Store", "open_store", "sha256_file", "stamp_file"]


def open_store(url: str, patience: "Patience | None" = None) -> Store:
    """The store at ``url``: a folder's path, or s3://bucket/prefix.

    Args:
        patience: with an S3 store that does not answer; None: a worker's, which has nothing else to do.

    Raises:
        UserError: it is a URL of another kind, or names no bucket.
    """
    scheme, separator, _ = url.partition("://")
    if not separator:
        return FolderStore(url)
    if scheme == "s3":
        # Here, so that a run that keeps its store in a folder does not wait for boto3.
        from pyrite.store.s3 import S3Store

        return S3Store(url, patience) if patience else S3Store(url)
    raise UserError(f"--store {url}: a store is a folder's path or s3://bucket/prefix; {scheme}:// is not known.")
