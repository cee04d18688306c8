"""Detects what a pool's servers support, and selects the best mode in which they can return one of a few labels."""

import asyncio
import json
import logging
import random
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, ParamSpec, TypeVar, get_args

from tenacity import RetryCallState, retry, retry_if_exception, stop_after_attempt

from pyrite.errors import UserError
from pyrite.llm.client import CHAT_PATH
from pyrite.llm.completion import BLANKS, Completion, parse_completion
from pyrite.llm.concurrency import backoff_delay
from pyrite.llm.errors import ErrorKind, RequestRejected, TransientError
from pyrite.llm.labels import (
    DECODING_MODES,
    NO_DISTRIBUTION,
    DecodingMode,
    Reading,
    choices,
    parse_label,
    read_label,
    spellings,
)
from pyrite.llm.parameters import REASONING_TOKENS, Parameters, common_parameters, negotiate, with_reasoning
from pyrite.llm.pool import NoServerAvailable, Pool
from pyrite.llm.server import Server

__all__ = ["DECODING_MODES", "Capabilities", "DecodingMode", "detect_capabilities"]

#: Warnings by decoding mode and by whether it returns log probabilities.
_DEGRADED: dict[tuple[DecodingMode, bool], str] = {
    ("choice", False): "replies are limited to the labels, but have no logprobs: there are no expected grades",
    ("logprobs", True): "replies are not limited to the labels; a reply without a label is not graded",
    ("text", False): "not every server supports structured outputs or logprobs: labels are parsed from the text, "
    "and there are no expected grades",
}

#: Numbers of alternatives to request, best first: OpenAI's maximum, which is vLLM's default maximum, and TGI's.
_TOP_LOGPROBS = (20, 5)

#: Enough for "Grade: 3" and an end token, after some line breaks.
_TEXT_TOKENS = 8

#: A prompt to which a model replies with a label only if the server constrains it.
_OFF_TOPIC = [{"role": "user", "content": "Write the word hello."}]

_MAX_ATTEMPTS = 3

#: Maximum names that are quoted from a list of models.
_MAX_NAMES = 10

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
        label_ids: the labels' token ids, in all spellings, in the mode label_ids; otherwise empty.
        window: the context window in tokens (prompt and reply); None if unknown.
        tokenizes: whether the servers count tokens.
        sample_tokens: tokens of the sample messages, chat template included; 0 if unknown.
        parameters: how the servers accept the request's parameters.
        reply_tokens: the maximum number of tokens of a reply.
        top_logprobs: the number of alternatives to request in the mode logprobs.
    """

    decoding_mode: DecodingMode
    logprobs: bool
    label_ids: tuple[int, ...]
    window: int | None
    tokenizes: bool
    sample_tokens: int
    parameters: Parameters = field(default_factory=Parameters)
    reply_tokens: int = 1
    top_logprobs: int = _TOP_LOGPROBS[0]

    @property
    def prompt_window(self) -> int | None:
        """The part of the window without the tokens of reasoning before the reply."""
        tokens = max(self.reply_tokens, self.parameters.min_tokens)
        return self.window if self.window is None or tokens < REASONING_TOKENS else max(1, self.window - tokens)

    def request(self, labels: Sequence[str]) -> dict[str, Any]:
        """The request's parameters, without the messages."""
        top = self.top_logprobs if self.logprobs else 0
        return self.parameters.apply(_request(self.decoding_mode, labels, self.reply_tokens, self.label_ids, top))


class _Mode(NamedTuple):
    """How a server supports a decoding mode. ``tokens``: the maximum number of tokens of a reply."""

    logprobs: bool
    tokens: int = 1
    top_logprobs: int = _TOP_LOGPROBS[0]


@dataclass(frozen=True)
class _ServerCapabilities:
    modes: Mapping[DecodingMode, _Mode]
    label_ids: tuple[int, ...]
    parameters: Parameters
    window: int | None
    root: str | None  # the model behind the served name
    tokenizes: bool
    sample_tokens: int


async def detect_capabilities(pool: Pool, messages: Messages, labels: Sequence[str]) -> Capabilities:
    """Test what the responding servers support. ``messages``: a sample of the prompts that they will receive.

    Raises:
        UserError: a server rejects the API key, does not serve the model, or refuses the sample.
        NoServerAvailable: no server gives a usable reply for ``pool.outage_seconds``.
    """
    started, rounds = time.monotonic(), 0
    while True:
        rounds += 1
        results = await asyncio.gather(
            *(
                _Probe(server, pool.model, pool.settings.model_setting, messages, labels).run()
                for server in pool.servers
            )
        )
        detected = [result for result in results if isinstance(result, _ServerCapabilities)]
        if detected:
            return _common_capabilities(detected, pool)
        failed = [result for result in results if isinstance(result, TransientError)]
        errors = "; ".join(f"{server.url}: {error.reason}" for server, error in zip(pool.servers, failed, strict=True))
        if time.monotonic() - started > pool.outage_seconds:
            raise NoServerAvailable(pool.settings, errors, any(error.responds for error in failed))
        _log.warning("waiting for a server: %s", errors)
        await asyncio.sleep(1 + backoff_delay(rounds, None, random.random()))


def _common_capabilities(servers: Sequence[_ServerCapabilities], pool: Pool) -> Capabilities:
    decoding_modes = [mode for mode in DECODING_MODES if all(mode in server.modes for server in servers)]
    if len({server.label_ids for server in servers}) > 1:
        decoding_modes = [mode for mode in decoding_modes if mode != "label_ids"]
    mode = decoding_modes[0]
    supported = [server.modes[mode] for server in servers]
    logprobs = all(each.logprobs for each in supported)
    urls = ", ".join(pool.urls)
    if (mode, logprobs) in _DEGRADED:
        _log.warning("%s: %s", urls, _DEGRADED[mode, logprobs])
    parameters = common_parameters([server.parameters for server in servers])
    if mode == "text" and supported[0].tokens > _TEXT_TOKENS:
        _log.warning("%s: the model reasons before it replies, so a reply may have %s tokens", urls, REASONING_TOKENS)
    if "temperature" in parameters.dropped:
        _log.warning("%s: the temperature cannot be set, so a pair may get another grade if it is judged again", urls)
    windows = [window for window in (pool.settings.window, *(server.window for server in servers)) if window]
    if not windows:
        _log.warning(
            "%s: no server reports the model's context window. Longer prompts are rejected, or truncated without "
            "notice%s",
            urls,
            ". Set resources.judge_window" if pool.settings.has_window_setting else "",
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
        parameters,
        max(each.tokens for each in supported),
        min(each.top_logprobs for each in supported),
    )


def _request(
    mode: DecodingMode, labels: Sequence[str], tokens: int, label_ids: Sequence[int] = (), top_logprobs: int = 0
) -> dict[str, Any]:
    """The request's parameters. No stop sequence is sent: a line break would end replies that start with one."""
    limits = {"temperature": 0, "max_tokens": tokens}
    match mode:
        case "label_ids":
            return {**limits, "logprobs": True, "logprob_token_ids": list(label_ids)}
        case "choice":
            texts = choices(labels)
            extra = {"logprobs": True, "top_logprobs": len(texts)} if top_logprobs else {}
            return {**limits, **extra, "structured_outputs": {"choice": texts}}
        case "logprobs":
            return {**limits, "logprobs": True, "top_logprobs": top_logprobs}
        case "text":
            return limits


def _delay(state: RetryCallState) -> float:
    error = state.outcome and state.outcome.exception()
    retry_after = error.retry_after if isinstance(error, TransientError) else None
    return backoff_delay(state.attempt_number, retry_after, random.random())


def _retry_on(kinds: Collection[ErrorKind]) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Awaitable[T]]]:
    def applies(error: BaseException) -> bool:
        return isinstance(error, TransientError) and error.kind in kinds

    return retry(stop=stop_after_attempt(_MAX_ATTEMPTS), wait=_delay, retry=retry_if_exception(applies), reraise=True)


async def _if_supported(reply: Awaitable[T], too_many: str = "") -> T | None:
    """The reply, or None if the server rejects the request or fails: some send 500 for what they do not support.

    Gateways reject unsupported parameters with any status. So use it only for what is optional. A rejection that names
    the parameter ``too_many`` is raised.
    """
    try:
        return await reply
    except RequestRejected as error:
        if too_many and too_many in error.words:
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
    model_setting: str
    messages: Messages
    labels: Sequence[str]
    parameters: Parameters = field(default_factory=Parameters)

    async def run(self) -> _ServerCapabilities | TransientError:
        """Return what the server supports, or why it does not respond."""
        try:
            return await self._detect()
        except TransientError as error:
            return error

    @_retry_on(get_args(ErrorKind))
    async def _detect(self) -> _ServerCapabilities:
        models = await self._models()
        plain, parameters = await self._negotiate(models)
        probe = replace(self, parameters=parameters)
        plain, reasons = await with_reasoning(probe._chat, self._plain_body(), plain)
        label_ids = await self._label_ids()
        modes = await probe._modes(label_ids or ())
        modes["text"] = _Mode(False, REASONING_TOKENS if reasons else _TEXT_TOKENS)
        entry = models.get(self.model) or {}
        window, root = entry.get("max_model_len"), entry.get("root")
        return _ServerCapabilities(
            modes,
            label_ids or (),
            parameters,
            window if isinstance(window, int) and window > 0 else None,
            root if isinstance(root, str) else None,
            label_ids is not None and await self._counts_tokens(),
            plain.prompt_tokens,
        )

    async def _negotiate(self, models: Mapping[str, Any]) -> tuple[Completion, Parameters]:
        """The reply to a plain request, and the parameters that the server accepts. It decides if the model is served.

        Raises:
            UserError: the server rejects the request. If the list of its models lacks the model, the error names them.
        """
        url = self.server.url
        names = ", ".join(list(models)[:_MAX_NAMES]) + (" and others" if len(models) > _MAX_NAMES else "")
        is_unlisted = bool(models) and self.model not in models
        try:
            reply, parameters = await negotiate(self._chat, self._plain_body())
        except RequestRejected as error:
            if is_unlisted and error.status == 404:
                raise UserError(
                    f"{url} does not serve {self.model!r} but {names} ({error.words}). Set {self.model_setting} "
                    "to one of these."
                ) from None
            if is_unlisted and error.concerns_content:
                raise UserError(f"{error} The server lists {names}, but not {self.model!r}.") from None
            raise
        if is_unlisted:
            _log.warning("%s lists %s, but not %s. It responds to requests for %s", url, names, *[self.model] * 2)
        return reply, parameters

    async def _modes(self, label_ids: Sequence[int]) -> dict[DecodingMode, _Mode]:
        """The decoding modes that the server supports, except text."""
        modes: dict[DecodingMode, _Mode] = {}
        by_ids, _ = await self._try("label_ids", self.messages, label_ids) if label_ids else (None, 1)
        if self._distribution(by_ids, "label_ids"):
            modes["label_ids"] = _Mode(True)
        choice, choice_tokens = await self._try("choice", _OFF_TOPIC, top_logprobs=len(self.labels))
        free, free_tokens, top = await self._try_alternatives()
        if choice is None and free is None:  # perhaps the server rejects only the logprobs
            choice, choice_tokens = await self._try("choice", _OFF_TOPIC)
        choice_logprobs, free_logprobs = self._distribution(choice, "choice"), self._has_alternatives(free)
        # The mode choice without logprobs is worse than the mode logprobs: probabilities matter more than a sure label.
        if choice and parse_label(choice.text, self.labels) and (choice_logprobs or not free_logprobs):
            modes["choice"] = _Mode(choice_logprobs, choice_tokens)
        if free_logprobs:
            modes["logprobs"] = _Mode(True, free_tokens, top)
        replies: dict[DecodingMode, Completion | None] = {"label_ids": by_ids, "choice": choice, "logprobs": free}
        problems = [self._logprobs_problem(reply, mode) for mode, reply in replies.items() if reply]
        if any(problems) and not any(mode.logprobs for mode in modes.values()):
            problem = next(filter(None, problems))
            _log.warning("%s: its log probabilities are not used: %s", self.server.url, problem)
        return modes

    def _logprobs_problem(self, reply: Completion, mode: DecodingMode) -> str:
        """Why the log probabilities of a label in ``reply`` cannot be used; empty if they can, or without a label."""
        if reply.logprobs_problem or not reply.logprobs or parse_label(reply.text, self.labels) is None:
            return reply.logprobs_problem
        reading = read_label(reply, self.labels, mode)
        if isinstance(reading, str):
            return reading
        return "" if reading.distribution else NO_DISTRIBUTION

    def _distribution(self, reply: Completion | None, mode: DecodingMode) -> bool:
        """Whether ``reply`` gives a label with the probabilities of all labels."""
        reading = read_label(reply, self.labels, mode) if reply else None
        return isinstance(reading, Reading) and reading.distribution is not None

    def _has_alternatives(self, reply: Completion | None) -> bool:
        """Whether ``reply``, in the mode logprobs, has the log probabilities of enough tokens."""
        if reply is None or reply.problem or not reply.logprobs:
            return False
        if len(reply.logprobs) < len(self.labels) or reply.token not in reply.logprobs:
            return False
        # A reply that is no label shows nothing about the probabilities of labels.
        return parse_label(reply.text, self.labels) is None or self._distribution(reply, "logprobs")

    async def _try_alternatives(self) -> tuple[Completion | None, int, int]:
        """The reply in the mode logprobs, its maximum number of tokens, and the number of alternatives requested."""
        for top in _TOP_LOGPROBS:
            try:
                reply, tokens = await self._try("logprobs", self.messages, top_logprobs=top, too_many="top_logprobs")
                return reply, tokens, top
            except RequestRejected:
                continue
        return None, 1, _TOP_LOGPROBS[-1]

    async def _try(
        self,
        mode: DecodingMode,
        messages: Messages,
        label_ids: Sequence[int] = (),
        top_logprobs: int = 0,
        too_many: str = "",
    ) -> tuple[Completion | None, int]:
        """The reply in ``mode`` and its maximum number of tokens; None if the server does not support the mode.

        The maximum is 1, unless that reply is blank: some tokenizers have a blank token before a label. Raises as
        ``_if_supported`` does.
        """
        chat = _retry_on(_UNSUPPORTED)(self._chat)
        for tokens in (1,) if mode == "label_ids" else (1, _TEXT_TOKENS):
            body = {"messages": messages, **_request(mode, self.labels, tokens, label_ids, top_logprobs)}
            reply = await _if_supported(chat(body), too_many)
            if reply is None or reply.problem or reply.text.strip(BLANKS):
                break
        return reply, tokens

    def _plain_body(self) -> dict[str, Any]:
        return {"messages": self.messages, **_request("text", self.labels, _TEXT_TOKENS)}

    async def _post(self, path: str, content: Mapping[str, Any]) -> Any:
        return await self.server.client.post(path, json.dumps({"model": self.model, **content}).encode())

    async def _chat(self, body: Mapping[str, Any]) -> Completion:
        reply = await self._post(CHAT_PATH, self.parameters.apply(body))
        return parse_completion(reply, time.perf_counter(), 1)

    async def _models(self) -> dict[str, Mapping[str, Any]]:
        """The entries in /v1/models by name. Empty if there is no list. The names may be aliases or patterns."""
        reply: Any = await _if_supported(self.server.client.get("/v1/models"))
        entries = reply.get("data", reply.get("models")) if isinstance(reply, Mapping) else reply
        found: dict[str, Mapping[str, Any]] = {}
        for entry in entries if isinstance(entries, list) else []:
            name = entry.get("id", entry.get("name")) if isinstance(entry, Mapping) else entry
            if isinstance(name, str):
                found[name] = entry if isinstance(entry, Mapping) else {}
        return found

    async def _tokenize(self, content: Mapping[str, Any]) -> Mapping[str, Any]:
        reply = await _if_supported(self._post("/tokenize", content))
        return reply if isinstance(reply, Mapping) else {}

    async def _counts_tokens(self) -> bool:
        """Whether the server counts the tokens of messages: some servers tokenize only plain text."""
        return isinstance((await self._tokenize({"messages": self.messages})).get("count"), int)

    async def _label_ids(self) -> tuple[int, ...] | None:
        """The labels' token ids, in each spelling in which all are one token; None if the server does not tokenize.

        All labels have the same number of spellings, so that the sum over spellings favours none.
        """
        ids: list[int] = []
        for spelling in spellings(self.labels):
            found: list[int] = []
            for label in spelling:
                tokens = (await self._tokenize({"prompt": label, "add_special_tokens": False})).get("tokens")
                if tokens is None:
                    return None
                if isinstance(tokens, list) and len(tokens) == 1 and isinstance(tokens[0], int):
                    found += tokens
            ids += found if len(found) == len(spelling) else []
        return tuple(dict.fromkeys(ids))
