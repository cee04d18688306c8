"""A bucket, or a part of one, as a store; its local place is a folder below PYRITE_CACHE.

Each object carries its sha256 as metadata. What was fetched or published lies in the local place too, and is fetched
anew only where size or digest differ. Safety does not rest on the store's conditional writes: a commit is read back.
"""

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
from pathlib import Path
from typing import Any, TypeVar

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from pyrite.errors import PyriteError, UserError
from pyrite.store.base import Checksum, ObjectCorrupted, ObjectNotFound, Store, VersionedObject, checksum_file
from pyrite.store.files import below, beside_of, drop_folders, replace, write_atomically
from pyrite.store.s3_faults import RETRY_POLICY, NotFound, PreconditionFailed, RetryPolicy, ensure_known, with_retries
from pyrite.store.s3_responses import Seen, cut_heads, digest, first_byte_of, head_of, note, noted, sha256, whole

T = TypeVar("T")

_log = logging.getLogger("pyrite.store")

#: Files over 32 MiB go up and come down in parts, four side by side.
_TRANSFER = TransferConfig(multipart_threshold=32 << 20, multipart_chunksize=32 << 20, max_concurrency=4)

#: Variables that name the store's address, where it is not AWS, in boto3's order.
_ENDPOINT = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")

#: Writers of one fresh key, of which one may win.
_PROBES = 4

#: Times to fetch before believing that an object is not what its digest says: answers may have been cut short.
_SURE = 8

#: Times to fetch an object that somebody replaces meanwhile.
_ROUNDS = 3


class S3Store(Store):
    """s3://bucket/prefix as a store.

    Credentials, region and endpoint are found as boto3 finds them, and AWS_REGION; PYRITE_S3_KMS_KEY names the KMS
    key that objects are encrypted with.

    Raises:
        UserError: ``url`` names no bucket.
    """

    def __init__(self, url: str, retry_policy: RetryPolicy = RETRY_POLICY):
        found = re.fullmatch(r"s3://([A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9])(?:/(.*))?", url)
        if not found:
            raise UserError(f"--store {url}: write s3://bucket/prefix.")
        self._bucket, prefix = found[1], (found[2] or "").strip("/")
        self.url = f"s3://{self._bucket}/{prefix}".rstrip("/")
        self._root = f"{prefix}/" if prefix else ""
        self._patience = retry_policy
        self._variable = next((name for name in _ENDPOINT if os.environ.get(name)), "")
        self._endpoint = os.environ.get(self._variable, "")
        name = sha256(f"{self._endpoint} {self.url}".encode())[:16]
        self.local = Path(os.environ.get("PYRITE_CACHE") or "~/.cache/pyrite").expanduser().absolute() / name
        self._bucket_seen = False

    @cached_property
    def _client(self) -> Any:
        """A client of boto3's; it may be used by several threads. The local place is made with it."""
        try:
            self.local.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{self.local}, where work for {self.url} is done, cannot be made ({error.strerror}). "
                "Mend its permissions, or set PYRITE_CACHE to another folder."
            ) from error
        config = Config(
            connect_timeout=self._patience.connect,
            read_timeout=self._patience.read,
            retries={"mode": "standard", "total_max_attempts": self._patience.quick},
            max_pool_connections=16,
            # Behind an endpoint of one's own, bucket.host is seldom a name that can be looked up.
            s3={"addressing_style": "path"} if self._endpoint else None,
        )
        try:
            region = os.environ.get("AWS_REGION") or None
            client = boto3.session.Session().client("s3", region_name=region, config=config)
        except (BotoCoreError, ValueError) as error:
            raise UserError(f"{self._where}: {str(error).rstrip('.')}; look at your AWS settings.") from error
        ensure_known(client.meta.endpoint_url, self._where, self._variable or "AWS_REGION", self._patience)
        return client

    @property
    def _where(self) -> str:
        return f"the store {self.url}" + (f" at {self._endpoint} ({self._variable})" if self._endpoint else "")

    @property
    def _encryption(self) -> dict[str, str]:
        key = os.environ.get("PYRITE_S3_KMS_KEY")
        return {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key} if key else {}

    def ensure_writable(self) -> None:
        """Prove that a file can be written, and say so where the store lets two writers of one key win."""
        key = f".probe/{uuid.uuid4().hex}"
        assert self._client  # made here, and not by several threads at once

        def wins(writer: int) -> bool:
            try:
                self._put(key, f"{writer}".encode(), IfNoneMatch="*")
            except PreconditionFailed:
                return False
            return True

        try:
            with ThreadPoolExecutor(_PROBES) as pool:
                winners = sum(pool.map(wins, range(_PROBES)))
        except PyriteError:
            with suppress(BotoCoreError, ClientError):  # without retry_policy: there is something to tell
                self._client.delete_object(Bucket=self._bucket, Key=self._root + key)
            raise
        self.delete(key)
        if winners > 1:
            _log.warning(
                "%s lets %d of %d writers of one new file win, so two machines that do the same step may both "
                "publish it. Each reads back what it published, so the result is right; work may be done twice.",
                self._where,
                winners,
                _PROBES,
            )

    def exists(self, key: str) -> bool:
        return self._with_retries(lambda: self._head(key)) is not None

    def checksum(self, key: str) -> Checksum | None:
        """As its metadata says it; where another tool put it, with the digest of what was fetched here, or ""."""
        seen = self._seen(key)
        return seen and seen.checksum

    def keys(self, prefix: str) -> list[str]:
        """As in every store; a key that ends with a slash is what consoles put there to show a folder."""
        return [key for key in self._all_below(prefix) if not key.rpartition("/")[2].startswith(".") and key[-1] != "/"]

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
        replace(local, self.local_path(key))

    def read_versioned(self, key: str) -> VersionedObject | None:
        def get() -> VersionedObject:
            answer = self._client.get_object(Bucket=self._bucket, Key=self._root + key)
            whole(answer, "ContentLength", "ETag")
            data = answer["Body"].read()
            if digest(answer) not in ("", sha256(data)):
                raise ObjectCorrupted(f"{self}/{key} is not what was put there: it was changed or damaged")
            return VersionedObject(data, answer["ETag"])

        try:
            return self._with_retries(get)
        except NotFound:
            return None

    def conditional_put(self, key: str, data: bytes, expected: VersionedObject | None) -> VersionedObject | None:
        condition = {"IfMatch": expected.version} if expected else {"IfNoneMatch": "*"}
        # Refused perhaps for an earlier try of this very call, whose answer was lost: what stands says whose it is.
        with suppress(PreconditionFailed, NotFound):
            self._put(key, data, **condition)
        return self.read_versioned(key)

    def delete(self, key: str) -> None:
        self._with_retries(lambda: self._client.delete_object(Bucket=self._bucket, Key=self._root + key))
        self.local_path(key).unlink(missing_ok=True)

    def fetch(self, key: str) -> Path:
        path = self.local_path(key)
        for _ in range(_ROUNDS):
            seen = self._seen(key)
            if seen is None:
                raise ObjectNotFound(f"the store {self} has no {key}")
            if _is(path, seen.checksum):
                return path
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = beside_of(path)
            try:
                if self._download(key, beside, seen.checksum):
                    if not seen.checksum.sha256:
                        if self._seen(key) != seen:
                            continue  # who knows of which of the two it is a copy
                        note(path, seen._replace(checksum=checksum_file(beside)))
                    replace(beside, path)
                    return path
            except (NotFound, PreconditionFailed):
                continue  # replaced meanwhile
            finally:
                beside.unlink(missing_ok=True)
        raise PyriteError(
            f"{self}/{key} is not what was put there (size or digest differs): it was changed or damaged. "
            "Use --force on the step that makes it."
        )

    def fetch_folder(self, prefix: str, keys: Sequence[str]) -> Path:
        with ThreadPoolExecutor(4) as pool:
            wanted = set(pool.map(self.fetch, keys))
        folder = self.local_path(prefix)
        for path in below(folder):
            if path not in wanted:
                path.unlink()
        return folder

    def save_scratch(self, prefix: str) -> None:
        """Files go up under their digests, and then a list of them; what the list no longer names goes after that."""
        folder, before = self.local_path(prefix), self._kept(prefix)
        now = {path.relative_to(folder).as_posix(): checksum_file(path) for path in below(folder)}
        there = set(before.values())
        for name, checksum in now.items():
            if checksum not in there:
                self._upload(folder / name, _kept_key(prefix, checksum), checksum)
        self._put(_list_key(prefix), json.dumps(now, indent=1).encode())
        for checksum in there - set(now.values()):
            self.delete(_kept_key(prefix, checksum))

    def restore_scratch(self, prefix: str) -> None:
        folder, kept = self.local_path(prefix), self._kept(prefix)
        missing = {name: checksum for name, checksum in kept.items() if not _is(folder / name, checksum)}
        if not missing:
            return
        # First all of it beside its place, so that a folder in it is never seen half there.
        beside = folder.with_name(f".{folder.name}.back")
        shutil.rmtree(beside, ignore_errors=True)
        tops = {name.partition("/")[0] for name in missing}
        wanted = {name: checksum for name, checksum in kept.items() if name.partition("/")[0] in tops}
        if all(self._bring(_kept_key(prefix, checksum), beside / name, checksum) for name, checksum in wanted.items()):
            folder.mkdir(parents=True, exist_ok=True)
            for top in tops:
                if (folder / top).is_dir():
                    shutil.rmtree(folder / top)
                (beside / top).replace(folder / top)
        else:
            _log.warning("what was kept of %s/%s is not whole: that work is done anew", self, prefix)
        shutil.rmtree(beside, ignore_errors=True)

    def delete_scratch(self, prefix: str, but: str | None = None) -> None:
        drop_folders(self.local_path(prefix), but)
        for key in self._all_below(prefix):
            if but is None or not key.startswith(f"{prefix}/{but}/"):
                self.delete(key)

    def disk_full_error(self) -> UserError:
        free = shutil.disk_usage(self.local).free
        return UserError(
            f"no space left in {self.local}, where work for {self} is done ({free / 1e6:.0f} MB free). Free some, or "
            "set PYRITE_CACHE to another folder, and give the same command again: what is finished is kept."
        )

    def _bring(self, key: str, path: Path, checksum: Checksum) -> bool:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return self._download(key, path, checksum)
        except (NotFound, PreconditionFailed):
            return False

    def _with_retries(self, action: Callable[[], T]) -> T:
        return with_retries(action, self._where, self._patience)

    def _seen(self, key: str) -> Seen | None:
        def ask() -> Seen | None:
            seen = self._head(key)
            if seen is None or seen.checksum.sha256:
                return seen
            if known := noted(self.local_path(key), seen.version):
                return seen._replace(checksum=Checksum(seen.checksum.size, known))
            if seen.checksum.size == 0:
                return seen
            return first_byte_of(self._client.get_object(Bucket=self._bucket, Key=self._root + key, Range="bytes=0-0"))

        try:
            return self._with_retries(ask)
        except NotFound:
            return None

    def _head(self, key: str) -> Seen | None:
        try:
            answer = self._client.head_object(Bucket=self._bucket, Key=self._root + key)
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if status in (400, 403) or (status == 404 and not self._bucket_seen):
                # An answer to HEAD has no body, so it cannot say what is wrong; one to a listing can.
                self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._root, MaxKeys=1)
                self._bucket_seen = True
            if status != 404:
                raise
            return None
        return head_of(answer)

    def _stands(self, key: str, checksum: Checksum) -> bool:
        seen = self._head(key)
        return seen is not None and seen.checksum == checksum

    def _put(self, key: str, data: bytes, **condition: str) -> None:
        about = {"Metadata": {"sha256": sha256(data)}, **self._encryption, **condition}

        def put() -> None:
            answer = self._client.put_object(Bucket=self._bucket, Key=self._root + key, Body=data, **about)
            whole(answer, "ETag")

        self._with_retries(put)

    def _upload(self, path: Path, key: str, checksum: Checksum) -> None:
        tries = 0

        def send() -> None:
            nonlocal tries
            tries += 1
            if tries > 1 and self._stands(key, checksum):
                return  # it was the answer that was lost
            about = {"Metadata": {"sha256": checksum.sha256}, **self._encryption}
            with path.open("rb") as file, cut_heads():
                self._client.upload_fileobj(file, self._bucket, self._root + key, ExtraArgs=about, Config=_TRANSFER)

        self._with_retries(send)

    def _download(self, key: str, path: Path, checksum: Checksum) -> bool:
        """Whether what came is what ``checksum`` says."""
        tries = 0

        def receive() -> bool:
            nonlocal tries
            tries += 1
            with path.open("wb") as file, cut_heads():
                self._client.download_fileobj(self._bucket, self._root + key, file, Config=_TRANSFER)
            if not checksum.sha256 or checksum_file(path) == checksum:
                return True
            if tries < _SURE and self._stands(key, checksum):
                raise ConnectionError("what came is not what stands there")
            return False

        return self._with_retries(receive)

    def _all_below(self, prefix: str) -> list[str]:
        def ask() -> list[str]:
            found: list[str] = []
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=f"{self._root}{prefix}/"):
                whole(page, "IsTruncated")
                found += (entry["Key"][len(self._root) :] for entry in page.get("Contents", ()))
            return sorted(found)

        return self._with_retries(ask)

    def _kept(self, prefix: str) -> dict[str, Checksum]:
        current = self.read_versioned(_list_key(prefix))
        return {name: Checksum(*checksum) for name, checksum in json.loads(current.data).items()} if current else {}


def _list_key(prefix: str) -> str:
    return f"{prefix}.kept/list.json"


def _kept_key(prefix: str, checksum: Checksum) -> str:
    return f"{prefix}.kept/{checksum.sha256}"


def _is(path: Path, checksum: Checksum) -> bool:
    return path.is_file() and path.stat().st_size == checksum.size and checksum_file(path) == checksum
