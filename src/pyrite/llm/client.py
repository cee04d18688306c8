"""The HTTP client of one OpenAI-compatible server. It classifies errors, but does not retry."""

import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import aiohttp

from pyrite.errors import UserError
from pyrite.llm.error_bodies import decode_json, error_in, message_of, quote
from pyrite.llm.errors import ContextLengthExceeded, RequestRejected, TransientError
from pyrite.spec import JudgeServers

CHAT_PATH = "/v1/chat/completions"

#: Error messages for a prompt longer than the context window: vLLM and OpenAI, llama.cpp, TGI.
_TOO_LONG = re.compile(r"context[ _](?:length|size|window)|maximum.{0,20}(?:length|tokens)|too (?:long|large)", re.I)

_CONNECT_SECONDS = 10.0

#: Shorter keys may be words that occur in replies.
_SECRET_LENGTH = 16


class Client:
    """Sends requests to one server. The API key never appears in errors, even if the server repeats it."""

    def __init__(self, session: aiohttp.ClientSession, url: str, key: str | None, servers: JudgeServers):
        """``servers``: the settings of the server, for its timeout and for messages."""
        self.url = url
        self._session, self._key, self._settings = session, key, servers
        timeout = servers.timeout
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
            setting = self._settings.urls_setting
            raise UserError(f"{setting}: {self.url} is not an address; write http://host:port.") from None
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
        except (aiohttp.ClientError, OSError) as error:
            if "content-encoding" in str(error):
                raise TransientError("garbled", "the reply's compression is invalid") from None
            raise TransientError("cut", "the connection was closed early") from None
        content = self._without_key(content)
        if status != 200:
            message = self._redacted(message_of(content))
            raise self._error(status, headers, message, f"HTTP {status}: {message}" if message else f"HTTP {status}")
        try:
            reply = decode_json(content)
        except ValueError:
            raise TransientError(
                "garbled", f"the reply was not JSON: {quote(self._redacted(message_of(content)))}"
            ) from None
        if found := error_in(reply):
            code, message = found[0], self._redacted(found[1])
            reason = f"HTTP 200 with error {code}: {message}" if code else f"HTTP 200 with an error: {message}"
            raise self._error(code or 500, headers, message, reason)
        return reply

    def _error(self, status: int, headers: Mapping[str, str], message: str, reason: str) -> Exception:
        """The error of a reply with this ``status``. ``message``: the server's words; ``reason``: with the status."""
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
            text = f"{self.url} rejects the request as too long ({reason})"
            return ContextLengthExceeded(status, f"{text}.", message, text)
        rejects, settings = f"{self.url} rejects the request ({reason})", self._settings
        if status in (401, 403):
            text = f"{self.url} does not accept the API key ({reason}). {settings.set_key}."
        elif status == 404:
            text = (
                f"{self.url} does not have this path or model ({reason}). "
                f"Check {settings.urls_setting} (without /v1/...) and {settings.model_setting}."
            )
        elif 300 <= status < 400:
            text = f"{self.url} redirects requests ({reason}). Set {settings.urls_setting} to the final address."
        else:
            text = f"{rejects}. A retry would not help."
        return RequestRejected(status, text, message, rejects)

    def _redacted(self, message: str) -> str:
        """An error ``message`` without the key, however short."""
        return message.replace(self._key, "(the key)") if self._key else message

    def _without_key(self, content: bytes) -> bytes:
        """``content`` without the key, which some servers repeat. Short keys, such as EMPTY, are no secrets."""
        if self._key and len(self._key) >= _SECRET_LENGTH:
            for form in (self._key, self._key.replace("/", "\\/")):  # in JSON, / may be escaped
                content = content.replace(form.encode(), b"(the key)")
        return content


def read_api_key(servers: JudgeServers) -> str | None:
    """Read the API key of ``servers`` from their key file, or else from their environment variable; None: no key.

    Raises:
        UserError: the file cannot be read or is empty, or the key is not valid in an HTTP header.
    """
    file = servers.key_file
    if file is None:
        source, key = servers.key_variable, os.environ.get(servers.key_variable, "").strip()
        if not key:
            return None
    else:
        source = f"{servers.key_file_setting} {file}"
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
