"""A stub LLM server that generates questions and grades pairs. Tests have no LLM that is fast and deterministic."""

import asyncio
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from aiohttp import web

from stub_judge import Stub

_PASSAGE = re.compile(r"<passage>\n(.*)\n</passage>", re.DOTALL)
_SHOT = re.compile(r"^- (.*)$", re.MULTILINE)


class Writer(Stub):
    """Builds questions from words of the prompt, and grades pairs as ``Stub`` does.

    A question depends only on the request. ``replies`` and ``statuses`` replace the text and the HTTP status of the
    reply to the n-th request, counted from 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.written: Counter[str] = Counter()  # requests for a question, by digest without the model's name
        self.shown: list[list[str]] = []  # the examples of each few-shot request
        self.replies: Callable[[int], str | None] = lambda _: None
        self.statuses: Callable[[int], int] = lambda _: 200
        self.pause = 0.0

    async def _chat(self, request: web.BaseRequest, body: dict[str, Any]) -> web.StreamResponse:
        message = body["messages"][0]["content"]
        if "seed" not in body:  # a request for a grade
            return await super()._chat(request, body)
        request_body = {name: value for name, value in body.items() if name != "model"}
        self.written[hashlib.sha256(json.dumps(request_body, sort_keys=True).encode()).hexdigest()] += 1
        number = self.written.total()
        passage = _PASSAGE.search(message)
        if not passage:
            self.shown.append(_SHOT.findall(message))
        if self.pause:
            await asyncio.sleep(self.pause)
        self.bodies.append(body)
        if refusal := self.refuse(body):
            return refusal.response()
        if (status := self.statuses(number)) != 200:
            return web.json_response({"error": {"message": "stub error"}}, status=status)
        text = self.replies(number) or self._question(passage[1] if passage else "", message, body["seed"])
        usage = {"prompt_tokens": len(message) // 4}
        reply = {"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage}
        return web.json_response(self.shape(reply, body, ("", passage[1] if passage else "")))

    @staticmethod
    def _question(passage: str, message: str, seed: int) -> str:
        words = re.findall(r"[a-z]{4,}", passage or " ".join(_SHOT.findall(message)))
        digest = hashlib.sha256(f"{seed} {message}".encode()).digest()
        chosen = [words[byte % len(words)] for byte in digest[:4]]
        return f"1. How do {chosen[0]} and {chosen[1]} go with {chosen[2]} or {chosen[3]} in case {digest[4:6].hex()}?"
