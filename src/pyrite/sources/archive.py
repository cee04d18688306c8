"""Reads untrusted .tar, .tar.xz, .tar.gz, .tgz, .tar.bz2 and .zip archives.

Nothing is unpacked to disk. Even so, archives with path traversal, links or devices are refused: they are malicious, or
not the intended file.
"""

import bz2
import gzip
import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from pyrite.errors import UserError
from pyrite.sources.files import is_hidden


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on the unpacked contents. An archive that exceeds them counts as a decompression bomb."""

    members: int = 500_000
    member_bytes: int = 64 << 20
    total_bytes: int = 2 << 30


LIMITS = Limits()

#: Whether to read the member with this name.
_Filter = Callable[[str], bool]

_READ_ERRORS = (
    tarfile.TarError,
    zipfile.BadZipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    OSError,
    NotImplementedError,  # zipfile: unknown compression method
    UnicodeDecodeError,
)


def members(
    archive: Path, suffix: str | tuple[str, ...], limits: Limits = LIMITS, skipped: list[str] | None = None
) -> Iterator[tuple[str, bytes]]:
    """Yield (name, contents) of each regular file with this ``suffix`` (or one of several), in the archive's order.

    Hidden files are not yielded; see ``files.is_hidden``. Names of other files without the suffix are added to
    ``skipped``. Every member is checked, including those that are not yielded.

    Raises:
        UserError: not an archive, damaged or truncated, over ``limits``, or a member has an absolute path, leaves the
            archive's folder, or is a link or device. Names the archive and the member.
    """

    def selected(name: str) -> bool:
        if is_hidden(name):
            return False
        if not name.lower().endswith(suffix) and skipped is not None:
            skipped.append(name)
        return name.lower().endswith(suffix)

    try:
        with archive.open("rb") as stream:
            head = stream.read(6)
        if head.startswith(b"PK"):
            yield from _zip(archive, selected, limits)
        else:
            yield from _tar(archive, head, selected, limits)
    except UserError:
        raise
    except _READ_ERRORS as error:
        raise UserError(
            f"{archive.absolute()}: not a readable archive ({error or type(error).__name__}). Pyrite reads "
            ".tar.xz, .tar.gz, .tgz, .tar.bz2, .tar and .zip. If it is one of these, it is damaged: get it again."
        ) from error


class _LimitedReader:
    """Reads the unpacked bytes of a tar archive forwards, up to the limits."""

    def __init__(self, stream: IO[bytes], archive: Path, limits: Limits) -> None:
        self._stream, self._archive, self._limits = stream, archive, limits
        self._position = 0
        self.last = b""

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        # tarfile reads long-name and pax headers in one call, whatever size they claim.
        if size > self._limits.member_bytes + tarfile.BLOCKSIZE:
            raise _bomb(self._archive, "a header", self._limits)
        self.last = self._stream.read(size)
        self._position += len(self.last)
        if self._position > self._limits.total_bytes:
            raise _bomb(self._archive, "all of it", self._limits)
        return self.last

    def seek(self, position: int, whence: int = 0) -> int:
        if whence != 0 or position < self._position:
            raise tarfile.StreamError("seeking backwards")
        while self._position < position and self.read(min(1 << 20, position - self._position)):
            pass
        return self._position


def _tar(archive: Path, head: bytes, selected: _Filter, limits: Limits) -> Iterator[tuple[str, bytes]]:
    with _decompressed(archive, head) as stream:
        reader = _LimitedReader(stream, archive, limits)
        with tarfile.open(fileobj=cast(IO[bytes], reader), mode="r:") as tar:
            for count, member in enumerate(tar):
                _check(archive, member.name, member.size, count, limits)
                if not (member.isfile() or member.isdir()):
                    raise _refused(archive, member.name, "is a link or a device")
                if member.isfile() and selected(member.name):
                    content = tar.extractfile(member)
                    assert content is not None
                    yield member.name, content.read()
                # Without this, tarfile keeps every header in memory.
                tar.members.clear()  # type: ignore[attr-defined]
        # tarfile treats a truncated or damaged header as the end. A complete archive ends in a block of zeros.
        if len(reader.last) < tarfile.BLOCKSIZE or reader.last.strip(b"\0"):
            raise EOFError("it is truncated")


def _decompressed(archive: Path, head: bytes) -> IO[bytes]:
    if head.startswith(b"\xfd7zXZ"):
        return cast(IO[bytes], lzma.open(archive))
    if head.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.open(archive))
    if head.startswith(b"BZh"):
        return cast(IO[bytes], bz2.open(archive))
    return archive.open("rb")


def _zip(archive: Path, selected: _Filter, limits: Limits) -> Iterator[tuple[str, bytes]]:
    total = 0
    with zipfile.ZipFile(archive) as opened:
        for count, info in enumerate(opened.infolist()):
            _check(archive, info.filename, info.file_size, count, limits)
            total += info.file_size
            if total > limits.total_bytes:
                raise _bomb(archive, "all of it", limits)
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _refused(archive, info.filename, "is a link or a device")
            if info.is_dir() or not selected(info.filename):
                continue
            if info.flag_bits & 1:
                raise _refused(archive, info.filename, "is encrypted")
            # zipfile reads no more than the size in the directory, and verifies the checksum.
            yield info.filename, opened.read(info)


def _check(archive: Path, name: str, size: int, count: int, limits: Limits) -> None:
    parts = name.replace("\\", "/").split("/")
    if parts[0] == "" or re.match(r"[A-Za-z]:", name):
        raise _refused(archive, name, "has an absolute path")
    if ".." in parts:
        raise _refused(archive, name, "leaves the archive's folder")
    if size > limits.member_bytes:
        raise _bomb(archive, f"member '{name}'", limits)
    if count >= limits.members:
        raise UserError(f"{archive.absolute()}: more than {limits.members:,} members. Unpack it and name the folder.")


def _refused(archive: Path, name: str, why: str) -> UserError:
    return UserError(
        f"{archive.absolute()}: member '{name}' {why}, so the archive is refused. Get it from its publisher, or "
        "unpack it yourself and name the folder."
    )


def _bomb(archive: Path, what: str, limits: Limits) -> UserError:
    return UserError(
        f"{archive.absolute()}: {what} unpacks to more than the limit ({limits.member_bytes >> 20} MiB per member, "
        f"{limits.total_bytes >> 20} MiB in total). It is refused as a decompression bomb. If you trust it, unpack it "
        "yourself and name the folder."
    )
