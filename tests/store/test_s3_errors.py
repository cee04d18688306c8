"""How S3 responses and errors are interpreted, without a server."""

import hashlib
import logging
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from botocore import exceptions as boto
from botocore.exceptions import ClientError

from pyrite.errors import PyriteError, UserError
from pyrite.store.s3 import S3Store
from pyrite.store.s3_errors import NotFound, PreconditionFailed, RetryPolicy, with_retries

QUICK = RetryPolicy(connect_timeout=0.1, read_timeout=0.1, max_wait=0.01, total_timeout=0.05)


def client_error(status: int, code: str, message: str = "", operation: str = "PutObject") -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}, operation
    )


def raised_for(error: Exception) -> Exception:
    """What with_retries raises for a request that always fails with ``error``."""

    def request() -> None:
        raise error

    with pytest.raises(Exception) as raised:  # noqa: PT011
        with_retries(request, "the store s3://b/p", QUICK)
    return raised.value


@pytest.mark.parametrize(
    "error",
    [
        client_error(500, "InternalError"),
        client_error(503, "SlowDown"),
        client_error(429, "TooManyRequests"),
        client_error(409, "ConditionalRequestConflict"),
        client_error(400, "RequestTimeout"),
        client_error(400, "InvalidPart", operation="CompleteMultipartUpload"),
        client_error(404, "NoSuchUpload", operation="UploadPart"),
        boto.EndpointConnectionError(endpoint_url="http://nowhere"),
        boto.ReadTimeoutError(endpoint_url="http://slow"),
        ConnectionError("cut"),
    ],
)
def test_transient_errors_are_retried_until_the_timeout(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    final = raised_for(error)
    assert type(final) is PyriteError
    assert "has failed for 0 seconds" in str(final)
    assert "run the same command again" in str(final)
    assert "trying again" in caplog.text


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (client_error(404, "NoSuchBucket"), ["the bucket does not exist"]),
        (
            client_error(403, "AccessDenied", "arn:aws:sts::1:a is not authorized to perform: s3:PutObject."),
            ["s3:DeleteObject on its objects (arn:aws:sts::1:a is not authorized to perform: s3:PutObject)."],
        ),
        (client_error(403, "403", "Forbidden", "HeadObject"), ["access is denied", "(Forbidden)."]),
        (client_error(403, "OddlyRefused"), ["access is denied", "(OddlyRefused: OddlyRefused)."]),
        (
            client_error(
                403, "AccessDenied", "a is not authorized to perform: kms:GenerateDataKey on resource: arn:aws:kms:k"
            ),
            ["the KMS key", "PYRITE_S3_KMS_KEY", "kms:Decrypt", "on resource: arn:aws:kms:k"],
        ),
        (
            client_error(400, "KMS.NotFoundException", "Key 'k' does not exist"),
            ["the KMS key", "Key 'k' does not exist"],
        ),
        (client_error(400, "ExpiredToken"), ["credentials have expired", "the same command again"]),
        (client_error(301, "PermanentRedirect"), ["AWS_REGION"]),
        (client_error(501, "NotImplemented", "A header is not implemented"), ["A header is not implemented"]),
        (client_error(507, "XMinioStorageFull"), ["is full"]),
        (boto.NoCredentialsError(), ["AWS_ACCESS_KEY_ID", "AWS_PROFILE"]),
        (boto.SSLError(endpoint_url="https://x", error="CERTIFICATE_VERIFY_FAILED"), ["AWS_CA_BUNDLE"]),
    ],
)
def test_permanent_errors_are_reported_without_a_retry(
    error: Exception, parts: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    final = raised_for(error)
    assert isinstance(final, UserError)
    assert str(final).startswith("the store s3://b/p: ")
    assert all(part in str(final) for part in parts), str(final)
    assert not caplog.records


def test_other_statuses_have_their_own_exceptions() -> None:
    assert isinstance(raised_for(client_error(412, "PreconditionFailed")), PreconditionFailed)
    assert isinstance(raised_for(client_error(404, "NoSuchKey")), NotFound)
    strange = raised_for(client_error(400, "Strange", "unknown code."))
    assert "rejected PutObject: 400 Strange unknown code" in str(strange)


def test_every_message_names_an_unreachable_endpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{probe.getsockname()[1]}"
    configure(monkeypatch, tmp_path, endpoint)
    policy = RetryPolicy(connect_timeout=1, read_timeout=1, max_wait=0.01, total_timeout=2, boto_attempts=1)
    with caplog.at_level(logging.WARNING), pytest.raises(PyriteError) as raised:
        S3Store("s3://bucket/p", policy).keys("runs")
    name = f"the store s3://bucket/p at {endpoint} (AWS_ENDPOINT_URL)"
    first = next(record for record in caplog.records if record.name.startswith("pyrite"))
    assert first.getMessage().startswith(name)
    assert str(raised.value).startswith(name)


def test_an_unknown_host_is_reported_after_three_lookups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    configure(monkeypatch, tmp_path, "http://s3.no-such-host.invalid")
    lookups: list[str] = []

    def unknown(host: str, _port: object, *_: object) -> None:
        lookups.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(UserError, match=r"cannot resolve s3.no-such-host.invalid; check AWS_ENDPOINT_URL"):
        S3Store("s3://bucket/p", QUICK).ensure_writable()
    assert lookups == ["s3.no-such-host.invalid"] * 3, (
        "the lookup is retried, because a new DNS record may not be visible yet"
    )


class ServerWithoutChecksums(BaseHTTPRequestHandler):
    """An S3 server that stores objects, and rejects every request that sends or requests a checksum."""

    objects: dict[str, tuple[bytes, str]]
    rejected: list[str]

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.rejects():
            self.objects[self.path] = (data, self.headers["x-amz-meta-sha256"])
            self.respond(200, data, length=0)

    def do_GET(self) -> None:
        if not self.rejects():
            data, digest = self.objects[self.path]
            self.respond(200, data, digest=digest, length=len(data))

    def do_HEAD(self) -> None:
        self.do_GET()

    def rejects(self) -> bool:
        names = [name.lower() for name in self.headers]
        found = [name for name in names if "checksum" in name or name in ("x-amz-trailer", "content-md5")]
        if found:
            self.rejected.append(f"{self.command} {found}")
            self.respond(501, b"", length=0)
        return bool(found)

    def respond(self, status: int, data: bytes, digest: str = "", length: int = 0) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": length, "ETag": f'"{hashlib.md5(data).hexdigest()}"'}.items():
            self.send_header(name, str(value))
        self.send_header("x-amz-meta-sha256", digest)
        self.end_headers()
        if length and self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    ServerWithoutChecksums.objects, ServerWithoutChecksums.rejected = {}, []
    with ThreadingHTTPServer(("127.0.0.1", 0), ServerWithoutChecksums) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield listening
        listening.shutdown()


def test_no_request_has_a_checksum_header(
    server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    configure(monkeypatch, tmp_path / "cache", f"http://127.0.0.1:{server.server_address[1]}")
    store = S3Store("s3://bucket/p", RetryPolicy(total_timeout=5))
    store.write("small", b"data")
    (tmp_path / "file").write_bytes(b"more data")
    store.publish(tmp_path / "file", "large")
    store.local_path("large").unlink()
    assert store.read("small") == b"data"
    assert store.fetch("large").read_bytes() == b"more data"
    assert ServerWithoutChecksums.rejected == []
    assert set(ServerWithoutChecksums.objects) == {"/bucket/p/small", "/bucket/p/large"}


def configure(monkeypatch: pytest.MonkeyPatch, cache: Path, endpoint: str) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "PYRITE_CACHE": str(cache),
        "NO_PROXY": "*",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
