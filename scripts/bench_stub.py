"""Helpers of bench_judge.py: random texts, and stub servers in separate processes.

One stub replies immediately. The other has as many slots and as much latency as a GPU server has, so that it can be the
bottleneck although it computes nothing.
"""

import asyncio
import json
import multiprocessing
import os
import random
import re
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow as pa

from pyrite import tables
from pyrite.judges.grading import LABELS

#: All words of the sample corpus's facts, with repetitions, so that random texts have the same word frequencies.
WORDS = [
    word
    for entry in sorted((resources.files("pyrite.sample") / "facts").iterdir(), key=lambda entry: entry.name)
    for word in re.findall(r"[A-Za-z]+", entry.read_text(encoding="utf-8"))
]


def texts(count: int, characters: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=characters // 6))[:characters] for _ in range(count)]


def tables_of(queries: Sequence[str], passages: Sequence[str]) -> tuple[pa.Table, pa.Table]:
    """QUERIES and PASSAGES. Each text starts with its id."""
    query_rows = [
        {"query_id": f"q{i}", "text": f"q{i} {text}", "topic": "", "type": "", "split": "train", "question_ids": []}
        for i, text in enumerate(queries)
    ]
    passage_rows = [
        {"passage_id": f"c{i}", "text": f"c{i} {text}", "title": "", "context": "", "split": "train", "parents": []}
        for i, text in enumerate(passages)
    ]
    return pa.Table.from_pylist(query_rows, tables.QUERIES), pa.Table.from_pylist(passage_rows, tables.PASSAGES)


def memory() -> float:
    """Resident memory of this process, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


class Stub(asyncio.Protocol):
    """A minimal server that replies to every chat request with the same bytes, in vLLM's format."""

    def __init__(self) -> None:
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            start = head.find(b"content-length:")
            length = int(head[start + 15 :].split(b"\r\n", 1)[0]) if start >= 0 else 0
            if len(self._buffer) < end + 4 + length:
                return
            body, self._buffer = self._buffer[end + 4 : end + 4 + length], self._buffer[end + 4 + length :]
            self.respond(head.split(b" ", 2)[1], body)

    def respond(self, path: bytes, body: bytes) -> None:
        self._transport.write(_reply(path, body))


class LimitedStub(Stub):
    """Works on ``SLOTS`` pairs at a time, for ``LATENCY`` seconds each. Other requests wait.

    It logs when a pair is received (+) and graded (-), with its query and passage, whose texts start with their ids.
    The log is written at once, so it survives a kill.
    """

    def __init__(self, slots: asyncio.Semaphore, log: int):
        super().__init__()
        self._slots, self._log = slots, log

    def respond(self, path: bytes, body: bytes) -> None:
        pair = _IDS.search(body) if path == b"/v1/chat/completions" else None
        if pair is None:
            super().respond(path, body)
        else:
            asyncio.get_running_loop().create_task(self._grade(pair[1] + b" " + pair[2]))

    async def _grade(self, pair: bytes) -> None:
        self._write(b"+", pair)
        async with self._slots:
            await asyncio.sleep(LATENCY)
        self._write(b"-", pair)
        self._transport.write(_CHAT)

    def _write(self, event: bytes, pair: bytes) -> None:
        os.write(self._log, b"%s %s %.3f\n" % (event, pair, time.time()))


#: The ids at the start of the texts of a prompt, in JSON.
_IDS = re.compile(rb"<query>\\n(q\d+) .*<passage>\\n(c\d+) ", re.DOTALL)

#: Of a limited stub. A pair takes 0.4 s, and the server grades 40 in a second.
SLOTS, LATENCY = 16, 0.4


def _reply(path: bytes, body: bytes) -> bytes:
    if path == b"/v1/models":
        return _http({"data": [{"id": "stub", "max_model_len": 4096}]})
    if path == b"/tokenize":
        return _http({"count": 1, "tokens": [ord(json.loads(body).get("prompt", "1")[0])]})
    return _CHAT


def _http(content: Any) -> bytes:
    body = json.dumps(content).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body


_TOP = [{"token": label, "logprob": -1.9 + i / 4, "bytes": [49 + i]} for i, label in enumerate(LABELS)]
_CHAT = _http(
    {
        "id": "chatcmpl-0123456789abcdef0123456789abcdef",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "stub",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "4", "refusal": None, "tool_calls": []},
                "logprobs": {"content": [{"token": "4", "logprob": -1.15, "bytes": [52], "top_logprobs": _TOP}]},
                "finish_reason": "stop",
                "stop_reason": None,
            }
        ],
        "usage": {
            "prompt_tokens": 520,
            "total_tokens": 521,
            "completion_tokens": 1,
            "prompt_tokens_details": {"cached_tokens": 304},
        },
    }
)


def _serve(port: Any, log: Path | None) -> None:
    async def run() -> None:
        protocol: Callable[[], Stub] = Stub
        if log:
            slots, file = asyncio.Semaphore(SLOTS), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            protocol = lambda: LimitedStub(slots, file)  # noqa: E731
        server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


@contextmanager
def stub(log: Path | None = None) -> Iterator[tuple[str, multiprocessing.Process]]:
    """Start a stub. Yields its URL and process. ``log``: the log of a limited stub; None: reply immediately."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.Process(target=_serve, args=(sender, log), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{receiver.recv()}", process
    finally:
        process.kill()
        process.join()
