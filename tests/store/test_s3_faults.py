"""What is made of the answers and faults of an S3 store, without one."""

import logging
import socket
from pathlib import Path

import pytest
from botocore import exceptions as boto
from botocore.exceptions import ClientError

from pyrite.errors import PyriteError, UserError
from pyrite.store.s3 import S3Store
from pyrite.store.s3_faults import NotFound, PreconditionFailed, RetryPolicy, with_retries

QUICK = RetryPolicy(connect=0.1, read=0.1, between=0.01, total=0.05)


def answer(status: int, code: str, message: str = "", operation: str = "PutObject") -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}, operation
    )


def told(error: Exception) -> Exception:
    """What comes of a request that ends with ``error``, however often it is made."""

    def ask() -> None:
        raise error

    with pytest.raises(Exception) as met:  # noqa: PT011
        with_retries(ask, "the store s3://b/p", QUICK)
    return met.value


@pytest.mark.parametrize(
    "error",
    [
        answer(500, "InternalError"),
        answer(503, "SlowDown"),
        answer(429, "TooManyRequests"),
        answer(409, "ConditionalRequestConflict"),
        answer(400, "RequestTimeout"),
        answer(400, "InvalidPart", operation="CompleteMultipartUpload"),
        answer(404, "NoSuchUpload", operation="UploadPart"),
        boto.EndpointConnectionError(endpoint_url="http://nowhere"),
        boto.ReadTimeoutError(endpoint_url="http://slow"),
        ConnectionError("cut"),
    ],
)
def test_a_fault_that_may_pass_is_tried_again_until_patience_is_at_its_end(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    end = told(error)
    assert type(end) is PyriteError
    assert "has not answered as it should" in str(end)
    assert "the same command goes on from there" in str(end)
    assert "trying again" in caplog.text


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (answer(404, "NoSuchBucket"), ["the bucket does not exist"]),
        (
            answer(403, "AccessDenied", "arn:aws:sts::1:a is not authorized to perform: s3:PutObject."),
            ["s3:DeleteObject on what is in it (arn:aws:sts::1:a is not authorized to perform: s3:PutObject)."],
        ),
        (answer(403, "403", "Forbidden", "HeadObject"), ["access is denied", "(Forbidden)."]),
        (answer(403, "OddlyRefused"), ["access is denied", "(OddlyRefused: OddlyRefused)."]),
        (
            answer(
                403, "AccessDenied", "a is not authorized to perform: kms:GenerateDataKey on resource: arn:aws:kms:k"
            ),
            ["the KMS key", "PYRITE_S3_KMS_KEY", "kms:Decrypt", "on resource: arn:aws:kms:k"],
        ),
        (answer(400, "KMS.NotFoundException", "Key 'k' does not exist"), ["the KMS key", "Key 'k' does not exist"]),
        (answer(400, "ExpiredToken"), ["credentials have expired", "the same command again"]),
        (answer(301, "PermanentRedirect"), ["AWS_REGION"]),
        (answer(501, "NotImplemented", "A header is not implemented"), ["A header is not implemented"]),
        (answer(507, "XMinioStorageFull"), ["is full"]),
        (boto.NoCredentialsError(), ["AWS_ACCESS_KEY_ID", "AWS_PROFILE"]),
        (boto.SSLError(endpoint_url="https://x", error="CERTIFICATE_VERIFY_FAILED"), ["AWS_CA_BUNDLE"]),
    ],
)
def test_what_does_not_pass_is_told_at_once_with_the_stores_own_words(
    error: Exception, parts: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    end = told(error)
    assert isinstance(end, UserError)
    assert str(end).startswith("the store s3://b/p: ")
    assert all(part in str(end) for part in parts), str(end)
    assert not caplog.records


def test_answers_that_are_no_faults() -> None:
    assert isinstance(told(answer(412, "PreconditionFailed")), PreconditionFailed)
    assert isinstance(told(answer(404, "NoSuchKey")), NotFound)
    assert "refused PutObject: 400 Strange what is this" in str(told(answer(400, "Strange", "what is this.")))


def test_an_address_that_nobody_answers_at_is_named_at_the_first_failure_and_at_the_last(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
    at_home(monkeypatch, tmp_path, address)
    with caplog.at_level(logging.WARNING), pytest.raises(PyriteError) as met:
        S3Store("s3://bucket/p", RetryPolicy(connect=1, read=1, between=0.01, total=2, quick=1)).keys("runs")
    named = f"the store s3://bucket/p at {address} (AWS_ENDPOINT_URL)"
    first = next(record for record in caplog.records if record.name.startswith("pyrite"))
    assert first.getMessage().startswith(named)
    assert str(met.value).startswith(named)


def test_a_name_that_nobody_knows_is_told_soon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    at_home(monkeypatch, tmp_path, "http://s3.no-such-host.invalid")
    asked: list[str] = []

    def unknown(host: str, _port: object, *_: object) -> None:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(UserError, match=r"no host is called s3.no-such-host.invalid: look at AWS_ENDPOINT_URL"):
        S3Store("s3://bucket/p", QUICK).ensure_writable()
    assert asked == ["s3.no-such-host.invalid"] * 3, "it may be about to be made known"


def at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: str) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "PYRITE_CACHE": str(tmp_path),
        "NO_PROXY": "*",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
