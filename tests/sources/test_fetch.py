"""Downloading MedQuAD from a local server."""

import http.server
import io
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyrite.errors import UserError
from pyrite.sources.fetch import content_sha256, fetch_medquad


def _archive(answer: str = "So.") -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=0) as tar:
        for number in range(50):
            content = f"<Document>{answer * 5000}{number}</Document>".encode()
            info = tarfile.TarInfo(f"MedQuAD-abc/{number}.xml")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


class _Server(http.server.ThreadingHTTPServer):
    """Serves ``body``. Cuts each of the first ``cuts`` responses half-way. Responds with ``status`` if it is set."""

    body = b""
    etag = '"one"'
    cuts = 0
    status = 0
    ranges = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requested: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/medquad.tar.gz"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        server = self.server
        wanted = self.headers.get("Range")
        server.requested.append(wanted)
        if server.status:
            self.send_error(server.status)
            return
        start = 0
        if server.ranges and wanted and self.headers.get("If-Range") == server.etag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.body) - 1}/{len(server.body)}")
        self.send_header("ETag", server.etag)
        self.send_header("Content-Length", str(len(server.body) - start))
        self.end_headers()
        end = len(server.body)
        if server.cuts:
            server.cuts -= 1
            end = (start + end) // 2
        self.wfile.write(server.body[start:end])

    def log_message(self, format: str, *args: Any) -> None: ...


class _RecordedProgress:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.total: int | None = None
        self.done = 0

    def begin(self, total: int | None, unit: str) -> None:
        assert unit == "bytes"
        self.total, self.done = total, 0

    def advance(self, n: int = 1) -> None:
        self.done += n

    def message(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    monkeypatch.setattr("time.sleep", lambda _: None)
    with _Server() as running:
        running.body = _archive()
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def digest(tmp_path: Path) -> str:
    (tmp_path / "known.tgz").write_bytes(_archive())
    return content_sha256(tmp_path / "known.tgz")


def test_download_is_verified_and_happens_once(server: _Server, tmp_path: Path, digest: str) -> None:
    progress = _RecordedProgress()
    path = fetch_medquad(tmp_path / "data", progress, server.url, digest)
    assert path.read_bytes() == server.body
    assert progress.total == progress.done == len(server.body)
    assert "CC BY 4.0" in progress.lines[0]
    assert "Ben Abacha" in progress.lines[0]
    again = _RecordedProgress()
    assert fetch_medquad(tmp_path / "data", again, server.url, digest) == path
    assert again.lines[-1] == f"{path}: already there and verified."
    assert len(server.requested) == 1
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_cut_connection_is_resumed(server: _Server, tmp_path: Path, digest: str) -> None:
    server.cuts = 2
    path = fetch_medquad(tmp_path / "mq.tar.gz", _RecordedProgress(), server.url, digest)
    starts = [int((requested or "bytes=0-")[6:-1]) / len(server.body) for requested in server.requested]
    assert starts == pytest.approx([0, 0.5, 0.75], abs=0.05)
    assert path.read_bytes() == server.body


def test_a_new_process_resumes_the_download(server: _Server, tmp_path: Path, digest: str) -> None:
    server.cuts = 5
    with pytest.raises(UserError, match=r"bytes are saved .* By hand: download http.* save it as .*mq\.tar\.gz"):
        fetch_medquad(tmp_path / "mq.tar.gz", _RecordedProgress(), server.url, digest)
    assert not (tmp_path / "mq.tar.gz").exists()
    fetch_medquad(tmp_path / "mq.tar.gz", _RecordedProgress(), server.url, digest)
    assert int((server.requested[-1] or "bytes=0-")[6:-1]) > len(server.body) * 0.9
    assert (tmp_path / "mq.tar.gz").read_bytes() == server.body


def test_a_file_that_changed_on_the_server_is_not_resumed(server: _Server, tmp_path: Path) -> None:
    server.cuts = 5
    with pytest.raises(UserError):
        fetch_medquad(tmp_path / "mq.tar.gz", _RecordedProgress(), server.url)
    server.body, server.etag = _archive("Now other."), '"two"'
    fetch_medquad(tmp_path / "mq.tar.gz", _RecordedProgress(), server.url)
    assert server.requested[-1] is not None
    assert (tmp_path / "mq.tar.gz").read_bytes() == server.body


def test_without_range_support_the_download_restarts(server: _Server, tmp_path: Path, digest: str) -> None:
    server.ranges, server.cuts = False, 1
    assert fetch_medquad(tmp_path / "mq.tar.gz", _RecordedProgress(), server.url, digest).read_bytes() == server.body


def test_other_contents_are_refused_and_deleted(server: _Server, tmp_path: Path, digest: str) -> None:
    server.body = _archive("Changed.")
    with pytest.raises(UserError, match="not the published ones"):
        fetch_medquad(tmp_path / "mq.tar.gz", _RecordedProgress(), server.url, digest)
    server.body = b"<html>Sign in to the hotel's network</html>"
    with pytest.raises(UserError, match="not a readable archive"):
        fetch_medquad(tmp_path / "mq.tar.gz", _RecordedProgress(), server.url, digest)
    assert [file.name for file in tmp_path.glob("mq.tar.gz*") if not file.name.endswith(".json")] == []


def test_a_manual_download_is_verified_and_never_deleted(tmp_path: Path, digest: str) -> None:
    target = tmp_path / "mq.tar.gz"
    target.write_bytes(_archive("Changed."))
    with pytest.raises(UserError, match="not the published ones"):
        fetch_medquad(target, _RecordedProgress(), "http://127.0.0.1:9/", digest)
    assert target.exists()


def test_the_digest_depends_on_contents_only(tmp_path: Path, digest: str) -> None:
    with (
        tarfile.open(fileobj=io.BytesIO(_archive())) as packed,
        tarfile.open(tmp_path / "again.tar.xz", "w:xz") as tar,
    ):
        for member in reversed(packed.getmembers()):
            content = packed.extractfile(member)
            member.name = member.name.replace("MedQuAD-abc", "MedQuAD-main")
            tar.addfile(member, content)
    assert content_sha256(tmp_path / "again.tar.xz") == digest


@pytest.mark.parametrize("status", [404, 503])
def test_http_errors_are_reported_with_manual_steps(server: _Server, tmp_path: Path, status: int) -> None:
    server.status = status
    with pytest.raises(UserError, match=rf"{status}.* By hand: download"):
        fetch_medquad(tmp_path / "data", _RecordedProgress(), server.url)
    assert len(server.requested) == (5 if status == 503 else 1)


def test_without_network_the_error_has_manual_steps(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"By hand: download http://127\.0\.0\.1:9/x .*save it as .*medquad-577bd37b96c0\.tar\.gz",
    ):
        fetch_medquad(tmp_path, _RecordedProgress(), "http://127.0.0.1:9/x")
