"""An S3 bucket, or a prefix of one, as a store. Its local folder is a cache below PYRITE_CACHE.

Each object carries its sha256 as metadata. A cached copy is downloaded again only if its size or digest differs.
Correctness does not depend on the server's conditional writes: every conditional put is read back.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from pyrite.errors import PyriteError, UserError
from pyrite.store.base import Checksum, ObjectCorrupted, ObjectNotFound, Store, VersionedObject, checksum_file
from pyrite.store.local_files import delete_folder, list_files, move_atomically, temporary_path, write_atomically
from pyrite.store.s3_errors import (
    RETRY_POLICY,
    NotFound,
    PreconditionFailed,
    RetryPolicy,
    check_host,
    detect_cut_headers,
    require_fields,
    with_retries,
)

T = TypeVar("T")

_log = logging.getLogger("pyrite.store")

#: Files over 32 MiB are transferred in parts, four at a time.
_TRANSFER = TransferConfig(multipart_threshold=32 << 20, multipart_chunksize=32 << 20, max_concurrency=4)

#: Variables for the endpoint of a server other than AWS, in boto3's order.
_ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")

#: Concurrent writers of the probe file; exactly one should win.
_PROBE_WRITERS = 4

#: Downloads with a wrong digest before the object counts as corrupted: responses may be cut short.
_DOWNLOAD_ATTEMPTS = 8

#: Attempts to fetch an object that another writer keeps replacing.
_FETCH_ATTEMPTS = 3


class _ObjectInfo(NamedTuple):
    """Checksum and ETag of an object. The digest is "" if another tool uploaded the object."""

    checksum: Checksum
    version: str


class S3Store(Store):
    """s3://bucket/prefix as a store.

    boto3 finds credentials, region and endpoint; AWS_REGION also sets the region. PYRITE_S3_KMS_KEY is the KMS key that
    encrypts objects.

    Raises:
        UserError: ``url`` lacks a bucket.
    """

    def __init__(self, url: str, retry_policy: RetryPolicy = RETRY_POLICY):
        match = re.fullmatch(r"s3://([A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9])(?:/(.*))?", url)
        if not match:
            raise UserError(f"--store {url} is not a valid S3 URL; use s3://bucket/prefix.")
        self._bucket, prefix = match[1], (match[2] or "").strip("/")
        self.url = f"s3://{self._bucket}/{prefix}".rstrip("/")
        self._root = f"{prefix}/" if prefix else ""
        self._retry_policy = retry_policy
        self._endpoint_variable = next((name for name in _ENDPOINT_VARIABLES if os.environ.get(name)), "")
        self._endpoint = os.environ.get(self._endpoint_variable, "")
        name = _sha256(f"{self._endpoint} {self.url}".encode())[:16]
        self.local = Path(os.environ.get("PYRITE_CACHE") or "~/.cache/pyrite").expanduser().absolute() / name
        self._bucket_exists = False

    @cached_property
    def _client(self) -> Any:
        """A boto3 client, shared by threads. Creating it also creates the local folder."""
        try:
            self.local.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot create {self.local}, the cache of {self.url} ({error.strerror}). "
                "Fix its permissions, or set PYRITE_CACHE to another folder."
            ) from error
        policy = self._retry_policy
        config = Config(
            connect_timeout=policy.connect_timeout,
            read_timeout=policy.read_timeout,
            retries={"mode": "standard", "total_max_attempts": policy.boto_attempts},
            max_pool_connections=16,
            # Some servers reject requests with checksum headers. Pyrite verifies its own sha256 of each object.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            # A custom endpoint rarely has a DNS record for bucket.host.
            s3={"addressing_style": "path"} if self._endpoint else None,
        )
        try:
            region = os.environ.get("AWS_REGION") or None
            client = boto3.session.Session().client("s3", region_name=region, config=config)
        except (BotoCoreError, ValueError) as error:
            raise UserError(f"{self._name}: {str(error).rstrip('.')}; check your AWS settings.") from error
        check_host(client.meta.endpoint_url, self._name, self._endpoint_variable or "AWS_REGION", policy)
        return client

    @property
    def _name(self) -> str:
        """The store as error messages name it."""
        return f"the store {self.url}" + (f" at {self._endpoint} ({self._endpoint_variable})" if self._endpoint else "")

    @property
    def _encryption(self) -> dict[str, str]:
        key = os.environ.get("PYRITE_S3_KMS_KEY")
        return {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key} if key else {}

    def ensure_writable(self) -> None:
        """Write and delete a probe file, and warn if the store lets several writers create the same key."""
        key = f".probe/{uuid.uuid4().hex}"
        assert self._client  # created before the threads start

        def wins(writer: int) -> bool:
            try:
                self._put(key, f"{writer}".encode(), IfNoneMatch="*")
            except PreconditionFailed:
                return False
            return True

        try:
            with ThreadPoolExecutor(_PROBE_WRITERS) as pool:
                winners = sum(pool.map(wins, range(_PROBE_WRITERS)))
        except PyriteError:
            with suppress(BotoCoreError, ClientError):  # one attempt only, so that the error is reported soon
                self._client.delete_object(Bucket=self._bucket, Key=self._root + key)
            raise
        self.delete(key)
        if winners > 1:
            _log.warning(
                "%s let %d of %d writers create the same file, so two machines may both publish the same step. "
                "Results stay correct, because each writer reads back what it wrote, but work may be repeated.",
                self._name,
                winners,
                _PROBE_WRITERS,
            )

    def exists(self, key: str) -> bool:
        return self._with_retries(lambda: self._head(key)) is not None

    def checksum(self, key: str) -> Checksum | None:
        """Reads the object's metadata. If another tool uploaded it, the digest is that of the cached copy, or ""."""
        info = self._info(key)
        return info and info.checksum

    def keys(self, prefix: str) -> list[str]:
        """Skips keys that end in a slash, which S3 consoles create to show a folder."""
        return [key for key in self._list(prefix) if not key.rpartition("/")[2].startswith(".") and key[-1] != "/"]

    def read(self, key: str) -> bytes:
        current = self.read_versioned(key)
        if current is None:
            raise ObjectNotFound(f"the store {self} has no {key}")
        return current.data

    def write(self, key: str, data: bytes) -> None:
        self._put(key, data)
        write_atomically(self.local_path(key), data)

    def publish(self, local: Path, key: str) -> None:
        self._upload(local, key, checksum_file(local))
        move_atomically(local, self.local_path(key))

    def read_versioned(self, key: str) -> VersionedObject | None:
        def get() -> VersionedObject:
            response = self._client.get_object(Bucket=self._bucket, Key=self._root + key)
            require_fields(response, "ContentLength", "ETag")
            data = response["Body"].read()
            if _metadata_digest(response) not in ("", _sha256(data)):
                raise ObjectCorrupted(f"{self}/{key} does not match its sha256: it was changed or damaged")
            return VersionedObject(data, response["ETag"])

        try:
            return self._with_retries(get)
        except NotFound:
            return None

    def conditional_put(self, key: str, data: bytes, expected: VersionedObject | None) -> VersionedObject | None:
        condition = {"IfMatch": expected.version} if expected else {"IfNoneMatch": "*"}
        # 412 may be caused by an earlier attempt of this call whose response was lost; reading back shows who won.
        with suppress(PreconditionFailed, NotFound):
            self._put(key, data, **condition)
        return self.read_versioned(key)

    def delete(self, key: str) -> None:
        self._with_retries(lambda: self._client.delete_object(Bucket=self._bucket, Key=self._root + key))
        self.local_path(key).unlink(missing_ok=True)

    def fetch(self, key: str) -> Path:
        path = self.local_path(key)
        for _ in range(_FETCH_ATTEMPTS):
            info = self._info(key)
            if info is None:
                raise ObjectNotFound(f"the store {self} has no {key}")
            if _matches(path, info.checksum):
                return path
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = temporary_path(path)
            try:
                if self._download(key, temporary, info.checksum):
                    if not info.checksum.sha256:
                        if self._info(key) != info:
                            continue  # replaced during the download, so the copy's version is unknown
                        _save_origin(path, info.version, checksum_file(temporary).sha256)
                    move_atomically(temporary, path)
                    return path
            except (NotFound, PreconditionFailed):
                continue  # replaced or deleted during the download
            finally:
                temporary.unlink(missing_ok=True)
        raise PyriteError(
            f"{self}/{key} does not match its size or sha256: it was changed or damaged. "
            "Run the step that creates it with --force."
        )

    def fetch_folder(self, prefix: str, keys: Sequence[str]) -> Path:
        with ThreadPoolExecutor(4) as pool:
            fetched = set(pool.map(self.fetch, keys))
        folder = self.local_path(prefix)
        for path in list_files(folder):
            if path not in fetched:
                path.unlink()
        return folder

    def save_scratch(self, prefix: str) -> None:
        """Upload files under their digests, then their index, then delete files that the index no longer names."""
        folder, saved = self.local_path(prefix), set(self._saved_files(prefix).values())
        current = {path.relative_to(folder).as_posix(): checksum_file(path) for path in list_files(folder)}
        for name, checksum in current.items():
            if checksum not in saved:
                self._upload(folder / name, _saved_key(prefix, checksum), checksum)
        self._put(_index_key(prefix), json.dumps(current, indent=1).encode())
        for checksum in saved - set(current.values()):
            self.delete(_saved_key(prefix, checksum))

    def restore_scratch(self, prefix: str) -> None:
        folder, saved = self.local_path(prefix), self._saved_files(prefix)
        # A top-level folder, such as a checkpoint, is restored completely or not at all.
        incomplete = {
            name.partition("/")[0] for name, checksum in saved.items() if not _matches(folder / name, checksum)
        }
        if not incomplete:
            return
        temporary = folder.with_name(f".{folder.name}.restoring")
        shutil.rmtree(temporary, ignore_errors=True)
        files = {name: checksum for name, checksum in saved.items() if name.partition("/")[0] in incomplete}
        if all(self._download_saved(prefix, checksum, temporary / name) for name, checksum in files.items()):
            folder.mkdir(parents=True, exist_ok=True)
            for name in incomplete:
                if (folder / name).is_dir():
                    shutil.rmtree(folder / name)
                (temporary / name).replace(folder / name)
        else:
            _log.warning("the work saved in %s/%s is incomplete; starting without it", self, prefix)
        shutil.rmtree(temporary, ignore_errors=True)

    def delete_scratch(self, prefix: str, exclude: str | None = None) -> None:
        delete_folder(self.local_path(prefix), exclude)
        for key in self._list(prefix):
            if exclude is None or not key.startswith(f"{prefix}/{exclude}/"):
                self.delete(key)

    def disk_full_error(self) -> UserError:
        free = shutil.disk_usage(self.local).free
        return UserError(
            f"no space left in {self.local}, the cache of {self} ({free / 1e6:.0f} MB free). Free some, or set "
            "PYRITE_CACHE to another folder, then run the same command again: finished steps are not repeated."
        )

    def _with_retries(self, action: Callable[[], T]) -> T:
        return with_retries(action, self._name, self._retry_policy)

    def _info(self, key: str) -> _ObjectInfo | None:
        def get() -> _ObjectInfo | None:
            info = self._head(key)
            if info is None or info.checksum.sha256:
                return info
            if digest := _origin_digest(self.local_path(key), info.version):
                return info._replace(checksum=Checksum(info.checksum.size, digest))
            if info.checksum.size == 0:
                return info
            # The metadata may be missing because headers were cut off. A response with a body has complete headers.
            response = self._client.get_object(Bucket=self._bucket, Key=self._root + key, Range="bytes=0-0")
            require_fields(response, "ContentLength", "ContentRange", "ETag")
            response["Body"].read()
            size = int(response["ContentRange"].rpartition("/")[2])
            return _ObjectInfo(Checksum(size, _metadata_digest(response)), response["ETag"])

        try:
            return self._with_retries(get)
        except NotFound:
            return None

    def _head(self, key: str) -> _ObjectInfo | None:
        try:
            response = self._client.head_object(Bucket=self._bucket, Key=self._root + key)
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if status in (400, 403) or (status == 404 and not self._bucket_exists):
                # A response to HEAD has no body with an error code, but a listing fails with one.
                self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._root, MaxKeys=1)
                self._bucket_exists = True
            if status != 404:
                raise
            return None
        require_fields(response, "ContentLength", "ETag")
        return _ObjectInfo(Checksum(response["ContentLength"], _metadata_digest(response)), response["ETag"])

    def _has(self, key: str, checksum: Checksum) -> bool:
        info = self._head(key)
        return info is not None and info.checksum == checksum

    def _put(self, key: str, data: bytes, **condition: str) -> None:
        extra = {"Metadata": {"sha256": _sha256(data)}, **self._encryption, **condition}

        def put() -> None:
            response = self._client.put_object(Bucket=self._bucket, Key=self._root + key, Body=data, **extra)
            require_fields(response, "ETag")

        self._with_retries(put)

    def _upload(self, path: Path, key: str, checksum: Checksum) -> None:
        extra = {"Metadata": {"sha256": checksum.sha256}, **self._encryption}
        attempts = count(1)

        def upload() -> None:
            if next(attempts) > 1 and self._has(key, checksum):
                return  # only the response was lost
            with path.open("rb") as file, detect_cut_headers():
                self._client.upload_fileobj(file, self._bucket, self._root + key, ExtraArgs=extra, Config=_TRANSFER)

        self._with_retries(upload)

    def _download(self, key: str, path: Path, checksum: Checksum) -> bool:
        """Download ``key`` to ``path``. Returns whether it matches ``checksum``; an unknown digest always matches."""
        attempts = count(1)

        def download() -> bool:
            attempt = next(attempts)
            with path.open("wb") as file, detect_cut_headers():
                self._client.download_fileobj(self._bucket, self._root + key, file, Config=_TRANSFER)
            if not checksum.sha256 or checksum_file(path) == checksum:
                return True
            if attempt < _DOWNLOAD_ATTEMPTS and self._has(key, checksum):
                raise ConnectionError("the download does not match the object's sha256")
            return False

        return self._with_retries(download)

    def _download_saved(self, prefix: str, checksum: Checksum, path: Path) -> bool:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return self._download(_saved_key(prefix, checksum), path, checksum)
        except (NotFound, PreconditionFailed):
            return False

    def _list(self, prefix: str) -> list[str]:
        def list_keys() -> list[str]:
            keys: list[str] = []
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=f"{self._root}{prefix}/"):
                require_fields(page, "IsTruncated")
                keys += (entry["Key"].removeprefix(self._root) for entry in page.get("Contents", ()))
            return sorted(keys)

        return self._with_retries(list_keys)

    def _saved_files(self, prefix: str) -> dict[str, Checksum]:
        index = self.read_versioned(_index_key(prefix))
        return {name: Checksum(*checksum) for name, checksum in json.loads(index.data).items()} if index else {}


def _index_key(prefix: str) -> str:
    return f"{prefix}.saved/index.json"


def _saved_key(prefix: str, checksum: Checksum) -> str:
    return f"{prefix}.saved/{checksum.sha256}"


def _matches(path: Path, checksum: Checksum) -> bool:
    return path.is_file() and path.stat().st_size == checksum.size and checksum_file(path) == checksum


def _metadata_digest(response: dict[str, Any]) -> str:
    """The sha256 in an object's metadata, or "". Some servers capitalize metadata names."""
    return next((v for name, v in response["Metadata"].items() if name.lower() == "sha256" and len(v) == 64), "")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _save_origin(path: Path, version: str, sha256: str) -> None:
    """Record, next to the cached copy at ``path`` of another tool's object, its version and digest."""
    write_atomically(_origin_path(path), json.dumps({"version": version, "sha256": sha256}).encode())


def _origin_digest(path: Path, version: str) -> str:
    """The digest of the cached copy at ``path``, if it was downloaded from this ``version``; else ""."""
    try:
        origin = json.loads(_origin_path(path).read_bytes())
    except FileNotFoundError:
        return ""
    return str(origin["sha256"]) if origin["version"] == version else ""


def _origin_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.origin")
