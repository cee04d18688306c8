"""A stub of a reranker's server, in the request and reply formats of vLLM, Cohere and text-embeddings-inference.

The score of a document is the share of the query's words that it contains. Replies are sorted by score, as those of
real servers are. The tests in tests/real use a real server.
"""

import asyncio
import json
import math
import re
import threading
from collections.abc import Callable
from typing import Any, Literal, Self

from aiohttp import web

MODEL = "stub-reranker"

#: "score": vLLM's /score; "rerank": /rerank with documents; "cohere": the same at /v2/rerank; "texts": TEI's /rerank.
Api = Literal["score", "rerank", "cohere", "texts"]
_PATHS = {"score": "/score", "rerank": "/rerank", "cohere": "/v2/rerank", "texts": "/rerank"}


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def overlap(query: str, document: str) -> float:
    """The share of the query's words that are in the document."""
    return len(words(query) & words(document)) / max(1, len(words(query)))


def as_logit(score: float) -> float:
    """An increasing function of the score with values from -7 to 7, as servers without a sigmoid return them."""
    return math.log((score + 0.001) / (1.001 - score))


class StubReranker:
    """A context manager that runs the server in a thread. Attributes may be set at any time."""

    def __init__(self, *apis: Api):
        self.apis = apis or ("rerank",)
        self.score: Callable[[str, str], float] = overlap
        self.key: str | None = None
        #: The maximum number of characters of a query and a document.
        self.window = 100_000
        #: Changes the reply to a request for one document: returns an HTTP status and the reply.
        self.fault: Callable[[Any], tuple[int, Any]] = lambda reply: (200, reply)
        #: (query, document) of each request for one document, and all requests' bodies.
        self.pairs: list[tuple[str, str]] = []
        self.bodies: list[dict[str, Any]] = []
        self._port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    async def _listen(self) -> None:
        server = await self._loop.create_server(web.Server(self._handle), "127.0.0.1", 0)
        self._port = server.sockets[0].getsockname()[1]

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": {"message": "Invalid API key"}}, status=401)
        apis = [api for api in self.apis if _PATHS[api] == request.path]
        if not apis:
            return web.json_response({"detail": "Not Found"}, status=404)
        body = await request.json()
        if body["model"] != MODEL:
            return web.json_response({"error": {"message": f"The model {body['model']} does not exist."}}, status=404)
        query_name, documents_name = {
            "score": ("text_1", "text_2"), "texts": ("query", "texts")
        }.get(apis[0], ("query", "documents"))  # fmt: skip
        if documents_name not in body:
            return web.json_response({"error": f"missing field `{documents_name}`"}, status=422)
        self.bodies.append(body)
        query, documents = body[query_name], body[documents_name]
        if len(query) + max(map(len, documents)) > self.window:
            error = {"error": {"message": f"This model's maximum context length is {self.window} tokens."}}
            return web.json_response(error, status=400)
        reply = self._reply(apis[0], [(i, self.score(query, document)) for i, document in enumerate(documents)])
        if len(documents) > 1:
            return web.json_response(reply)
        self.pairs.append((query, documents[0]))
        status, reply = self.fault(reply)
        return web.Response(status=status, body=json.dumps(reply).encode(), content_type="application/json")

    def _reply(self, api: Api, scores: list[tuple[int, float]]) -> Any:
        best_first = sorted(scores, key=lambda item: -item[1])
        if api == "score":
            data = [{"index": i, "object": "score", "score": score} for i, score in scores]
            return {"object": "list", "data": data, "usage": {"prompt_tokens": 7, "total_tokens": 7}}
        if api == "texts":
            return [{"index": i, "score": score} for i, score in best_first]
        results = [{"index": i, "document": {"text": "..."}, "relevance_score": score} for i, score in best_first]
        return {"results": results, "usage": {"total_tokens": 7}}
