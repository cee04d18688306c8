"""Retries of S3 requests, and translation of S3 errors: retry, report to the user, or handle."""

import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import tenacity
from botocore import exceptions as boto
from botocore.exceptions import BotoCoreError, ClientError
from botocore.utils import get_environ_proxies
from s3transfer.exceptions import RetriesExceededError

from pyrite.errors import PyriteError, UserError

T = TypeVar("T")

_log = logging.getLogger("pyrite.store")


class NotFound(Exception):
    """The key does not exist (404)."""


class PreconditionFailed(Exception):
    """The condition of a conditional request does not hold (412)."""


class _TransientError(Exception):
    """An error that a retry may resolve."""


@dataclass(frozen=True)
class RetryPolicy:
    """Timeouts and retries, in seconds.

    Pyrite retries until ``total_timeout``; in each attempt, boto3 tries the request up to ``boto_attempts`` times. The
    last attempt may start up to ``max_wait`` after ``total_timeout``. Overload (503 SlowDown) is retried too.
    """

    connect_timeout: float = 10
    read_timeout: float = 15
    max_wait: float = 20
    total_timeout: float = 900
    boto_attempts: int = 4


RETRY_POLICY = RetryPolicy()

#: Attempts to resolve the store's host name, and seconds between them: its DNS record may be about to appear.
_DNS_ATTEMPTS, _DNS_WAIT = 3, 2.0

#: Botocore's permanent errors, and what the user can do.
_PERMANENT_BOTO_ERRORS: tuple[tuple[type[BotoCoreError] | tuple[type[BotoCoreError], ...], str], ...] = (
    (
        boto.NoCredentialsError,
        "no AWS credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name a profile in "
        "AWS_PROFILE, or give this machine a role",
    ),
    (boto.PartialCredentialsError, "the AWS credentials are incomplete: {error}"),
    (boto.ProfileNotFound, "{error}: set AWS_PROFILE to a profile in ~/.aws/config"),
    ((boto.SSOError, boto.TokenRetrievalError), "the AWS session has expired: run `aws sso login`"),
    (boto.LoginError, "the AWS session has expired: run `aws login`"),
    ((boto.ParamValidationError, boto.ValidationError, boto.ConfigParseError), "{error}"),
    (boto.EndpointProviderError, "{error}: check AWS_ENDPOINT_URL and AWS_REGION"),
)

#: S3's permanent error codes, and what the user can do.
_PERMANENT_CODES = {
    "NoSuchBucket": "the bucket does not exist: create it, or choose another with --store",
    "AccessDenied": "access is denied: allow s3:ListBucket on the bucket, and s3:GetObject, s3:PutObject and "
    "s3:DeleteObject on its objects ({message})",
    "InvalidAccessKeyId": "the access key is unknown to the store: check AWS_ACCESS_KEY_ID or AWS_PROFILE",
    "SignatureDoesNotMatch": "the secret key does not match the access key: check AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "the AWS credentials have expired: get new ones, then run the same command again",
    "InvalidToken": "the AWS session token is not valid: check AWS_SESSION_TOKEN",
    "RequestTimeTooSkewed": "this machine's clock differs from the store's: set it",
    "PermanentRedirect": "the bucket is in another region: set AWS_REGION",
    "NotImplemented": "the store does not support a feature that Pyrite needs ({message})",
    "InsufficientStorage": "the store is full: free space in it, then run the same command again",
    "KMS": "the KMS key (PYRITE_S3_KMS_KEY or the bucket's default) cannot be used: allow kms:GenerateDataKey and "
    "kms:Decrypt on it ({message})",
}
_ALIASES = {
    "403": "AccessDenied",
    "AllAccessDisabled": "AccessDenied",
    "AccountProblem": "AccessDenied",
    "ExpiredTokenException": "ExpiredToken",
    "TokenRefreshRequired": "ExpiredToken",
    "301": "PermanentRedirect",
    "AuthorizationHeaderMalformed": "PermanentRedirect",
    "IllegalLocationConstraintException": "PermanentRedirect",
    "501": "NotImplemented",
    "507": "InsufficientStorage",
    "QuotaExceeded": "InsufficientStorage",
    "XMinioStorageFull": "InsufficientStorage",
}

#: Transient in addition to 5xx, 429 and 409. NoSuchUpload: a multipart upload was completed but the response was lost.
_TRANSIENT = {
    "RequestTimeout",
    "Throttling",
    "ThrottlingException",
    "BadDigest",
    "IncompleteBody",
    "NoSuchUpload",
    "408",
}


def with_retries(action: Callable[[], T], store_name: str, policy: RetryPolicy) -> T:
    """Call ``action``, an idempotent request, and retry it while its errors are transient.

    Raises:
        NotFound, PreconditionFailed: the store's response.
        UserError: a permanent error that the user can fix.
        PyriteError: a permanent error, or no success within ``policy.total_timeout``.
    """
    total = _format_seconds(policy.total_timeout)

    def attempt() -> T:
        try:
            return action()
        except (ClientError, BotoCoreError, RetriesExceededError, ConnectionError, TimeoutError) as error:
            raise _translate(error, store_name) from error

    def log_retry(state: tenacity.RetryCallState) -> None:
        assert state.outcome is not None
        _log.warning("%s: %s; trying again, for up to %s", store_name, state.outcome.exception(), total)

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(_TransientError),
        wait=tenacity.wait_random_exponential(multiplier=min(1.0, policy.max_wait), max=policy.max_wait),
        stop=tenacity.stop_after_delay(policy.total_timeout),
        before_sleep=log_retry,
        reraise=True,
    )
    try:
        return retrying(attempt)
    except _TransientError as error:
        raise PyriteError(
            f"{store_name} has failed for {total} ({error}). Check its address, then run the same command again: "
            "finished steps are not repeated."
        ) from error


def check_host(url: str, store_name: str, variable: str, policy: RetryPolicy) -> None:
    """Raise UserError if the host of ``url`` does not exist, probably because of a typo in ``variable``."""
    if get_environ_proxies(url):
        return  # the proxy resolves names
    host = urlsplit(url).hostname
    lookup = tenacity.Retrying(
        retry=tenacity.retry_if_exception(_is_unknown_host),
        wait=tenacity.wait_fixed(min(_DNS_WAIT, policy.max_wait)),
        stop=tenacity.stop_after_attempt(_DNS_ATTEMPTS),
        reraise=True,
    )
    try:
        lookup(socket.getaddrinfo, host, None)
    except socket.gaierror as error:
        if _is_unknown_host(error):  # other errors are network failures, which are retried later
            raise UserError(f"{store_name}: cannot resolve {host}; check {variable}.") from error


def require_fields(response: dict[str, Any], *names: str) -> None:
    """Raise ConnectionError if ``response`` lacks one of ``names``: its headers were cut off."""
    with detect_cut_headers():
        for name in names:
            response[name]


@contextmanager
def detect_cut_headers() -> Iterator[None]:
    """Turn a missing response field into a ConnectionError, also inside boto3.

    A connection that breaks within the headers leaves a response that looks valid.
    """
    try:
        yield
    except KeyError as error:
        raise ConnectionError(f"the connection broke within the response headers, before {error}") from error


def _is_unknown_host(error: BaseException) -> bool:
    return isinstance(error, socket.gaierror) and error.errno == socket.EAI_NONAME


def _translate(error: Exception, store_name: str) -> Exception:
    if isinstance(error, RetriesExceededError):
        error = error.last_exception
    if isinstance(error, ClientError):
        return _translate_response(error, store_name)
    for error_type, advice in _PERMANENT_BOTO_ERRORS:
        if isinstance(error, error_type):
            return UserError(f"{store_name}: {advice.format(error=_one_line(error))}.")
    if isinstance(error, boto.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return UserError(
            f"{store_name}: the server's certificate is not trusted; set AWS_CA_BUNDLE to its authority's certificate."
        )
    return _TransientError(_one_line(error))


def _translate_response(error: ClientError, store_name: str) -> Exception:
    code, message = error.response["Error"].get("Code", ""), error.response["Error"].get("Message", "")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code, detail = _ALIASES.get(code, code), message.rstrip(" .") or f"{code or status}"
    if code.startswith("KMS.") or (code == "AccessDenied" and "kms:" in message):
        code = "KMS"
    if status == 403 and code not in _PERMANENT_CODES:
        code, detail = "AccessDenied", f"{code}: {detail}"
    if code in _PERMANENT_CODES:
        return UserError(f"{store_name}: {_PERMANENT_CODES[code].format(message=detail)}.")
    # The response to a part was cut off before its ETag, so the upload could not be completed.
    incomplete_parts = error.operation_name == "CompleteMultipartUpload" and status == 400
    if status in (409, 429) or status >= 500 or code in _TRANSIENT or incomplete_parts:
        return _TransientError(f"{status} {code}".strip())
    if status == 412:
        return PreconditionFailed()
    if status == 404:
        return NotFound()
    return PyriteError(f"{store_name}: the store rejected {error.operation_name}: {status} {code} {detail}.")


def _format_seconds(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
