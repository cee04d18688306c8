"""An LLM behind an OpenAI-compatible server as judge: vLLM at its best, any such server degraded and saying so."""

import asyncio
import hashlib
import json
import logging
import random
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from pyrite import metrics
from pyrite.judges.base import Judgment, Missing, Pair
from pyrite.judges.grading import LABELS, read_grade, strays
from pyrite.judges.prompt import Prompt, load_prompt
from pyrite.judges.window import Window
from pyrite.llm.capabilities import Capabilities, detect_capabilities
from pyrite.llm.concurrency import backoff_delay
from pyrite.llm.pool import Completion, Pool, RetriesExhausted
from pyrite.spec import RunSpec

#: Raise when the same model, asked the same prompt, would give another grade: old judgments are then not used again.
_VERSION = 1

#: How often a pair is asked whose reply is none of the labels.
_TRIES = 3

#: So many replies tell whether a model means to answer with a grade.
_ENOUGH = 50

_SAMPLE = ("What is the capital of France?", "Paris is the capital and the largest city of France.")

_log = logging.getLogger(__name__)


class LlmJudge:
    """Grades by the label that the model finds most likely.

    The fingerprint is of the model's name, the prompt and the labels. How a server is brought to say its distribution
    over the labels (``pyrite.llm.capabilities``) is not part of it: at temperature 0 "label_ids" and "choice" give the
    same most likely label, and so the same grade; "logprobs" gives it or leaves the pair missing, and "text" reads what
    the model says. Without logprobs the distribution is empty. So it is known before a server is asked, and a run whose
    pairs are all known needs no server.
    """

    shared = True

    def __init__(self, pool: Pool, prompt: Prompt, queries: pa.Table, passages: pa.Table, in_flight: int):
        """``queries`` and ``passages`` as ``pyrite.tables`` describes them; ``in_flight``: pairs, over all servers."""
        self.in_flight = in_flight
        self.fingerprint = fingerprint(pool.model, prompt)
        #: Passages that were cut to fit the model's window.
        self.truncated = 0
        #: Pairs graded by the probabilities of the labels, where the model's own word was none of them.
        self.off_label = 0
        self._watched = 0  # pairs graded by the probabilities, off_label or not
        self._pool, self._prompt = pool, prompt
        self._queries = dict(zip(queries["query_id"].to_pylist(), queries["text"].to_pylist(), strict=True))
        self._rows = {passage: row for row, passage in enumerate(passages["passage_id"].to_pylist())}
        self._texts = passages["text"]  # stays in Arrow: as Python strings a large corpus would be there twice
        self._looking = asyncio.Lock()
        self._abilities: Capabilities | None = None
        self._window: Window | None = None
        self._unparsable = metrics.REQUEST_FAILURES.labels("unparsable")  # 0, not absent

    @classmethod
    def open(cls, spec: RunSpec, queries: pa.Table, passages: pa.Table) -> Self:
        """The judge that a run's settings describe. No server is asked before the first pair.

        Raises:
            UserError: no server, or no sound prompt or key, is named.
        """
        pool = Pool.from_spec(spec, spec.judge.model)
        in_flight = spec.resources.judge_concurrency * len(pool.urls)
        return cls(pool, load_prompt(spec.judge.prompt), queries, passages, in_flight)

    @property
    def decoding_mode(self) -> str | None:
        """How the servers are asked, one of ``pyrite.llm.capabilities.DECODING_MODES``; None while none was."""
        return self._abilities.decoding_mode if self._abilities else None

    @property
    def stats(self) -> dict[str, Any]:
        """How the servers were asked, how many passages were cut to fit the model's window, and how many off_label."""
        return {"decoding_mode": self.decoding_mode, "truncated": self.truncated, "off_label": self.off_label}

    async def __aenter__(self) -> Self:
        await self._pool.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._pool.__aexit__(kind, error, trace)

    async def ready(self) -> None:
        """Wait for a server, and find out what it can do: else the first pair does.

        Raises:
            UserError: a server refuses what is asked, and would again.
            PyriteError: no server answers.
        """
        await self._look()

    async def grade(self, pair: Pair) -> Judgment | Missing:
        """Grade ``pair``, as ``pyrite.judges.base.Judge`` says.

        Raises:
            UserError: a server refuses what is asked, and would again.
            PyriteError: no server answers.
        """
        capabilities, window = await self._look()
        try:
            return await self._ask(pair, capabilities, window)
        except RetriesExhausted as error:
            return Missing(pair, error.reason, error.attempts, error.kind)

    async def _ask(self, pair: Pair, capabilities: Capabilities, window: Window) -> Judgment | Missing:
        fitted = await window.fit(self._queries[pair.query_id], self._texts[self._rows[pair.passage_id]].as_py())
        if fitted is None:
            reason = f"the prompt and the query fill the model's window of {capabilities.window} tokens"
            return Missing(pair, reason, 0, "window")
        message, was_cut = fitted
        if was_cut:
            self.truncated += 1
            metrics.TRUNCATED.inc()
        body = {"messages": _messages(message), **capabilities.request(LABELS)}
        attempts = 0
        for tries in range(1, _TRIES + 1):
            try:
                answer = await self._pool.chat(pair.query_id, body)
            except RetriesExhausted as error:
                error.attempts += attempts
                raise
            attempts += answer.attempts
            graded = read_grade(answer, capabilities.decoding_mode)
            if graded:
                if capabilities.decoding_mode == "label_ids":
                    self._watch(answer)
                tokens, cached = answer.prompt_tokens, answer.cached_tokens
                return Judgment(pair, graded.grade, graded.distribution, tokens, cached, answer.latency, attempts)
            self._unparsable.inc()
            if tries < _TRIES:
                await asyncio.sleep(backoff_delay(tries, None, random.random()))
        return Missing(pair, "the model's reply is none of the grades 1 to 4", attempts, "unparsable")

    def _watch(self, answer: Completion) -> None:
        """Count a graded reply that strays, and say so where most do: the probabilities give a grade whatever it is."""
        self._watched += 1
        self.off_label += strays(answer)
        if self._watched == _ENOUGH and self.off_label > _ENOUGH / 2:
            _log.warning(
                "%s of the first %s pairs were graded though the model's own word is no grade (the last: %r). Is it a "
                "reasoning model, or its chat template a wrong one? `pyrite probe` checks the judge",
                self.off_label,
                _ENOUGH,
                answer.text,
            )

    async def _look(self) -> tuple[Capabilities, Window]:
        """What the servers can do: asked once, by the first pair."""
        if self._abilities is None or self._window is None:
            async with self._looking:
                if self._abilities is None or self._window is None:
                    found = await detect_capabilities(self._pool, _messages(self._prompt.render(*_SAMPLE)), LABELS)
                    count = self._count if found.tokenizes else None
                    self._window = Window(self._prompt, found.window, found.sample_tokens, count)
                    self._abilities = found
        return self._abilities, self._window

    async def _count(self, message: str) -> int:
        return await self._pool.count_tokens(message, _messages(message))


def fingerprint(model: str, prompt: Prompt) -> str:
    """Hex digest of what judgments are kept under: the model's name, what it is asked, and what it may answer.

    The model's window is not in it: the grade of a passage that was cut stands when the same name has a larger one.
    Nor is the very text of a pair: ids are of the normalised one (``pyrite.identity``), so what differs in case or
    blanks alone is one pair, although the model reads the text as it stands.
    """
    content = {"version": _VERSION, "model": model, "prompt": prompt.digest, "labels": LABELS, "temperature": 0}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]
