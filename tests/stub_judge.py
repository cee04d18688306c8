"""A server that stands in for vLLM where a real one cannot be made to show a fault on demand, or to do it in no time.

It speaks what vLLM 0.32 speaks of /v1/models, /tokenize and /v1/chat/completions, grades a pair by a digest of its
texts, and counts what it was asked. What a real server really answers is tests/real/'s to say.
"""

import asyncio
import hashlib
import math
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Self

from aiohttp import web

MODEL = "stub"
LABELS = ("1", "2", "3", "4")
_PAIR = re.compile(r"<query>\n(.*?)\n</query>.*<passage>\n(.*)\n</passage>", re.DOTALL)

Pair = tuple[str, str]
#: What to do instead of answering the n-th pair request: a status with headers, or a word (see ``_misbehave``).
Fault = tuple[int, dict[str, str]] | str


def distribution(pair: Pair) -> list[float]:
    """What the stub's model thinks of a pair: the same at every server and every time."""
    weights = [byte + 1 for byte in hashlib.sha256("\0".join(pair).encode()).digest()[:4]]
    return [weight / sum(weights) for weight in weights]


def grade(pair: Pair) -> int:
    found = distribution(pair)
    return found.index(max(found)) + 1


class Stub:
    """Runs in a thread, as a context manager. Attributes may be set at any time."""

    def __init__(self, *capabilities: str, window: int | None = 4096):
        self.capabilities = capabilities or ("label_ids", "choice", "logprobs", "tokenize")
        self.window = window
        #: The window that a server has and does not tell.
        self.unreported_window: int | None = None
        self.models = [MODEL]
        self.root = MODEL
        self.key: str | None = None
        #: What it answers to whatever it is asked in chat, and at these addresses.
        self.status = 200
        self.statuses_at: dict[str, int] = {}
        self.delay = 0.0
        #: What its model says where it is not held to the labels; None: its grade.
        self.reply_text: str | None = None
        #: The status with which it refuses a request for log probabilities; 0: it leaves them out.
        self.refuses_logprobs = 0
        #: Says what to do instead of answering a pair: given its number (from 1) and the pair.
        self.fault: Callable[[int, Pair], Fault | None] = lambda _number, _pair: None
        self.faults: Counter[str] = Counter()  # that happened
        self.paths: Counter[str] = Counter()
        self.requested: Counter[Pair] = Counter()  # pairs, whatever came of it
        self.graded: Counter[Pair] = Counter()  # pairs that a grade was sent for
        self.messages: list[str] = []
        self.most_at_once = 0
        self.port = 0
        self._at_once = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: asyncio.Server | None = None
        self._handler: web.Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def up(self) -> None:
        """Listen, on the port that it had before if it had one."""
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)

    def down(self) -> None:
        """Be gone: refuse connections, and cut those that are open."""
        asyncio.run_coroutine_threadsafe(self._vanish(), self._loop).result(10)

    def settled(self) -> Self:
        """Wait for the requests whose askers are gone: a server goes on with them."""
        while self._at_once:
            time.sleep(0.01)
        return self

    async def _listen(self) -> None:
        self._handler = web.Server(self._answer)
        self._server = await self._loop.create_server(self._handler, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _vanish(self) -> None:
        if self._server and self._handler:
            self._server.close()
            for connection in list(self._handler.connections):
                if connection.transport:
                    connection.transport.abort()
            self._server = None

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.paths[request.path] += 1
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            said = f"Incorrect API key provided: {request.headers.get('Authorization')}"
            return web.json_response({"error": {"message": said}}, status=401)
        if status := self.statuses_at.get(request.path):
            return web.json_response({"error": {"message": f"stub says {status}"}}, status=status)
        if request.path == "/v1/models":
            entry = {"root": self.root} | ({"max_model_len": self.window} if self.window else {})
            return web.json_response({"data": [{"id": name, **entry} for name in self.models]})
        if request.path not in ("/tokenize", "/v1/chat/completions"):
            return web.json_response({"detail": "Not Found"}, status=404)
        body = await request.json()
        if body["model"] not in self.models:
            said = f"The model `{body['model']}` does not exist."
            return web.json_response({"error": {"message": said}}, status=404)
        if request.path == "/tokenize":
            return self._tokenize(body)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            return await self._chat(request, body)
        finally:
            self._at_once -= 1

    def _tokenize(self, body: dict[str, Any]) -> web.StreamResponse:
        if "tokenize" not in self.capabilities:
            return web.json_response({"detail": "Not Found"}, status=404)
        if "messages" in body and "tokenize text alone" in self.capabilities:
            return web.json_response({"error": {"message": "prompt: field required"}}, status=422)
        text = body["prompt"] if "prompt" in body else body["messages"][0]["content"]
        count = tokens(text) + (10 if "messages" in body else 0)
        return web.json_response({"count": count, "tokens": [ord(text[0])] if len(text) == 1 else list(range(count))})

    async def _chat(self, request: web.BaseRequest, body: dict[str, Any]) -> web.StreamResponse:
        if self.status != 200:
            self.faults[str(self.status)] += 1
            said = {"error": {"message": f"stub says {self.status}"}}
            return web.json_response(said, status=self.status, headers={"Retry-After": "0.2"})
        if self.refuses_logprobs and body.get("logprobs"):
            said = {"error": {"message": "logprobs are not supported"}}
            return web.json_response(said, status=self.refuses_logprobs)
        message = body["messages"][0]["content"]
        found = _PAIR.search(message)
        pair = (found[1], found[2]) if found else ("", "")
        if found and "capital of France" not in pair[0]:
            self.messages.append(message)
            self.requested[pair] += 1
            if self.delay:
                await asyncio.sleep(self.delay)
            fault = self.fault(self.requested.total(), pair)
            if fault is not None:
                return await self._misbehave(request, fault)
            self.graded[pair] += 1
        length = tokens(message) + 10
        most = self.window or self.unreported_window
        if most and length + body["max_tokens"] > most:
            said = f"This model's maximum context length is {most} tokens, and the prompt has {length}."
            return web.json_response({"error": {"message": said}}, status=400)
        return web.json_response(self._completion(body, pair if found else None, length))

    def _completion(self, body: dict[str, Any], pair: Pair | None, length: int) -> dict[str, Any]:
        chances = dict(zip(LABELS, distribution(pair), strict=True)) if pair else {}
        text = str(grade(pair)) if pair else "hello"
        held = bool(body.get("structured_outputs")) and "choice" in self.capabilities
        if held:
            text = text if pair else "1"
            chances = chances or dict.fromkeys(LABELS, 0.25)
        elif self.reply_text is not None:
            text = self.reply_text
        top: dict[str, float] | None = None
        if body.get("logprobs") and "logprobs" in self.capabilities:
            # 6% of the probability is on another token, unless the model is held to the labels.
            free = {} if held else {"The": math.log(0.06)}
            top = {label: math.log((1 if held else 0.94) * chance) for label, chance in chances.items()} | free
            top = dict(sorted(top.items(), key=lambda item: -item[1])[: body.get("top_logprobs", 0)])
        if body.get("logprob_token_ids") and "label_ids" in self.capabilities:
            wanted = map(chr, body["logprob_token_ids"])
            top = {label: math.log(0.94 * chances.get(label, 0.001)) for label in wanted} | {"The": math.log(0.06)}
        choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}}
        if top is not None:
            entries = [{"token": token, "logprob": value} for token, value in top.items()]
            choice["logprobs"] = {"content": [{"token": text, "logprob": 0.0, "top_logprobs": entries}]}
        usage = {"prompt_tokens": length, "prompt_tokens_details": {"cached_tokens": length // 2}}
        return {"choices": [choice], "usage": usage}

    async def _misbehave(self, request: web.BaseRequest, fault: Fault) -> web.StreamResponse:
        self.faults[str(fault if isinstance(fault, str) else fault[0])] += 1
        if isinstance(fault, tuple):
            status, headers = fault
            return web.json_response({"error": {"message": f"stub says {status}"}}, status=status, headers=headers)
        assert request.transport
        match fault:
            case "hang":
                await asyncio.sleep(3600)
            case "cut":
                request.transport.abort()
            case "cut half-way":
                response = web.StreamResponse(headers={"Content-Length": "1000"})
                await response.prepare(request)
                await response.write(b'{"choices": [{"mess')
                request.transport.abort()
            case "garbage":
                return web.Response(body=b"<html>\xff\x00 not JSON", content_type="application/json")
            case "other JSON":
                return web.json_response({"choices": []})
        said = {"content": fault}  # a reply that is no grade, word for word
        return web.json_response({"choices": [{"message": said}], "usage": {"prompt_tokens": 1}})


def tokens(text: str) -> int:
    """How many tokens the stub's model makes of ``text``: one for four bytes."""
    return math.ceil(len(text.encode()) / 4)
