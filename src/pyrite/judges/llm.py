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

from pyrite import metrics, tables
from pyrite.judges import register
from pyrite.judges.base import Judge, Judgment, Missing, Pair
from pyrite.judges.grading import LABELS, ParsedGrade, is_off_label, read_grade
from pyrite.judges.prompt import Prompt, Window, load_prompt
from pyrite.llm.capabilities import Capabilities, detect_capabilities
from pyrite.llm.concurrency import backoff_delay
from pyrite.llm.errors import RequestRejected
from pyrite.llm.labels import NO_DISTRIBUTION
from pyrite.llm.pool import Completion, Pool, RetriesExhausted
from pyrite.spec import LlmJudgeSpec, RunSpec

#: Increment when the same model and prompt would give other grades, so that cached judgments are not used.
_VERSION = 3

#: Maximum requests per pair, if no reply contains a grade.
_MAX_TRIES = 3

#: The share of off-label tokens is checked after this many pairs.
_CHECK_AFTER = 50

_SAMPLE = ("What is the capital of France?", "Paris is the capital and the largest city of France.")

_log = logging.getLogger(__name__)


@register("llm")
class LlmJudge(Judge):
    """Grades by the label in the reply. In the mode label_ids, a token that is no label has the likeliest label.

    The fingerprint covers the model's name, the prompt and the labels. It is known before any request, so a run whose
    pairs are all cached needs no server. It does not cover the decoding mode (``pyrite.llm.capabilities``): at
    temperature 0, "label_ids" and "choice" give the same most likely label, "logprobs" gives it or leaves the pair
    missing, and "text" parses the generated text. Without valid log probabilities there is no distribution.

    A request that the server rejects because of its content makes the pair missing: the server has accepted the sample.
    """

    shareable = True

    def __init__(self, pool: Pool, prompt: Prompt, queries: pa.Table, passages: pa.Table):
        """``queries`` and ``passages`` as in ``pyrite.tables``."""
        self.in_flight = pool.max_in_flight
        self.fingerprint = fingerprint(pool.model, prompt)
        #: Number of passages truncated to fit the model's context length.
        self.truncated = 0
        #: Number of pairs graded by label probabilities although the generated token is not a label.
        self.off_label = 0
        #: Number of pairs whose reply had no usable log probabilities, although the server returns them.
        self.without_logprobs = 0
        self._label_ids_pairs = 0
        self._pool, self._prompt = pool, prompt
        self._queries = dict(zip(queries["query_id"].to_pylist(), queries["text"].to_pylist(), strict=True))
        self._rows = {passage: row for row, passage in enumerate(passages["passage_id"].to_pylist())}
        # Stays in Arrow: Python strings would double the memory of a large corpus.
        self._passages = passages.select(["context", "text"])
        self._detecting = asyncio.Lock()
        self._detected: tuple[Capabilities, Window] | None = None
        self._unparsable = metrics.REQUEST_FAILURES.labels("unparsable")  # so that the metric starts at 0

    @classmethod
    def open(cls, spec: RunSpec, queries: pa.Table, passages: pa.Table, qrels: pa.Table) -> Self:
        """Open the judge. Sends no request.

        Raises:
            UserError: no server is named, or the prompt or the API key is wrong.
        """
        del qrels
        return cls(Pool.from_spec(spec, spec.judge.server_model), _prompt(spec), queries, passages)

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
        counts = {name: getattr(self, name) for name in ("truncated", "off_label", "without_logprobs")}
        return {"decoding_mode": self.decoding_mode, **counts}

    async def __aenter__(self) -> Self:
        await self._pool.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._pool.__aexit__(kind, error, trace)

    def context(self, passage_id: str) -> str:
        """The passage's context; empty if the judge does not have the passage."""
        row = self._rows.get(passage_id)
        return "" if row is None else str(self._passages["context"][row].as_py())

    async def ready(self) -> None:
        """Wait for a server and detect its capabilities. If this is not called, the first ``grade`` does it."""
        await self._detect()

    async def grade(self, pair: Pair) -> Judgment | Missing:
        capabilities, window = await self._detect()
        try:
            return await self._request_grade(pair, capabilities, window)
        except RetriesExhausted as error:
            return Missing(pair, error.reason, error.attempts, error.kind)
        except RequestRejected as error:
            if not error.concerns_content:
                raise
            return Missing(pair, error.reason, error.attempts, "rejected")

    async def _request_grade(self, pair: Pair, capabilities: Capabilities, window: Window) -> Judgment | Missing:
        (passage,) = tables.in_context(self._passages.slice(self._rows[pair.passage_id], 1))
        fitted = await window.fit(self._queries[pair.query_id], passage)
        if fitted is None:
            reason = f"prompt and query alone fill the model's context window of {capabilities.window} tokens"
            return Missing(pair, reason, 0, "window")
        message, is_truncated = fitted
        if is_truncated:
            self.truncated += 1
            metrics.TRUNCATED.inc()
        body = {"messages": _messages(message), **capabilities.request(LABELS)}
        attempts, reason = 0, ""
        for number in range(1, _MAX_TRIES + 1):
            try:
                reply = await self._pool.chat(pair.query_id, body)
            except (RetriesExhausted, RequestRejected) as error:
                error.attempts += attempts
                raise
            attempts += reply.attempts
            graded = read_grade(reply, capabilities.decoding_mode)
            if isinstance(graded, ParsedGrade):
                self._count(reply, graded, capabilities)
                return Judgment(
                    pair,
                    graded.grade,
                    graded.distribution,
                    self.context(pair.passage_id),
                    reply.prompt_tokens,
                    reply.cached_tokens,
                    reply.latency,
                    attempts,
                )
            reason = graded
            self._unparsable.inc()
            if number < _MAX_TRIES:
                await asyncio.sleep(backoff_delay(number, None, random.random()))
        return Missing(pair, reason, attempts, "unparsable")

    def _count(self, reply: Completion, graded: ParsedGrade, capabilities: Capabilities) -> None:
        """Count replies that differ from what the mode should give."""
        if capabilities.decoding_mode == "label_ids":
            self._count_off_label(reply)
        if capabilities.logprobs and graded.distribution is None:
            self.without_logprobs += 1
            if self.without_logprobs == 1:
                problem = reply.logprobs_problem or NO_DISTRIBUTION
                _log.warning("the log probabilities of a reply are not used (%s). Its grade is from its text", problem)

    def _count_off_label(self, reply: Completion) -> None:
        """Count off-label replies. Warns if most are, because the label probabilities give a grade even then."""
        self._label_ids_pairs += 1
        self.off_label += is_off_label(reply)
        if self._label_ids_pairs == _CHECK_AFTER and self.off_label > _CHECK_AFTER / 2:
            _log.warning(
                "in %s of the first %s pairs the generated token is not a grade (the last: %r). Is this a reasoning "
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
                    self._detected = found, Window(self._prompt, found.prompt_window, found.sample_tokens, count)
        return self._detected

    async def _count_tokens(self, message: str) -> int:
        return await self._pool.count_tokens(message, _messages(message))


def fingerprint(model: str, prompt: Prompt) -> str:
    """Hex digest of the model's name, the prompt and the labels, under which judgments are cached.

    It does not cover the context length: the grade of a truncated passage stays valid if the model is later served
    with a longer one. Pairs are identified by ids of normalised texts (``pyrite.identity``). Texts that differ only in
    case or white space are therefore one pair, although the model reads the original text.
    """
    content = {"version": _VERSION, "model": model, "prompt": prompt.digest, "labels": LABELS, "temperature": 0}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _prompt(spec: RunSpec) -> Prompt:
    assert isinstance(spec.judge, LlmJudgeSpec)
    return load_prompt(spec.judge.prompt)


def _messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]
