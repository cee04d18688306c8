"""A fault-injecting HTTP proxy between Pyrite and a real S3 server. It records requests and counts each fault."""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple
from urllib.parse import unquote

Kind = Literal[
    "500",
    "503 SlowDown",
    "429",
    "409",
    "headers cut",
    "body cut",
    "request cut",
    "stall",
    "response lost",
    "expired",
    "denied",
    "412 as 200",
]

_ERRORS = {
    "500": (500, "InternalError", "We encountered an internal error."),
    "503 SlowDown": (503, "SlowDown", "Please reduce your request rate."),
    "429": (429, "TooManyRequests", "Too many requests."),
    "409": (409, "ConditionalRequestConflict", "A conflicting operation occurred during the upload."),
    "expired": (400, "ExpiredToken", "The provided token has expired."),
    "denied": (403, "AccessDenied", "User: reader is not authorized to perform: s3:PutObject"),
}


class Request(NamedTuple):
    """A recorded request: method, path with query, headers by lower-case name, and the fault injected, if any."""

    method: str
    target: str
    headers: dict[str, str]
    fault: str | None = None

    @property
    def length(self) -> int:
        return int(self.headers.get("content-length", 0))

    @property
    def conditional(self) -> bool:
        return "if-none-match" in self.headers or "if-match" in self.headers


@dataclass
class Fault:
    """Breaks requests of ``method`` whose target contains ``part``: ``times`` of them, starting with number ``first``.

    ``every`` breaks each n-th such request instead, without limit. ``conditional`` selects conditional requests.
    """

    kind: Kind
    method: str = ""
    part: str = ""
    first: int = 1
    times: int = 1
    every: int = 0
    conditional: bool = False
    matched: int = field(default=0, init=False)
    fired: int = field(default=0, init=False)

    def applies(self, request: Request) -> bool:
        """Whether to break this request; counts it."""
        if self.method not in ("", request.method) or self.part not in request.target:
            return False
        if self.conditional and not request.conditional:
            return False
        self.matched += 1
        due = self.matched % self.every == 0 if self.every else self.first <= self.matched < self.first + self.times
        self.fired += due
        return due


class Proxy:
    """Listens on a free port of 127.0.0.1, in its own thread, and forwards requests to the port ``upstream``."""

    def __init__(self, upstream: int):
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.port = 0
        self.stall = 30.0
        self._upstream = upstream
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        ready.wait()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def count(self, method: str, part: str = "") -> int:
        """The number of requests of ``method`` whose target contains ``part``."""
        return sum(request.method == method and part in request.target for request in list(self.requests))

    def down(self, seconds: float) -> None:
        """Refuse connections for ``seconds``."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()

        def listen_again() -> None:
            time.sleep(seconds)
            asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()

        threading.Thread(target=listen_again, daemon=True).start()

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._listen())
        ready.set()
        self._loop.run_forever()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", self.port, limit=1 << 20)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._server:
            self._server.close()
        for writer in self._open:
            writer.transport.abort()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Forward one request. Returns whether the connection stays open."""
        head = await _read_head(reader)
        if head is None:
            return False
        request_line, headers = head
        method, target, _ = request_line.split(" ", 2)
        request = Request(method, unquote(target), {name.lower(): value for name, value in headers})
        fault = next((f for f in self.faults if f.applies(request)), None)
        assert "transfer-encoding" not in request.headers, "chunked requests are not supported"
        self.requests.append(request._replace(fault=fault and fault.kind))
        if request.headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if fault and fault.kind == "request cut":
            await reader.readexactly(request.length // 2)
            return False
        body = await reader.readexactly(request.length)
        if fault and fault.kind in _ERRORS:
            writer.write(_error(*_ERRORS[fault.kind], method))
            await writer.drain()
            return True
        if fault and fault.kind == "stall":
            await asyncio.sleep(self.stall)
            return False
        response = await self._forward(request_line, headers, body, method)
        if fault and fault.kind == "response lost":
            return False
        if fault and fault.kind == "412 as 200" and response.startswith(b"HTTP/1.1 412"):
            response = b'HTTP/1.1 200 OK\r\nETag: "0"\r\nContent-Length: 0\r\n\r\n'
        if fault and fault.kind in ("headers cut", "body cut"):
            # Cut half of the headers, or half of the body; without a body, the last header.
            end = response.index(b"\r\n\r\n") + 4
            body_cut = end + (len(response) - end) // 2 if len(response) > end + 1 else end - 4
            response = response[: end // 2 if fault.kind == "headers cut" else body_cut]
        writer.write(response)
        await writer.drain()
        return fault is None

    async def _forward(self, request_line: str, headers: list[tuple[str, str]], body: bytes, method: str) -> bytes:
        """The server's complete response."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._upstream, limit=1 << 20)
        forwarded = [f"{name}: {value}" for name, value in headers if name.lower() not in ("connection", "expect")]
        writer.write("\r\n".join([request_line, *forwarded, "Connection: close", "", ""]).encode("latin-1") + body)
        await writer.drain()
        response = await reader.read(-1)
        writer.close()
        head, _, rest = response.partition(b"\r\n\r\n")
        lines = [line for line in head.split(b"\r\n") if not line.lower().startswith((b"connection:", b"transfer-"))]
        if b"transfer-encoding: chunked" in head.lower():
            rest = _decode_chunks(rest)
            lines.append(b"Content-Length: %d" % len(rest))
        return b"\r\n".join([*lines, b"", rest if method != "HEAD" else b""])


async def _read_head(reader: asyncio.StreamReader) -> tuple[str, list[tuple[str, str]]] | None:
    """The request line and the headers; None if the connection was closed instead."""
    try:
        text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    request_line, *lines = text.strip("\r\n").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return request_line, [(name, value.strip()) for name, _, value in pairs]


def _decode_chunks(data: bytes) -> bytes:
    decoded = bytearray()
    while data:
        size, _, data = data.partition(b"\r\n")
        count = int(size.split(b";")[0], 16)
        if count == 0:
            break
        decoded += data[:count]
        data = data[count + 2 :]
    return bytes(decoded)


def _error(status: int, code: str, message: str, method: str) -> bytes:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    head = f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    return head if method == "HEAD" else head + body


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Wait until ``condition`` is true, for at most ``seconds``. Returns whether it is."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
