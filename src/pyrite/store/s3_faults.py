"""What a fault of an S3 store means: time lost, a sentence for a person, or an answer to act on.

A fault that passes costs time and nothing else; one that does not is told at once.
"""

import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

from botocore import exceptions as boto
from botocore.exceptions import BotoCoreError, ClientError
from botocore.utils import get_environ_proxies
from s3transfer.exceptions import RetriesExceededError
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from pyrite.errors import PyriteError, UserError

T = TypeVar("T")

_log = logging.getLogger("pyrite.store")


class NotFound(Exception):
    """Nothing stands under the key that was asked for."""


class PreconditionFailed(Exception):
    """A conditional write was refused: something else stands under the key, or what should stand there does not."""


class _Again(Exception):
    """A fault that passes."""


@dataclass(frozen=True)
class RetryPolicy:
    """How long to wait, in seconds: for a connection, for bytes on one, between two tries, and in all.

    ``quick`` is how often boto itself asks again before that counts as a try; the last try may begin at the very end.
    """

    connect: float = 10
    read: float = 15
    between: float = 20
    total: float = 900
    quick: int = 4


RETRY_POLICY = RetryPolicy()

#: Seconds between two times of looking up the store's name, which may be about to be made known.
_NAME_PAUSE = 2.0

#: Botocore's errors that no second try mends, and what a person can do.
_NOT_SET_UP: tuple[tuple[type[BotoCoreError], str], ...] = (
    (
        boto.NoCredentialsError,
        "no AWS credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name a profile in "
        "AWS_PROFILE, or give this machine a role",
    ),
    (boto.PartialCredentialsError, "the AWS credentials are not whole: {error}"),
    (boto.ProfileNotFound, "{error}: set AWS_PROFILE to one that ~/.aws/config has"),
    (boto.SSOError, "the AWS sign-in is over: `aws sso login` begins a new one"),
    (boto.LoginError, "the AWS sign-in is over: `aws login` begins a new one"),
    (boto.TokenRetrievalError, "the AWS sign-in is over: `aws sso login` begins a new one"),
    (boto.ParamValidationError, "{error}"),
    (boto.ValidationError, "{error}"),
    (boto.ConfigParseError, "{error}"),
    (boto.EndpointProviderError, "{error}: look at AWS_ENDPOINT_URL and AWS_REGION"),
)

#: Codes of S3 that no second try mends, and what a person can do.
_REFUSED = {
    "NoSuchBucket": "the bucket does not exist: make it, or name another with --store",
    "AccessDenied": "access is denied: allow s3:ListBucket on the bucket, and s3:GetObject, s3:PutObject and "
    "s3:DeleteObject on what is in it ({message})",
    "InvalidAccessKeyId": "the store does not know this access key: look at AWS_ACCESS_KEY_ID or AWS_PROFILE",
    "SignatureDoesNotMatch": "the secret key is not the one of this access key: look at AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "the AWS credentials have expired: get new ones, and give the same command again",
    "InvalidToken": "the AWS session token is not valid: look at AWS_SESSION_TOKEN",
    "RequestTimeTooSkewed": "this machine's clock is not the store's: set it right",
    "PermanentRedirect": "the bucket is in another region: set AWS_REGION",
    "NotImplemented": "the store cannot do what Pyrite needs of it ({message})",
    "InsufficientStorage": "the store is full: make room in it, and give the same command again",
    "KMS": "the KMS key, of PYRITE_S3_KMS_KEY or the bucket's own, cannot be used: allow kms:GenerateDataKey and "
    "kms:Decrypt on it ({message})",
}
_ALSO = {
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

#: Beside 5xx, 429 and 409. A multipart upload whose end was answered but not heard is gone when asked again.
_PASSING = {"RequestTimeout", "Throttling", "ThrottlingException", "BadDigest", "IncompleteBody", "NoSuchUpload", "408"}


def with_retries(action: Callable[[], T], where: str, retry_policy: RetryPolicy) -> T:
    """Do ``action``, which asks the store called ``where`` and can be done twice, until it is answered.

    Raises:
        NotFound, PreconditionFailed: the store's answer.
        UserError: it is refused, and trying again will not mend that.
        PyriteError: there was no answer for ``retry_policy.total`` seconds.
    """

    whole = _long(retry_policy.total)

    def attempt() -> T:
        try:
            return action()
        except (ClientError, BotoCoreError, RetriesExceededError, ConnectionError, TimeoutError) as error:
            raise _meaning(error, where) from error

    def say(state: RetryCallState) -> None:
        assert state.outcome is not None
        _log.warning("%s: %s; trying again, for %s in all", where, state.outcome.exception(), whole)

    retrying = Retrying(
        retry=retry_if_exception_type(_Again),
        wait=wait_random_exponential(multiplier=min(1.0, retry_policy.between), max=retry_policy.between),
        stop=stop_after_delay(retry_policy.total),
        before_sleep=say,
        reraise=True,
    )
    try:
        return retrying(attempt)
    except _Again as error:
        raise PyriteError(
            f"{where} has not answered as it should for {whole} ({error}). Look at its address. What "
            "is finished is kept; when it answers, the same command goes on from there."
        ) from error


def ensure_known(url: str, where: str, variable: str, retry_policy: RetryPolicy) -> None:
    """Raise UserError where nobody knows the host of ``url``: a mistyped ``variable``, which waiting does not mend."""
    if get_environ_proxies(url):
        return  # who looks names up is the proxy
    for again in (True, True, False):
        try:
            socket.getaddrinfo(urlsplit(url).hostname, None)
            return
        except socket.gaierror as error:
            if error.errno != socket.EAI_NONAME:
                return  # it is the network that is away, and that passes
            if not again:
                raise UserError(f"{where}: no host is called {urlsplit(url).hostname}: look at {variable}.") from error
        time.sleep(min(_NAME_PAUSE, retry_policy.between))


def _meaning(error: Exception, where: str) -> Exception:
    if isinstance(error, RetriesExceededError):
        error = error.last_exception
    if isinstance(error, ClientError):
        return _answer(error, where)
    for kind, advice in _NOT_SET_UP:
        if isinstance(error, kind):
            return UserError(f"{where}: {advice.format(error=_one_line(error))}.")
    if isinstance(error, boto.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return UserError(f"{where}: the store's certificate is not trusted here; set AWS_CA_BUNDLE to its authority.")
    return _Again(_one_line(error))


def _answer(error: ClientError, where: str) -> Exception:
    code, message = error.response["Error"].get("Code", ""), error.response["Error"].get("Message", "")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code, said = _ALSO.get(code, code), message.rstrip(" .") or f"{code or status}"
    if code.startswith("KMS.") or (code == "AccessDenied" and "kms:" in message):
        code = "KMS"
    if status == 403 and code not in _REFUSED:
        code, said = "AccessDenied", f"{code}: {said}"
    if code in _REFUSED:
        return UserError(f"{where}: {_REFUSED[code].format(message=said)}.")
    # Joining parts of which an answer came cut short, and so what the store called them.
    joined_wrong = error.operation_name == "CompleteMultipartUpload" and status == 400
    if status in (409, 429) or status >= 500 or code in _PASSING or joined_wrong:
        return _Again(f"{status} {code}".strip())
    if status == 412:
        return PreconditionFailed()
    if status == 404:
        return NotFound()
    return PyriteError(f"{where}: the store refused {error.operation_name}: {status} {code} {said}.")


def _long(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
