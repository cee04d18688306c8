"""An LLM behind an OpenAI-compatible server as the judge."""

import asyncio
import hashlib
import json
import logging
import random
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from pyrite import metrics
from pyrite.judges import register
from pyrite.judges.base import Judge, Judgment, Missing, Pair
from pyrite.judges.grading import LABELS, is_off_label, read_grade
from pyrite.judges.prompt import Prompt, Window, load_prompt
from pyrite.llm.capabilities import Capabilities, detect_capabilities
from pyrite.llm.concurrency import backoff_delay
from pyrite.llm.pool import Completion, Pool, RetriesExhausted
from pyrite.spec import LlmJudgeSpec, RunSpec

#: Increment when the same model and prompt would give other grades, so that cached judgments are not used.
_VERSION = 1

#: Requests per pair, if replies are none of the labels.
_TRIES = 3

#: Check the share of off-label tokens after this many pairs.
_CHECK_AFTER = 50

_SAMPLE = ("What is the capital of France?", "Paris is the capital and the largest city of France.")

_log = logging.getLogger(__name__)


@register("llm")
class LlmJudge(Judge):
    """Grades by the label that the model finds most likely.

    The fingerprint covers the model's name, the prompt and the labels. It does not cover the decoding mode
    (``pyrite.llm.capabilities``): at temperature 0 "label_ids" and "choice" give the same most likely label, "logprobs"
    gives it or leaves the pair missing, and "text" reads the model's reply. Without log probabilities there is no
    distribution. So the fingerprint is known before any request, and a run whose pairs are all cached needs no server.
    """

    shareable = True

    def __init__(self, pool: Pool, prompt: Prompt, queries: pa.Table, passages: pa.Table, in_flight: int):
        """``queries`` and ``passages`` as in ``pyrite.tables``; ``in_flight``: concurrent pairs over all servers."""
        self.in_flight = in_flight
        self.fingerprint = fingerprint(pool.model, prompt)
        #: Passages truncated to fit the model's context length.
        self.truncated = 0
        #: Pairs graded by label probabilities although the model's own token is none of the labels.
        self.off_label = 0
        self._checked = 0  # pairs graded by label probabilities
        self._pool, self._prompt = pool, prompt
        self._queries = dict(zip(queries["query_id"].to_pylist(), queries["text"].to_pylist(), strict=True))
        self._rows = {passage: row for row, passage in enumerate(passages["passage_id"].to_pylist())}
        self._texts = passages["text"]  # stays in Arrow: Python strings would double the memory of a large corpus
        self._detecting = asyncio.Lock()
        self._detected: tuple[Capabilities, Window] | None = None
        self._unparsable = metrics.REQUEST_FAILURES.labels("unparsable")  # so that the metric is 0, not absent

    @classmethod
    def open(cls, spec: RunSpec, queries: pa.Table, passages: pa.Table, qrels: pa.Table) -> Self:
        """The judge that a run's settings describe. Sends no request.

        Raises:
            UserError: no server is named, or the prompt or the API key is wrong.
        """
        del qrels
        pool = Pool.from_spec(spec, spec.judge.server_model)
        in_flight = spec.resources.judge_concurrency * len(pool.urls)
        return cls(pool, _prompt(spec), queries, passages, in_flight)

    @classmethod
    def fingerprint_of(cls, spec: RunSpec) -> str:
        return fingerprint(spec.judge.server_model or "", _prompt(spec))

    @classmethod
    def external(cls, spec: RunSpec) -> Mapping[str, Callable[[], str]]:
        return {"prompt": lambda: _prompt(spec).digest}

    @property
    def decoding_mode(self) -> str | None:
        """One of ``pyrite.llm.capabilities.DECODING_MODES``; None before the first request."""
        return self._detected[0].decoding_mode if self._detected else None

    @property
    def stats(self) -> dict[str, Any]:
        return {"decoding_mode": self.decoding_mode, "truncated": self.truncated, "off_label": self.off_label}

    async def __aenter__(self) -> Self:
        await self._pool.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._pool.__aexit__(kind, error, trace)

    async def ready(self) -> None:
        """Wait for a server and detect its capabilities. Otherwise the first pair does this."""
        await self._detect()

    async def grade(self, pair: Pair) -> Judgment | Missing:
        capabilities, window = await self._detect()
        try:
            return await self._request_grade(pair, capabilities, window)
        except RetriesExhausted as error:
            return Missing(pair, error.reason, error.attempts, error.kind)

    async def _request_grade(self, pair: Pair, capabilities: Capabilities, window: Window) -> Judgment | Missing:
        fitted = await window.fit(self._queries[pair.query_id], self._texts[self._rows[pair.passage_id]].as_py())
        if fitted is None:
            reason = f"the prompt and the query fill the model's window of {capabilities.window} tokens"
            return Missing(pair, reason, 0, "window")
        message, is_truncated = fitted
        if is_truncated:
            self.truncated += 1
            metrics.TRUNCATED.inc()
        body = {"messages": _messages(message), **capabilities.request(LABELS)}
        attempts = 0
        for number in range(1, _TRIES + 1):
            try:
                reply = await self._pool.chat(pair.query_id, body)
            except RetriesExhausted as error:
                error.attempts += attempts
                raise
            attempts += reply.attempts
            graded = read_grade(reply, capabilities.decoding_mode)
            if graded:
                if capabilities.decoding_mode == "label_ids":
                    self._count_off_label(reply)
                tokens, cached = reply.prompt_tokens, reply.cached_tokens
                return Judgment(pair, graded.grade, graded.distribution, tokens, cached, reply.latency, attempts)
            self._unparsable.inc()
            if number < _TRIES:
                await asyncio.sleep(backoff_delay(number, None, random.random()))
        return Missing(pair, "the model's reply is none of the grades 1 to 4", attempts, "unparsable")

    def _count_off_label(self, reply: Completion) -> None:
        """Count off-label replies and warn if most are: the label probabilities give a grade in any case."""
        self._checked += 1
        self.off_label += is_off_label(reply)
        if self._checked == _CHECK_AFTER and self.off_label > _CHECK_AFTER / 2:
            _log.warning(
                "in %s of the first %s pairs the model's own token is not a grade (the last: %r). Is it a reasoning "
                "model, or is its chat template wrong? Run `pyrite probe` to check the judge",
                self.off_label,
                _CHECK_AFTER,
                reply.text,
            )

    async def _detect(self) -> tuple[Capabilities, Window]:
        """The servers' capabilities, detected once."""
        if self._detected is None:
            async with self._detecting:
                if self._detected is None:
                    found = await detect_capabilities(self._pool, _messages(self._prompt.render(*_SAMPLE)), LABELS)
                    count = self._count_tokens if found.tokenizes else None
                    self._detected = found, Window(self._prompt, found.window, found.sample_tokens, count)
        return self._detected

    async def _count_tokens(self, message: str) -> int:
        return await self._pool.count_tokens(message, _messages(message))


def fingerprint(model: str, prompt: Prompt) -> str:
    """Hex digest of the model's name, the prompt and the labels, under which judgments are cached.

    It does not cover the context length: the grade of a truncated passage stays valid if the same name is served with a
    longer one. Pairs are identified by ids of normalised texts (``pyrite.identity``), so texts that differ in case or
    white space only are one pair, although the model reads the original text.
    """
    content = {"version": _VERSION, "model": model, "prompt": prompt.digest, "labels": LABELS, "temperature": 0}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _prompt(spec: RunSpec) -> Prompt:
    assert isinstance(spec.judge, LlmJudgeSpec)
    return load_prompt(spec.judge.prompt)


def _messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]
