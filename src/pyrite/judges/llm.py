"""An LLM behind an OpenAI-compatible server as the judge."""

import asyncio
import hashlib
import json
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self

from pyrite import metrics
from pyrite.judges import register
from pyrite.judges.base import Judgment, Missing, Pair
from pyrite.judges.grading import ParsedGrade, is_off_label, parse_grade
from pyrite.judges.prompt import Prompt, Window, load_prompt
from pyrite.judges.server import ServerJudge
from pyrite.llm.capabilities import Capabilities, detect_capabilities
from pyrite.llm.concurrency import backoff_delay
from pyrite.llm.errors import RequestRejected
from pyrite.llm.labels import NO_DISTRIBUTION, Reading, read_label
from pyrite.llm.pool import Completion, Pool, RetriesExhausted
from pyrite.spec import ConfiguredJudge, LlmJudgeSpec

#: Increment when the same model and prompt would give other grades or distributions, so that cached judgments are not
#: used.
_VERSION = 3

#: Maximum requests per message of a pair, if no reply contains a label.
_MAX_TRIES = 3

#: The share of off-label tokens is checked after this many pairs.
_CHECK_AFTER = 50

_SAMPLE = ("What is the capital of France?", "Paris is the capital and the largest city of France.")

_log = logging.getLogger(__name__)


@register("llm")
class LlmJudge(ServerJudge):
    """Grades by the label in each reply. In the mode label_ids, a token that is no label has the likeliest label.

    A prompt of the form yes_no has two messages. They are sent in sequence, so that the second one finds rubric, query
    and passage in the server's prefix cache.

    The fingerprint covers the model's name, the prompt and the labels. It is known before any request, so a run whose
    pairs are all cached needs no server. It does not cover the decoding mode (``pyrite.llm.capabilities``): at
    temperature 0, "label_ids" and "choice" give the same most likely label, "logprobs" gives it or leaves the pair
    missing, and "text" parses the generated text. Without valid log probabilities there is no distribution.
    """

    def __init__(self, pool: Pool, prompt: Prompt):
        super().__init__(pool)
        self.fingerprint = fingerprint(pool.model, prompt)
        #: Number of pairs graded by label probabilities although the generated token is not a label.
        self.off_label = 0
        #: Number of pairs whose reply had no usable log probabilities, although the server returns them.
        self.without_logprobs = 0
        self._label_ids_pairs = 0
        self._prompt = prompt
        self._detecting = asyncio.Lock()
        self._detected: tuple[Capabilities, Window] | None = None
        self._unparsable = metrics.REQUEST_FAILURES.labels("unparsable")  # so that the metric starts at 0

    @classmethod
    def open(cls, judge: ConfiguredJudge) -> Self:
        """Open the judge. Sends no request.

        Raises:
            UserError: no server is named, or the prompt or the API key is wrong.
        """
        return cls.with_prompt(judge, _prompt(judge))

    @classmethod
    def with_prompt(cls, judge: ConfiguredJudge, prompt: Prompt) -> Self:
        """Like ``open``, with this ``prompt`` instead of the run's."""
        return cls(Pool.open(judge.servers, judge.spec.server_model), prompt)

    @classmethod
    def fingerprint_of(cls, judge: ConfiguredJudge) -> str:
        return fingerprint(judge.spec.server_model or "", _prompt(judge))

    @classmethod
    def requests_per_pair(cls, judge: ConfiguredJudge) -> int:
        return len(_prompt(judge).endings)

    @classmethod
    def external(cls, judge: ConfiguredJudge) -> Mapping[str, Callable[[], str]]:
        return {"prompt": lambda: _prompt(judge).digest}

    @property
    def decoding_mode(self) -> str | None:
        """One of ``pyrite.llm.capabilities.DECODING_MODES``; None before the first request."""
        return self._detected[0].decoding_mode if self._detected else None

    @property
    def stats(self) -> dict[str, Any]:
        counts = {name: getattr(self, name) for name in ("truncated", "off_label", "without_logprobs")}
        return {"decoding_mode": self.decoding_mode, **counts}

    async def ready(self) -> None:
        """Wait for a server and detect its capabilities. If this is not called, the first ``grade`` does it."""
        await self._detect()

    async def _request_grade(self, pair: Pair) -> Judgment | Missing:
        capabilities, window = await self._detect()
        query, passage = self.texts(pair)
        fitted = await window.fit(query, passage)
        if fitted is None:
            reason = f"prompt and query alone fill the model's context window of {capabilities.window} tokens"
            return Missing(pair, reason, 0, "window")
        if fitted != passage:
            self.truncated += 1
            metrics.TRUNCATED.inc()
        answers: list[_Answer] = []
        for number in range(len(self._prompt.endings)):
            answer = await self._request_label(pair, self._prompt.render(query, fitted, number), capabilities)
            if isinstance(answer, Missing):
                return answer
            answers.append(answer)
        replies = [answer.reply for answer in answers]
        graded = parse_grade(self._prompt.form, [answer.reading for answer in answers])
        self._count(replies, graded, capabilities)
        return Judgment(
            pair,
            graded.grade,
            graded.distribution,
            self.context(pair),
            sum(reply.prompt_tokens for reply in replies),
            sum(reply.cached_tokens for reply in replies),
            sum(reply.latency for reply in replies),
            max(answer.attempts for answer in answers),
        )

    async def _request_label(self, pair: Pair, message: str, capabilities: Capabilities) -> "_Answer | Missing":
        """Send ``message`` until the reply is a label."""
        body = {"messages": _messages(message), **capabilities.request(self._prompt.labels)}
        attempts, reason = 0, ""
        for number in range(1, _MAX_TRIES + 1):
            try:
                reply = await self._pool.chat(pair.query_id, body)
            except (RetriesExhausted, RequestRejected) as error:
                error.attempts += attempts
                raise
            attempts += reply.attempts
            reading = read_label(reply, self._prompt.labels, capabilities.decoding_mode)
            if isinstance(reading, Reading):
                return _Answer(reading, reply, attempts)
            reason = reading
            self._unparsable.inc()
            if number < _MAX_TRIES:
                await asyncio.sleep(backoff_delay(number, None, random.random()))
        return Missing(pair, reason, attempts, "unparsable")

    def _count(self, replies: Sequence[Completion], graded: ParsedGrade, capabilities: Capabilities) -> None:
        """Count pairs whose replies differ from what the mode should give."""
        if capabilities.decoding_mode == "label_ids":
            self._count_off_label(replies)
        if capabilities.logprobs and graded.distribution is None:
            self.without_logprobs += 1
            if self.without_logprobs == 1:
                problem = next(filter(None, (reply.logprobs_problem for reply in replies)), NO_DISTRIBUTION)
                _log.warning("the log probabilities of a reply are not used (%s). Its grade is from its text", problem)

    def _count_off_label(self, replies: Sequence[Completion]) -> None:
        """Count off-label pairs. Warns if most are, because the label probabilities give a grade even then."""
        self._label_ids_pairs += 1
        off_label = [reply for reply in replies if is_off_label(reply, self._prompt.labels)]
        self.off_label += bool(off_label)
        if self._label_ids_pairs == _CHECK_AFTER and self.off_label > _CHECK_AFTER / 2:
            _log.warning(
                "in %s of the first %s pairs the generated token is not %s (the last: %r). Is this a reasoning "
                "model, or is its chat template wrong? Run `pyrite probe` to check the judge",
                self.off_label,
                _CHECK_AFTER,
                "a grade" if self._prompt.form == "grades" else "yes or no",
                (off_label or replies)[-1].text,
            )

    async def _detect(self) -> tuple[Capabilities, Window]:
        """The servers' capabilities, detected once."""
        if self._detected is None:
            async with self._detecting:
                if self._detected is None:
                    sample = _messages(self._prompt.render(*_SAMPLE, self._prompt.longest))
                    found = await detect_capabilities(self._pool, sample, self._prompt.labels)
                    count = self._count_tokens if found.tokenizes else None
                    self._detected = found, Window(self._prompt, found.prompt_window, found.sample_tokens, count)
        return self._detected

    async def _count_tokens(self, message: str) -> int:
        return await self._pool.count_tokens(message, _messages(message))


class _Answer(NamedTuple):
    """A label, the reply that gave it, and the number of requests for it."""

    reading: Reading
    reply: Completion
    attempts: int


def fingerprint(model: str, prompt: Prompt) -> str:
    """Hex digest of the model's name, the prompt and the labels, under which judgments are cached.

    It does not cover the context length: the grade of a truncated passage stays valid if the model is later served
    with a longer one. Pairs are identified by ids of normalised texts (``pyrite.identity``). Texts that differ only in
    case or white space are therefore one pair, although the model reads the original text.
    """
    content = {"version": _VERSION, "model": model, "prompt": prompt.digest, "labels": prompt.labels, "temperature": 0}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _prompt(judge: ConfiguredJudge) -> Prompt:
    assert isinstance(judge.spec, LlmJudgeSpec)
    return load_prompt(judge.spec.prompt, f"{judge.section}.prompt")


def _messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]
