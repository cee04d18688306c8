"""Malicious and damaged archives are refused, and named."""

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from pyrite.errors import UserError
from pyrite.sources.archive import Limits, members


def _tar(path: Path, *entries: tuple[tarfile.TarInfo, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for info, content in entries:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def _info(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("suffix", "mode"), [(".tar", "w"), (".tgz", "w:gz"), (".tar.xz", "w:xz"), (".tar.bz2", "w:bz2")]
)
def test_each_tar_format_is_read(tmp_path: Path, suffix: str, mode: str) -> None:
    entries = [(_info(f"top/{n}.xml"), bytes([65 + n]) * (512 * n + n % 2)) for n in range(5)]
    path = _tar(tmp_path / f"a{suffix}", *entries, (_info("top/readme.txt"), b"no"), mode=mode)
    assert list(members(path, ".xml")) == [(f"top/{n}.xml", bytes([65 + n]) * (512 * n + n % 2)) for n in range(5)]


def test_zip_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as path:
        path.writestr("top/a.xml", "A")
        path.writestr("top/readme.txt", "no")
    assert list(members(tmp_path / "a.zip", ".xml")) == [("top/a.xml", b"A")]


@pytest.mark.parametrize("name", ["../evil.xml", "/etc/evil.xml", "a/../../evil.xml", "..\\evil.xml", "C:\\evil.xml"])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_path_traversal_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / "bad.archive"
    if kind == "tar":
        _tar(path, (_info(name), b"<Document/>"))
    else:
        with zipfile.ZipFile(path, "w") as zipped:
            zipped.writestr(name, "<Document/>")
    with pytest.raises(UserError, match=r"(?s)bad\.archive.*evil\.xml"):
        list(members(path, ".xml"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    path = _tar(tmp_path / "bad.tgz", (_info("a/evil.xml", kind, "/etc/passwd"), b""))
    with pytest.raises(UserError, match=r"bad\.tgz: member 'a/evil\.xml' is a link or a device"):
        list(members(path, ".xml"))


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("a/evil.xml")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as zipped:
        zipped.writestr(info, "/etc/passwd")
    with pytest.raises(UserError, match=r"evil\.xml' is a link"):
        list(members(tmp_path / "bad.zip", ".xml"))


def test_decompression_bombs_are_refused(tmp_path: Path) -> None:
    limits = Limits(members=10, member_bytes=100_000, total_bytes=250_000)
    large_member = _tar(tmp_path / "one.tgz", (_info("big.xml"), bytes(100_001)))
    large_total = _tar(tmp_path / "all.tgz", *((_info(f"{n}.bin"), bytes(99_000)) for n in range(3)))
    many = _tar(tmp_path / "many.tgz", *((_info(f"{n}.xml"), b"") for n in range(11)))
    long_name = _tar(tmp_path / "name.tgz", (_info("x" * 200_000), b""))
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as zipped:
        for n in range(3):
            zipped.writestr(f"{n}.bin", bytes(99_000))
    for path in (large_member, large_total, long_name, tmp_path / "z.zip"):
        with pytest.raises(UserError, match="decompression bomb"):
            list(members(path, ".xml", limits))
    with pytest.raises(UserError, match="more than 10 members"):
        list(members(many, ".xml", limits))


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_a_truncated_archive_is_an_error(tmp_path: Path, mode: str) -> None:
    entries = [(_info(f"{n}.xml"), bytes(range(256)) * 40) for n in range(4)]
    path = _tar(tmp_path / "bad.archive", *entries, mode=mode)
    content = path.read_bytes()
    # Truncated inside a member; a plain archive also between two members and inside a header.
    for length in [len(content) // 2, *((10240 + 512, 10240 + 512 + 100) if mode == "w" else ())]:
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"bad\.archive: not a readable archive"):
            list(members(path, ".xml"))


def test_a_file_that_is_no_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "page.tar.gz").write_text("<html>Not found</html>")
    with pytest.raises(UserError, match=r"page\.tar\.gz: not a readable archive"):
        list(members(tmp_path / "page.tar.gz", ".xml"))


def test_an_unknown_zip_compression_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr("a.xml", "A")
    content = bytearray(path.read_bytes())
    content[8] = 95  # the compression method (xz, which zipfile does not support), in the member's header
    content[content.index(b"PK\1\2") + 10] = 95  # and in the directory
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.zip: not a readable archive .*compression method"):
        list(members(path, ".xml"))
