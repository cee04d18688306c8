"""One request to one server, and what went wrong with it in few words. No retries here."""

import json
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import aiohttp

from pyrite.errors import UserError
from pyrite.llm.backoff import retry_after

CHAT = "/v1/chat/completions"

Kind = Literal["connection", "cut", "timeout", "busy", "unavailable", "server", "conflict", "garbled"]

#: How servers say that a request does not fit the model's window: vLLM and OpenAI, llama.cpp, TGI.
_TOO_LONG = re.compile(r"context[ _](?:length|size|window)|maximum.{0,20}(?:length|tokens)|too (?:long|large)", re.I)

#: No server's own words are repeated beyond this many characters.
_LONGEST_MESSAGE = 300

_CONNECT_SECONDS = 10.0


class TransientError(Exception):
    """A request failed in a way that may pass.

    ``kind`` is one word for metrics; connection: none could be made; cut: it ended before the answer did; busy: the
    server is well and asks for a pause. ``asked`` is its Retry-After in seconds.
    """

    def __init__(self, kind: Kind, reason: str, asked: float | None = None):
        super().__init__(reason)
        self.kind, self.reason, self.asked = kind, reason, asked


class RequestRejected(UserError):
    """The server refused a request for a reason that sending it again cannot mend. ``status`` is the HTTP status."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class ContextLengthExceeded(RequestRejected):
    """What is asked does not fit the model's window."""


class Completion(NamedTuple):
    """What a server generated.

    ``logprobs`` are the top log probabilities of the first generated token, by the token's text; None where the server
    gave none. ``latency`` is that of the successful request, in seconds.
    """

    text: str
    logprobs: Mapping[str, float] | None
    prompt_tokens: int
    cached_tokens: int
    latency: float
    attempts: int


class Client:
    """Speaks to one server. The key is sent and never shown: not in errors, not where a server repeats it."""

    def __init__(self, session: aiohttp.ClientSession, url: str, key: str | None, timeout: float):
        self.url = url
        self._session, self._key, self._seconds = session, key, timeout
        self._timeout = aiohttp.ClientTimeout(total=timeout, sock_connect=min(_CONNECT_SECONDS, timeout))
        self._headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}

    async def get(self, path: str) -> Any:
        """The JSON at ``path``. Raises as ``post`` does."""
        return await self._request("GET", path, None)

    async def post(self, path: str, body: bytes) -> Any:
        """The JSON that answers the JSON ``body``.

        Raises:
            TransientError: it may work another time.
            RequestRejected: it never will.
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
            raise UserError(f"the TLS certificate of {self.url} is not accepted ({error}). Mend it.") from None
        except aiohttp.ClientSSLError:
            raise TransientError("connection", "no TLS connection") from None
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
            raise TransientError("connection", "no connection") from None
        except TimeoutError:
            raise TransientError("timeout", f"no answer in {self._seconds:g} s") from None
        except (aiohttp.ClientError, OSError):
            raise TransientError("cut", "the connection was cut") from None
        if status != 200:
            raise self._failure(status, headers, content)
        try:
            return json.loads(content)
        except ValueError:
            raise TransientError("garbled", "the answer was not JSON") from None

    def _failure(self, status: int, headers: Mapping[str, str], content: bytes) -> Exception:
        said = self._message(content)
        reason = f"HTTP {status}: {said}" if said else f"HTTP {status}"
        if status in (429, 502, 503):  # 502: a gateway whose server is away, which no request is to blame for
            asked = retry_after(headers, datetime.now(UTC))
            return TransientError("busy" if status == 429 or asked is not None else "unavailable", reason, asked)
        if status in (408, 504):
            return TransientError("timeout", reason)
        if status in (409, 425):
            return TransientError("conflict", reason)
        if status >= 500:
            return TransientError("server", reason)
        if status == 413 or (status in (400, 422) and _TOO_LONG.search(said)):
            return ContextLengthExceeded(status, f"{self.url} finds the request too long ({reason}).")
        if status in (401, 403):
            text = (
                f"{self.url} does not accept the API key ({reason}). "
                "Set PYRITE_JUDGE_API_KEY, or resources.judge_key_file to a file that holds it."
            )
        elif status == 404:
            text = (
                f"{self.url} knows no such address or model ({reason}). "
                "Check resources.judge_urls (without /v1/...) and judge.model."
            )
        elif 300 <= status < 400:
            text = f"{self.url} sends requests elsewhere ({reason}). Give the final address in resources.judge_urls."
        else:
            text = f"{self.url} refuses the request ({reason}). Sending it again would not help."
        return RequestRejected(status, text)

    def _message(self, content: bytes) -> str:
        """The server's own words, on one line and without the key."""
        try:
            found = json.loads(content)
            error = found.get("error", found)
            text = error["message"] if isinstance(error, dict) else error
        except (ValueError, AttributeError, KeyError):
            text = content.decode("utf-8", "replace")
        line = " ".join(str(text).split())
        if self._key:
            line = line.replace(self._key, "(the key)")
        return line if len(line) <= _LONGEST_MESSAGE else line[:_LONGEST_MESSAGE] + "..."


def parse_completion(reply: Any, started: float, attempts: int) -> Completion:
    """The answer in a reply of /v1/chat/completions; ``started`` as ``time.perf_counter`` gave it.

    Raises:
        TransientError: it is not such a reply.
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
        raise TransientError("garbled", "the answer was not a chat completion") from None
