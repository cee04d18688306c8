"""Reading .tar, .tar.xz, .tar.gz, .tgz, .tar.bz2 and .zip without trusting them.

Nothing is written to disk. Members that would climb out of a folder, links and devices are refused all the
same: an archive that holds one was made to do harm or is not the one that was meant.
"""

import bz2
import gzip
import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from pyrite.errors import UserError


@dataclass(frozen=True, slots=True)
class Limits:
    """How much an archive may unpack to before it counts as a decompression bomb."""

    members: int = 500_000
    member_bytes: int = 64 << 20
    total_bytes: int = 2 << 30


LIMITS = Limits()

_BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    OSError,
    NotImplementedError,  # zipfile, of a member packed in a way that it cannot unpack
    UnicodeDecodeError,
)


def members(archive: Path, suffix: str | tuple[str, ...], limits: Limits = LIMITS) -> Iterator[tuple[str, bytes]]:
    """Yield (name, contents) of each regular file whose name ends with (one) ``suffix``, in the archive's order.

    Every member is checked, also those that are not yielded.

    Raises:
        UserError: not an archive, broken or cut short, over ``limits``, or a member is absolute, climbs out
            of its folder, or is a link or device. Names the archive and the member.
    """
    try:
        with archive.open("rb") as stream:
            head = stream.read(6)
        if head.startswith(b"PK"):
            yield from _zip(archive, suffix, limits)
        else:
            yield from _tar(archive, head, suffix, limits)
    except UserError:
        raise
    except _BROKEN as error:
        raise UserError(
            f"{archive.absolute()}: not a readable archive ({error or type(error).__name__}). Pyrite reads "
            ".tar.xz, .tar.gz, .tgz, .tar.bz2, .tar and .zip; if it is one of these, it is damaged: get it "
            "again."
        ) from error


class _Bounded:
    """The unpacked bytes of a tar archive: forward only, refuses to give more than the limits allow."""

    def __init__(self, stream: IO[bytes], archive: Path, limits: Limits) -> None:
        self._stream, self._archive, self._limits = stream, archive, limits
        self._position = 0
        self.last = b""

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        # tarfile reads long-name and pax headers in one go, whatever size they claim.
        if size > self._limits.member_bytes + tarfile.BLOCKSIZE:
            raise _bomb(self._archive, "a header", self._limits)
        self.last = self._stream.read(size)
        self._position += len(self.last)
        if self._position > self._limits.total_bytes:
            raise _bomb(self._archive, "the whole", self._limits)
        return self.last

    def seek(self, position: int, whence: int = 0) -> int:
        if whence != 0 or position < self._position:
            raise tarfile.StreamError("seeking backwards")
        while self._position < position and self.read(min(1 << 20, position - self._position)):
            pass
        return self._position


def _tar(archive: Path, head: bytes, suffix: str | tuple[str, ...], limits: Limits) -> Iterator[tuple[str, bytes]]:
    with _unpacked(archive, head) as stream:
        bounded = _Bounded(stream, archive, limits)
        with tarfile.open(fileobj=cast(IO[bytes], bounded), mode="r:") as tar:
            for count, member in enumerate(tar):
                _check(archive, member.name, member.size, count, limits)
                if not (member.isfile() or member.isdir()):
                    raise _refused(archive, member.name, "is a link or a device")
                if member.isfile() and member.name.endswith(suffix):
                    content = tar.extractfile(member)
                    assert content is not None
                    yield member.name, content.read()
                # Otherwise tarfile keeps every header it has read.
                tar.members.clear()  # type: ignore[attr-defined]
        # tarfile takes a header that is cut off or damaged for the end; a whole archive ends in a block of
        # zeros.
        if len(bounded.last) < tarfile.BLOCKSIZE or bounded.last.strip(b"\0"):
            raise EOFError("it ends in the middle")


def _unpacked(archive: Path, head: bytes) -> IO[bytes]:
    if head.startswith(b"\xfd7zXZ"):
        return cast(IO[bytes], lzma.open(archive))
    if head.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.open(archive))
    if head.startswith(b"BZh"):
        return cast(IO[bytes], bz2.open(archive))
    return archive.open("rb")


def _zip(archive: Path, suffix: str | tuple[str, ...], limits: Limits) -> Iterator[tuple[str, bytes]]:
    total = 0
    with zipfile.ZipFile(archive) as opened:
        for count, info in enumerate(opened.infolist()):
            _check(archive, info.filename, info.file_size, count, limits)
            total += info.file_size
            if total > limits.total_bytes:
                raise _bomb(archive, "the whole", limits)
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _refused(archive, info.filename, "is a link or a device")
            if info.is_dir() or not info.filename.endswith(suffix):
                continue
            if info.flag_bits & 1:
                raise _refused(archive, info.filename, "is encrypted")
            # zipfile gives no more than the size that the directory claims, and checks it by the checksum.
            yield info.filename, opened.read(info)


def _check(archive: Path, name: str, size: int, count: int, limits: Limits) -> None:
    parts = name.replace("\\", "/").split("/")
    if parts[0] == "" or re.match(r"[A-Za-z]:", name):
        raise _refused(archive, name, "has an absolute path")
    if ".." in parts:
        raise _refused(archive, name, "climbs out of the archive's folder")
    if size > limits.member_bytes:
        raise _bomb(archive, f"member '{name}'", limits)
    if count >= limits.members:
        raise UserError(f"{archive.absolute()}: more than {limits.members:,} members. Unpack it and name the folder.")


def _refused(archive: Path, name: str, why: str) -> UserError:
    return UserError(
        f"{archive.absolute()}: member '{name}' {why}; the archive is refused. Get it from where it was "
        "published, or unpack it yourself and name the folder."
    )


def _bomb(archive: Path, what: str, limits: Limits) -> UserError:
    return UserError(
        f"{archive.absolute()}: {what} unpacks to more than is allowed ({limits.member_bytes >> 20} MiB a "
        f"member, {limits.total_bytes >> 20} MiB in all); it looks like a decompression bomb and is refused. "
        "If it is sound, unpack it yourself and name the folder."
    )
