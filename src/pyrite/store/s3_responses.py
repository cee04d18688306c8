"""What the answers of an S3 store say, and whether they are whole.

A connection that is cut in the head of an answer leaves one that looks good and says little: it is no answer.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pyrite.store.base import Checksum
from pyrite.store.files import write_atomically


class Seen(NamedTuple):
    """What stands under a key: its checksum, with the digest "" where another tool put it, and its ETag."""

    checksum: Checksum
    version: str


def head_of(answer: dict[str, Any]) -> Seen:
    """What an answer to HEAD says. That its end was cut off, and the digest with it, nobody can see."""
    whole(answer, "ContentLength", "ETag")
    return Seen(Checksum(answer["ContentLength"], digest(answer)), answer["ETag"])


def first_byte_of(answer: dict[str, Any]) -> Seen:
    """What an answer to GET of the first byte says: it has a body, so it cannot be cut off unseen."""
    whole(answer, "ContentLength", "ContentRange", "ETag")
    answer["Body"].read()
    return Seen(Checksum(int(answer["ContentRange"].rpartition("/")[2]), digest(answer)), answer["ETag"])


def digest(answer: dict[str, Any]) -> str:
    """The digest that an object's metadata says, or "". Some servers write metadata's names with a capital."""
    return next((v for name, v in answer["Metadata"].items() if name.lower() == "sha256" and len(v) == 64), "")


def sha256(data: bytes) -> str:
    """Hex sha256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def whole(answer: dict[str, Any], *needed: str) -> None:
    """Raise ConnectionError where ``answer`` lacks one of ``needed``."""
    with cut_heads():
        for name in needed:
            answer[name]


@contextmanager
def cut_heads() -> Iterator[None]:
    """What an answer should have said and did not, in boto3 too, is a connection cut in its head."""
    try:
        yield
    except KeyError as error:
        raise ConnectionError(f"the connection was cut in the head of the answer, before {error}") from error


def note(path: Path, seen: Seen) -> None:
    """Write beside the copy at ``path``, of what another tool put into the store, what it is a copy of."""
    write_atomically(_beside(path), json.dumps({"version": seen.version, "sha256": seen.checksum.sha256}).encode())


def noted(path: Path, version: str) -> str:
    """The digest of the copy at ``path``, where it was fetched of this ``version``; else ""."""
    try:
        found = json.loads(_beside(path).read_bytes())
    except FileNotFoundError:
        return ""
    return str(found["sha256"]) if found["version"] == version else ""


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.from")
