"""A server that stands in for an LLM that writes questions and grades pairs."""

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
    """Stands in for an LLM that writes sensible questions, which needs a GPU here; grades pairs as ``Stub`` does.

    Its questions hold words of what it is shown and depend on nothing but the request. ``replies`` come instead, to
    the requests whose number (from 1) they are under.
    """

    def __init__(self) -> None:
        super().__init__()
        self.written: Counter[str] = Counter()  # requests for a question, by the digest of all but the model's name
        self.shown: list[list[str]] = []  # the examples of each few-shot request
        self.replies: Callable[[int], str | None] = lambda _: None
        self.statuses: Callable[[int], int] = lambda _: 200
        self.pause = 0.0

    async def _chat(self, request: web.BaseRequest, body: dict[str, Any]) -> web.StreamResponse:
        message = body["messages"][0]["content"]
        if "seed" not in body:  # it is asked as a judge
            return await super()._chat(request, body)
        asked = {name: value for name, value in body.items() if name != "model"}
        self.written[hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()] += 1
        number = self.written.total()
        passage = _PASSAGE.search(message)
        if not passage:
            self.shown.append(_SHOT.findall(message))
        if self.pause:
            await asyncio.sleep(self.pause)
        if (status := self.statuses(number)) != 200:
            return web.json_response({"error": {"message": "stub says no"}}, status=status)
        text = self.replies(number) or self._question(passage[1] if passage else "", message, body["seed"])
        usage = {"prompt_tokens": len(message) // 4}
        return web.json_response({"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage})

    @staticmethod
    def _question(passage: str, message: str, seed: int) -> str:
        words = re.findall(r"[a-z]{4,}", passage or " ".join(_SHOT.findall(message)))
        digest = hashlib.sha256(f"{seed} {message}".encode()).digest()
        chosen = [words[byte % len(words)] for byte in digest[:4]]
        return f"1. How do {chosen[0]} and {chosen[1]} go with {chosen[2]} or {chosen[3]} in case {digest[4:6].hex()}?"
