"""Helpers of bench_judge.py: random texts, and a stub server in a separate process that replies immediately."""

import asyncio
import json
import multiprocessing
import random
import re
import resource
from collections.abc import Iterator, Sequence
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
    query_rows = [
        {"query_id": f"q{i}", "text": text, "topic": "", "type": "", "split": "train", "question_ids": []}
        for i, text in enumerate(queries)
    ]
    passage_rows = [
        {"passage_id": f"c{i}", "text": text, "title": "", "context": "", "split": "train", "parents": []}
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
            self._transport.write(_reply(head.split(b" ", 2)[1], body))


def _reply(path: bytes, body: bytes) -> bytes:
    if path == b"/v1/models":
        return _http({"data": [{"id": "stub", "max_model_len": 4096}]})
    if path == b"/tokenize":
        return _http({"count": 1, "tokens": [ord(json.loads(body).get("prompt", "1")[0])]})
    return _CHAT


def _http(content: Any) -> bytes:
    body = json.dumps(content).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body


_TOP = [{"token": label, "logprob": -2 + i / 4, "bytes": [49 + i]} for i, label in enumerate(LABELS)]
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
                "logprobs": {"content": [{"token": "4", "logprob": -1.25, "bytes": [52], "top_logprobs": _TOP}]},
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


def _serve(port: Any) -> None:
    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Stub, "127.0.0.1", 0)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


@contextmanager
def stub() -> Iterator[str]:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.Process(target=_serve, args=(sender,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{receiver.recv()}"
    finally:
        process.kill()
