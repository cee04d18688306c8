"""Detects what a pool's servers support, and selects the best mode in which they can return one of a few labels."""

import asyncio
import json
import logging
import random
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec, TypeVar, get_args

from tenacity import RetryCallState, retry, retry_if_exception, stop_after_attempt

from pyrite.errors import UserError
from pyrite.llm.client import CHAT_PATH, Completion, ErrorKind, RequestRejected, TransientError, parse_completion
from pyrite.llm.concurrency import backoff_delay
from pyrite.llm.pool import NoServerAvailable, Pool
from pyrite.llm.server import Server

DecodingMode = Literal["label_ids", "choice", "logprobs", "text"]

#: Best first. label_ids: one unconstrained token, with the log probabilities of the labels (``logprob_token_ids``).
#: choice: one token, constrained to the labels (``structured_outputs``), with or without log probabilities.
#: logprobs: one unconstrained token, with the log probabilities of the most likely tokens (``top_logprobs``).
#: text: a few words, from which the label is parsed.
DECODING_MODES: tuple[DecodingMode, ...] = get_args(DecodingMode)

#: Warnings by decoding mode and by whether it returns log probabilities.
_DEGRADED: dict[tuple[DecodingMode, bool], str] = {
    ("choice", False): "replies are limited to the labels, but have no logprobs: there are no expected grades",
    ("logprobs", True): "replies are not limited to the labels; a reply without a label is not graded",
    ("text", False): "not every server supports structured outputs or logprobs: labels are parsed from the text, "
    "and there are no expected grades",
}

#: OpenAI's maximum, and vLLM's default maximum.
_TOP_LOGPROBS = 20

#: Enough for "Grade: 3" and an end token.
_TEXT_TOKENS = 8

#: A prompt to which a model replies with a label only if the server constrains it.
_OFF_TOPIC = [{"role": "user", "content": "Write the word hello."}]

_MAX_ATTEMPTS = 3

#: Errors of a working server that does not support the request.
_UNSUPPORTED: tuple[ErrorKind, ...] = ("garbled", "server")

_log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Capabilities:
    """What all responding servers of a pool support.

    Attributes:
        decoding_mode: the best mode that all servers support.
        logprobs: whether replies in that mode have log probabilities.
        label_ids: the labels' token ids in the mode label_ids; otherwise empty.
        window: the context window in tokens (prompt and reply); None if unknown.
        tokenizes: whether the servers count tokens.
        sample_tokens: tokens of the sample messages, chat template included; 0 if unknown.
    """

    decoding_mode: DecodingMode
    logprobs: bool
    label_ids: tuple[int, ...]
    window: int | None
    tokenizes: bool
    sample_tokens: int

    def request(self, labels: Sequence[str]) -> dict[str, Any]:
        """The request's parameters, without the messages."""
        return _request(self.decoding_mode, labels, self.label_ids, self.logprobs)


@dataclass(frozen=True)
class _ServerCapabilities:
    decoding_modes: tuple[DecodingMode, ...]
    choice_logprobs: bool
    label_ids: tuple[int, ...]
    window: int | None
    root: str | None  # the model behind the served name
    tokenizes: bool
    sample_tokens: int


async def detect_capabilities(pool: Pool, messages: Messages, labels: Sequence[str]) -> Capabilities:
    """Test what the responding servers support. ``messages``: a sample of the prompts that they will receive.

    Raises:
        UserError: a server rejects the API key or does not serve the model.
        NoServerAvailable: no server responds for ``pool.outage_seconds``.
    """
    started, rounds = time.monotonic(), 0
    while True:
        rounds += 1
        results = await asyncio.gather(*(_Probe(server, pool.model, messages, labels).run() for server in pool.servers))
        detected = [result for result in results if isinstance(result, _ServerCapabilities)]
        if detected:
            return _common_capabilities(detected, pool)
        errors = "; ".join(f"{server.url}: {error}" for server, error in zip(pool.servers, results, strict=True))
        if time.monotonic() - started > pool.outage_seconds:
            raise NoServerAvailable(errors)
        _log.warning("waiting for a server: %s", errors)
        await asyncio.sleep(1 + backoff_delay(rounds, None, random.random()))


def _common_capabilities(servers: Sequence[_ServerCapabilities], pool: Pool) -> Capabilities:
    decoding_modes = [mode for mode in DECODING_MODES if all(mode in server.decoding_modes for server in servers)]
    if len({server.label_ids for server in servers}) > 1:
        decoding_modes = [mode for mode in decoding_modes if mode != "label_ids"]
    mode = decoding_modes[0]
    logprobs = all(server.choice_logprobs for server in servers) if mode == "choice" else mode != "text"
    urls = ", ".join(pool.urls)
    if (mode, logprobs) in _DEGRADED:
        _log.warning("%s: %s", urls, _DEGRADED[mode, logprobs])
    windows = [window for window in (pool.window, *(server.window for server in servers)) if window]
    if not windows:
        _log.warning(
            "%s: no server reports the model's context window. Longer prompts are rejected, or truncated without "
            "notice. Set resources.judge_window",
            urls,
        )
    roots = sorted({server.root for server in servers if server.root})
    if len(roots) > 1:
        _log.warning(
            "the servers serve different models under the name %s (%s), so grades come from a mix of models. Serve one",
            pool.model,
            ", ".join(roots),
        )
    return Capabilities(
        mode,
        logprobs,
        servers[0].label_ids if mode == "label_ids" else (),
        min(windows, default=None),
        all(server.tokenizes for server in servers),
        max(server.sample_tokens for server in servers) if all(server.sample_tokens for server in servers) else 0,
    )


def _request(
    decoding_mode: DecodingMode, labels: Sequence[str], label_ids: Sequence[int] = (), logprobs: bool = True
) -> dict[str, Any]:
    one_token = {"temperature": 0, "max_tokens": 1}
    match decoding_mode:
        case "label_ids":
            return {**one_token, "logprobs": True, "logprob_token_ids": list(label_ids)}
        case "choice":
            extra = {"logprobs": True, "top_logprobs": len(labels)} if logprobs else {}
            return {**one_token, **extra, "structured_outputs": {"choice": list(labels)}}
        case "logprobs":
            return {**one_token, "logprobs": True, "top_logprobs": _TOP_LOGPROBS}
        case "text":
            return {"temperature": 0, "max_tokens": _TEXT_TOKENS, "stop": ["\n"]}


def _delay(state: RetryCallState) -> float:
    error = state.outcome and state.outcome.exception()
    retry_after = error.retry_after if isinstance(error, TransientError) else None
    return backoff_delay(state.attempt_number, retry_after, random.random())


def _retry_on(kinds: Collection[ErrorKind]) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Awaitable[T]]]:
    def applies(error: BaseException) -> bool:
        return isinstance(error, TransientError) and error.kind in kinds

    return retry(stop=stop_after_attempt(_MAX_ATTEMPTS), wait=_delay, retry=retry_if_exception(applies), reraise=True)


async def _if_supported(reply: Awaitable[T], fatal: Collection[int] = ()) -> T | None:
    """The reply, or None if the server rejects the request or fails: some send 500 for what they do not support.

    Use it only for a server that responds to plain requests. A rejection with a ``fatal`` status is raised.
    """
    try:
        return await reply
    except RequestRejected as error:
        if error.status in fatal:
            raise
    except TransientError as error:
        if error.kind not in _UNSUPPORTED:
            raise
    return None


@dataclass(frozen=True)
class _Probe:
    """Tests one server."""

    server: Server
    model: str
    messages: Messages
    labels: Sequence[str]

    async def run(self) -> _ServerCapabilities | str:
        """Return what the server supports, or why it does not respond."""
        try:
            return await self._detect()
        except TransientError as error:
            return error.reason

    @_retry_on(get_args(ErrorKind))
    async def _detect(self) -> _ServerCapabilities:
        entry = await self._model_entry()
        plain = await self._chat(self.messages, _request("text", self.labels))
        label_ids = await self._label_ids()
        decoding_modes: list[DecodingMode] = []
        if label_ids:
            reply = await self._chat_if_supported(self.messages, _request("label_ids", self.labels, label_ids))
            if self._has_all_logprobs(reply):
                decoding_modes.append("label_ids")
        choice = await self._chat_if_supported(_OFF_TOPIC, _request("choice", self.labels))
        free = await self._chat_if_supported(self.messages, _request("logprobs", self.labels))
        if choice is None and free is None:  # perhaps the server rejects only the logprobs
            choice = await self._chat_if_supported(_OFF_TOPIC, _request("choice", self.labels, logprobs=False))
        choice_logprobs, free_logprobs = self._has_all_logprobs(choice), bool(free and free.logprobs)
        # The mode choice without logprobs is worse than the mode logprobs: probabilities matter more than a sure label.
        if choice and choice.text in self.labels and (choice_logprobs or not free_logprobs):
            decoding_modes.append("choice")
        if free_logprobs:
            decoding_modes.append("logprobs")
        window, root = entry.get("max_model_len"), entry.get("root")
        return _ServerCapabilities(
            (*decoding_modes, "text"),
            choice_logprobs,
            label_ids or (),
            window if isinstance(window, int) and window > 0 else None,
            root if isinstance(root, str) else None,
            label_ids is not None and await self._counts_tokens(),
            plain.prompt_tokens,
        )

    def _has_all_logprobs(self, reply: Completion | None) -> bool:
        return reply is not None and all(label in (reply.logprobs or {}) for label in self.labels)

    async def _post(self, path: str, content: Mapping[str, Any]) -> Any:
        return await self.server.client.post(path, json.dumps({"model": self.model, **content}).encode())

    async def _chat(self, messages: Messages, request: Mapping[str, Any]) -> Completion:
        reply = await self._post(CHAT_PATH, {"messages": messages, **request})
        return parse_completion(reply, time.perf_counter(), 1)

    async def _chat_if_supported(self, messages: Messages, request: Mapping[str, Any]) -> Completion | None:
        chat = _retry_on(_UNSUPPORTED)(self._chat)
        return await _if_supported(chat(messages, request), fatal=(401, 403, 404))

    async def _model_entry(self) -> Mapping[str, Any]:
        """The model's entry in /v1/models; empty if the server does not list its models.

        Raises:
            UserError: the server lists its models, and this model is not among them.
        """
        reply: Any = await _if_supported(self.server.client.get("/v1/models"))
        try:
            served: dict[str, Mapping[str, Any]] = {entry["id"]: entry for entry in reply["data"]}
        except (KeyError, TypeError):
            return {}
        if self.model not in served:
            names = ", ".join(map(str, served)) or "nothing"
            raise UserError(
                f"{self.server.url} does not serve {self.model!r} but {names}. Set judge.model to one of these."
            )
        return served[self.model]

    async def _tokenize(self, content: Mapping[str, Any]) -> Mapping[str, Any]:
        reply = await _if_supported(self._post("/tokenize", content))
        return reply if isinstance(reply, Mapping) else {}

    async def _counts_tokens(self) -> bool:
        """Whether the server counts the tokens of messages: some servers tokenize only plain text."""
        return isinstance((await self._tokenize({"messages": self.messages})).get("count"), int)

    async def _label_ids(self) -> tuple[int, ...] | None:
        """The token id of each label; empty if a label is not one token; None if the server does not tokenize."""
        ids: list[int] = []
        for label in self.labels:
            tokens = (await self._tokenize({"prompt": label, "add_special_tokens": False})).get("tokens")
            if tokens is None:
                return None
            if len(tokens) != 1:
                return ()
            ids.append(int(tokens[0]))
        return tuple(ids)
