"""The HTTP client of one OpenAI-compatible server. It classifies errors and parses replies, but does not retry."""

import json
import os
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import aiohttp

from pyrite.errors import UserError

CHAT_PATH = "/v1/chat/completions"

#: The reason of a TransientError, as metrics report it. connection: none was established. cut: it was closed before the
#: reply was complete. busy: the server is up and asks to wait. garbled: the reply cannot be parsed.
ErrorKind = Literal["connection", "cut", "timeout", "busy", "unavailable", "server", "conflict", "garbled"]

_KEY_VARIABLE = "PYRITE_JUDGE_API_KEY"

#: Error messages for a prompt longer than the context window: vLLM and OpenAI, llama.cpp, TGI.
_TOO_LONG = re.compile(r"context[ _](?:length|size|window)|maximum.{0,20}(?:length|tokens)|too (?:long|large)", re.I)

#: Maximum characters that are quoted from a server's error message.
_MAX_MESSAGE = 300

_CONNECT_SECONDS = 10.0


class TransientError(Exception):
    """A request failed, and may succeed later. ``retry_after``: the seconds that the server asks to wait."""

    def __init__(self, kind: ErrorKind, reason: str, retry_after: float | None = None):
        super().__init__(reason)
        self.kind, self.reason, self.retry_after = kind, reason, retry_after


class RequestRejected(UserError):
    """The server rejected a request, and would reject it again. ``status`` is the HTTP status."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class ContextLengthExceeded(RequestRejected):
    """The request does not fit the model's context window."""


class Completion(NamedTuple):
    """A chat completion.

    Attributes:
        logprobs: the top log probabilities of the first generated token, by token text; None if there are none.
        latency: seconds from the last attempt to its reply.
        attempts: number of times that the request was sent.
    """

    text: str
    logprobs: Mapping[str, float] | None
    prompt_tokens: int
    cached_tokens: int
    latency: float
    attempts: int


class Client:
    """Sends requests to one server. The API key never appears in errors, even if the server repeats it."""

    def __init__(self, session: aiohttp.ClientSession, url: str, key: str | None, timeout: float):
        self.url = url
        self._session, self._key = session, key
        self._timeout = aiohttp.ClientTimeout(total=timeout, sock_connect=min(_CONNECT_SECONDS, timeout))
        self._headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}

    async def get(self, path: str) -> Any:
        """Return the JSON at ``path``. Raises as ``post`` does."""
        return await self._request("GET", path, None)

    async def post(self, path: str, body: bytes) -> Any:
        """Send the JSON ``body`` and return the JSON reply.

        Raises:
            TransientError: the request failed, and may succeed later.
            RequestRejected: the server rejects this request.
            UserError: the address or the server's certificate is invalid.
        """
        return await self._request("POST", path, body)

    async def _request(self, method: str, path: str, body: bytes | None) -> Any:
        try:
            async with self._session.request(
                method, self.url + path, data=body, headers=self._headers, timeout=self._timeout, allow_redirects=False
            ) as response:
                content = await response.read()
                status, headers = response.status, response.headers
        except aiohttp.InvalidURL:
            raise UserError(f"resources.judge_urls: {self.url} is not an address; write http://host:port.") from None
        except aiohttp.ClientConnectorCertificateError as error:
            raise UserError(
                f"The TLS certificate of {self.url} is not valid ({error}). Fix it or install its CA."
            ) from None
        except aiohttp.ClientSSLError:
            raise TransientError("connection", "no TLS connection") from None
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
            raise TransientError("connection", "no connection") from None
        except TimeoutError:
            raise TransientError("timeout", f"no reply in {self._timeout.total:g} s") from None
        except (aiohttp.ClientError, OSError):
            raise TransientError("cut", "the connection was closed early") from None
        if status != 200:
            raise self._error(status, headers, content)
        try:
            return json.loads(content)
        except ValueError:
            raise TransientError("garbled", "the reply was not JSON") from None

    def _error(self, status: int, headers: Mapping[str, str], content: bytes) -> Exception:
        message = self._message(content)
        reason = f"HTTP {status}: {message}" if message else f"HTTP {status}"
        if status in (429, 502, 503):  # 502: a gateway cannot reach its server, whatever the request
            delay = parse_retry_after(headers, datetime.now(UTC))
            return TransientError("busy" if status == 429 or delay is not None else "unavailable", reason, delay)
        if status in (408, 504):
            return TransientError("timeout", reason)
        if status in (409, 425):
            return TransientError("conflict", reason)
        if status >= 500:
            return TransientError("server", reason)
        if status == 413 or (status in (400, 422) and _TOO_LONG.search(message)):
            return ContextLengthExceeded(status, f"{self.url} rejects the request as too long ({reason}).")
        if status in (401, 403):
            text = (
                f"{self.url} does not accept the API key ({reason}). "
                f"Set {_KEY_VARIABLE}, or set resources.judge_key_file to a file that contains the key."
            )
        elif status == 404:
            text = (
                f"{self.url} does not have this path or model ({reason}). "
                "Check resources.judge_urls (without /v1/...) and judge.model."
            )
        elif 300 <= status < 400:
            text = f"{self.url} redirects requests ({reason}). Set resources.judge_urls to the final address."
        else:
            text = f"{self.url} rejects the request ({reason}). A retry would not help."
        return RequestRejected(status, text)

    def _message(self, content: bytes) -> str:
        """The server's error message, on one line and without the key."""
        try:
            reply = json.loads(content)
            error = reply.get("error", reply)
            text = error["message"] if isinstance(error, dict) else error
        except (ValueError, AttributeError, KeyError):
            text = content.decode("utf-8", "replace")
        line = " ".join(str(text).split())
        if self._key:
            line = line.replace(self._key, "(the key)")
        return line if len(line) <= _MAX_MESSAGE else line[:_MAX_MESSAGE] + "..."


def read_api_key(file: str | None) -> str | None:
    """Read the API key from ``file``, or from PYRITE_JUDGE_API_KEY if no file is given. None if there is no key.

    Raises:
        UserError: the file cannot be read or is empty, or the key is not valid in an HTTP header.
    """
    if file is None:
        source, key = _KEY_VARIABLE, os.environ.get(_KEY_VARIABLE, "").strip()
        if not key:
            return None
    else:
        source = f"resources.judge_key_file {file}"
        try:
            key = Path(file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise UserError(f"{source} cannot be read: {reason}.") from None
        if not key:
            raise UserError(f"{source} is empty; it must contain the API key and nothing else.")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"{source} does not contain an API key: a key is one word of ASCII characters.")
    return key


def parse_retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """The seconds in a Retry-After header, given as seconds or as an HTTP date; None if absent or malformed."""
    text = headers.get("Retry-After", "").strip()
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, ((when if when.tzinfo else when.replace(tzinfo=UTC)) - now).total_seconds())


def parse_completion(reply: Any, started: float, attempts: int) -> Completion:
    """Parse a reply of /v1/chat/completions; ``started`` is a value of ``time.perf_counter``.

    Raises:
        TransientError: the reply has another format.
    """
    try:
        choice = reply["choices"][0]
        text = choice["message"]["content"] or ""
        usage = reply.get("usage") or {}
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        tokens = usage.get("prompt_tokens") or 0
        logprobs = None
        content = (choice.get("logprobs") or {}).get("content")
        if content:
            logprobs = {top["token"]: float(top["logprob"]) for top in reversed(content[0].get("top_logprobs") or [])}
        if not isinstance(text, str):
            raise TypeError
        return Completion(text, logprobs, int(tokens), int(cached), time.perf_counter() - started, attempts)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise TransientError("garbled", "the reply was not a chat completion") from None
