"""A stub of a vLLM server that fails on demand. A real one needs a GPU to be fast, and cannot fail at a chosen request.

The stub implements /v1/models, /tokenize and /v1/chat/completions of vLLM 0.32, grades a pair by a digest of its texts,
and counts requests. The tests in tests/real use a real server.
"""

import asyncio
import hashlib
import json
import math
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

from aiohttp import web

MODEL = "stub"
LABELS = ("1", "2", "3", "4")
YES_NO = ("yes", "no")
#: The words that are one token, with ids above those of characters.
_WORDS = dict(enumerate(("yes", "no", "Yes", "No", " yes", " no", " Yes", " No"), 0x110000))
_PAIR = re.compile(r"<query>\n(.*?)\n</query>.*<passage>\n(.*)\n</passage>", re.DOTALL)

Pair = tuple[str, str]


class Raw(NamedTuple):
    """A reply that the stub sends as it is: JSON, or bytes."""

    status: int
    content: Any
    headers: dict[str, str] = {}  # noqa: RUF012

    def response(self) -> web.Response:
        content = self.content if isinstance(self.content, bytes) else json.dumps(self.content).encode()
        return web.Response(status=self.status, body=content, headers=self.headers, content_type="application/json")


#: Sent instead of a grade: an HTTP status with headers, a reply, a fault's name (see ``_send_fault``), or a text.
Fault = tuple[int, dict[str, str]] | Raw | str


def distribution(pair: Pair) -> list[float]:
    """The probabilities of the grades of a pair, the same on every stub."""
    weights = [byte + 1 for byte in hashlib.sha256("\0".join(pair).encode()).digest()[:4]]
    return [weight / sum(weights) for weight in weights]


def likeliest(probabilities: Sequence[float]) -> int:
    """The likeliest grade of a distribution over the grades."""
    return probabilities.index(max(probabilities)) + 1


def grade(pair: Pair) -> int:
    return likeliest(distribution(pair))


def chance_of_yes(pair: Pair, question: str) -> float:
    """The probability of yes to a ``question`` about a pair, the same on every stub."""
    return (hashlib.sha256("\0".join((*pair, question)).encode()).digest()[0] + 0.5) / 256


class Stub:
    """A context manager that runs the server in a thread. Attributes may be set at any time."""

    def __init__(self, *capabilities: str, window: int | None = 4096):
        self.capabilities = capabilities or ("label_ids", "choice", "logprobs", "tokenize")
        self.window = window
        #: The context window of a server that does not report it.
        self.unreported_window: int | None = None
        self.models = [MODEL]
        self.root = MODEL
        self.key: str | None = None
        #: The HTTP status of replies to chat requests, and of replies by path.
        self.status = 200
        self.path_statuses: dict[str, int] = {}
        #: Seconds for each pair, and how many pairs it works on at a time.
        self.delay, self.slots = 0.0, asyncio.Semaphore(1000)
        #: The generated text if not constrained to the labels; {} is the grade; None: the grade.
        self.reply_text: str | None = None
        #: Returns the probabilities of the grades of a pair.
        self.distribution: Callable[[Pair], Sequence[float]] = distribution
        #: Changes a reply, given the request and the pair's texts (None: not a pair): see ``stub_shapes``.
        self.shape: Callable[[Any, dict[str, Any], Pair | None], Any] = lambda reply, _body, _pair: reply
        #: Returns the error for a request's parameters; None: they are accepted.
        self.refuse: Callable[[dict[str, Any]], Raw | None] = lambda _body: None
        #: The reply to /v1/models; None: the list of ``models``.
        self.listed: Any = None
        #: Returns the probability of yes to a question about a pair.
        self.chance_of_yes: Callable[[Pair, str], float] = chance_of_yes
        #: How the model spells yes and no.
        self.spell: Callable[[str], str] = str.capitalize
        self.bodies: list[dict[str, Any]] = []  # of requests for a completion
        #: The HTTP status of replies to requests for log probabilities; 0: replies without them.
        self.logprobs_status = 0
        #: Returns what to send instead of a grade, given the request's number (from 1) and the pair.
        self.fault: Callable[[int, Pair], Fault | None] = lambda _number, _pair: None
        self.faults: Counter[str] = Counter()  # faults sent
        self.paths: Counter[str] = Counter()
        self.requested: Counter[Pair] = Counter()  # by pair
        self.graded: Counter[Pair] = Counter()  # grades sent, by pair
        self.messages: list[str] = []
        self.max_in_flight = 0
        self.port = 0
        self._in_flight = 0
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
        """Listen, on the same port as before."""
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)

    def down(self) -> None:
        """Stop: refuse connections, and abort the open ones."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)

    def settled(self) -> Self:
        """Wait until no request is in progress; a server also completes requests whose client has disconnected."""
        while self._in_flight:
            time.sleep(0.01)
        return self

    async def _listen(self) -> None:
        self._handler = web.Server(self._handle)
        self._server = await self._loop.create_server(self._handler, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        if self._server and self._handler:
            self._server.close()
            for connection in list(self._handler.connections):
                if connection.transport:
                    connection.transport.abort()
            self._server = None

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.paths[request.path] += 1
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            message = f"Incorrect API key provided: {request.headers.get('Authorization')}"
            return web.json_response({"error": {"message": message}}, status=401)
        if status := self.path_statuses.get(request.path):
            return web.json_response({"error": {"message": f"stub says {status}"}}, status=status)
        if request.path == "/v1/models":
            if self.listed is not None:
                return web.json_response(self.listed)
            entry = {"root": self.root} | ({"max_model_len": self.window} if self.window else {})
            return web.json_response({"data": [{"id": name, **entry} for name in self.models]})
        if request.path not in ("/tokenize", "/v1/chat/completions"):
            return web.json_response({"detail": "Not Found"}, status=404)
        body = await request.json()
        if body["model"] not in self.models:
            message = f"The model `{body['model']}` does not exist."
            return web.json_response({"error": {"message": message}}, status=404)
        if request.path == "/tokenize":
            return self._tokenize(body)
        self._in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self._in_flight)
        try:
            return await self._chat(request, body)
        finally:
            self._in_flight -= 1

    def _tokenize(self, body: dict[str, Any]) -> web.StreamResponse:
        if "tokenize" not in self.capabilities:
            return web.json_response({"detail": "Not Found"}, status=404)
        if "messages" in body and "tokenize text alone" in self.capabilities:
            return web.json_response({"error": {"message": "prompt: field required"}}, status=422)
        text = body["prompt"] if "prompt" in body else body["messages"][0]["content"]
        count = tokens(text) + (10 if "messages" in body else 0)
        ids = [number for number, word in _WORDS.items() if word == text] or list(range(count))
        return web.json_response({"count": count, "tokens": [ord(text)] if len(text) == 1 else ids})

    async def _chat(self, request: web.BaseRequest, body: dict[str, Any]) -> web.StreamResponse:
        if self.status != 200:
            self.faults[str(self.status)] += 1
            error = {"error": {"message": f"stub says {self.status}"}}
            return web.json_response(error, status=self.status, headers={"Retry-After": "0.2"})
        if self.logprobs_status and body.get("logprobs"):
            error = {"error": {"message": "logprobs are not supported"}}
            return web.json_response(error, status=self.logprobs_status)
        self.bodies.append(body)
        if refusal := self.refuse(body):
            return refusal.response()
        message = body["messages"][0]["content"]
        match = _PAIR.search(message)
        pair = (match[1], match[2]) if match else ("", "")
        if match and "capital of France" not in pair[0]:
            self.messages.append(message)
            self.requested[pair] += 1
            if self.delay:
                async with self.slots:
                    await asyncio.sleep(self.delay)
            fault = self.fault(self.requested.total(), pair)
            if fault is not None:
                return await self._send_fault(request, fault)
            self.graded[pair] += 1
        length = tokens(message) + 10
        window = self.window or self.unreported_window
        if window and length + body.get("max_tokens", 0) > window:
            error = {"error": {"message": f"This model's maximum context length is {window} tokens, not {length}."}}
            return web.json_response(error, status=400)
        reply = self._completion(body, pair if match else None, length)
        return web.json_response(self.shape(reply, body, pair if match else None))

    def _completion(self, body: dict[str, Any], pair: Pair | None, length: int) -> dict[str, Any]:
        question = body["messages"][0]["content"].partition("</passage>\n\n")[2]
        question = question.removesuffix(" Answer with one word: yes or no.") if "yes or no" in question else ""
        question = question.removesuffix(" Reply with yes or no only.")
        labels = YES_NO if question else LABELS
        probabilities, text = {}, "hello"
        if pair:
            chance = self.chance_of_yes(pair, question) if question else 0
            values = [chance, 1 - chance] if question else self.distribution(pair)
            probabilities = dict(zip(labels, values, strict=True))
            text = labels[values.index(max(values))]
        constrained = bool(body.get("structured_outputs")) and "choice" in self.capabilities
        if constrained:
            text = text if pair else body["structured_outputs"]["choice"][0]
            labels = YES_NO if text in YES_NO else LABELS
            probabilities = probabilities or dict.fromkeys(labels, 1 / len(labels))
        elif self.reply_text is not None:
            text = self.reply_text.format(text)
        if labels == YES_NO:  # the model's own spelling, with a tenth of the probability on the other one
            text = self.spell(text) if text in labels else text
            probabilities = {
                spelling: share * p
                for label, p in probabilities.items()
                for spelling, share in {label: 0.1, self.spell(label): 0.9}.items()
            }
        other = text if text.strip().lower() not in labels else "The"
        top: dict[str, float] | None = None
        if body.get("logprobs") and "logprobs" in self.capabilities:
            # 6% of the probability is on another token, unless decoding is constrained to the labels.
            others = {} if constrained else {other: math.log(0.06)}
            top = {label: math.log((1 if constrained else 0.94) * p) for label, p in probabilities.items()} | others
            top = dict(sorted(top.items(), key=lambda item: -item[1])[: body.get("top_logprobs", 0)])
            top = {text if token == text.strip() else token: value for token, value in top.items()}
        if body.get("logprob_token_ids") and "label_ids" in self.capabilities:
            requested = (_WORDS.get(number) or chr(number) for number in body["logprob_token_ids"])
            top = {
                label: math.log(0.94 * probabilities.get(label, 0.001 if labels == LABELS else 1e-9))
                for label in requested
            } | {text if text.lower() not in labels else "The": math.log(0.06)}
        choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}}
        if top is not None:
            entries = [{"token": token, "logprob": value} for token, value in top.items()]
            choice["logprobs"] = {
                "content": [{"token": text, "logprob": top.get(text, -9999.0), "top_logprobs": entries}]
            }
        usage = {"prompt_tokens": length, "prompt_tokens_details": {"cached_tokens": length // 2}}
        return {"choices": [choice], "usage": usage}

    async def _send_fault(self, request: web.BaseRequest, fault: Fault) -> web.StreamResponse:
        if isinstance(fault, Raw):
            self.faults[str(fault.status)] += 1
            return fault.response()
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
        message = {"content": fault}  # any other fault is sent as the reply's text
        return web.json_response({"choices": [{"message": message}], "usage": {"prompt_tokens": 1}})


def tokens(text: str) -> int:
    """The number of tokens in ``text``: one for four bytes."""
    return math.ceil(len(text.encode()) / 4)
