"""What a pool's servers can do, found by asking: how one label out of a few is best had from them."""

import asyncio
import json
import logging
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from pyrite.errors import UserError
from pyrite.llm.backoff import pause
from pyrite.llm.client import CHAT, Completion, RequestRejected, TransientError, parse_completion
from pyrite.llm.pool import NoServerAvailable, Pool
from pyrite.llm.server import Server

DecodingMode = Literal["label_ids", "choice", "logprobs", "text"]

#: Best first. label ids: one free token, with the log probabilities of the labels' tokens (``logprob_token_ids``);
#: choice: one token, held to the labels (``structured_outputs``), with or without their log probabilities;
#: logprobs: one free token with its rivals; text: a few words, to be read.
DECODING_MODES: tuple[DecodingMode, ...] = ("label_ids", "choice", "logprobs", "text")

#: Warnings by decoding mode and by whether it returns log probabilities.
_DEGRADED: dict[tuple[DecodingMode, bool], str] = {
    ("choice", False): "held to the labels, but without logprobs: there are no expected grades",
    ("logprobs", True): "not held to the labels; replies that are none of them stay ungraded",
    ("text", False): "neither structured outputs nor logprobs are to be had of every server: words are read, and there "
    "are no expected grades",
}

#: OpenAI's greatest top_logprobs, and vLLM's default.
_TOP = 20

#: "Grade: 3" and a closing token.
_WORDS = 8

#: What an unheld model will not answer with a label.
_OFF_TOPIC = [{"role": "user", "content": "Write the word hello."}]

_TRIES = 3

#: TransientError of a server that is there and cannot do what it was asked.
_FAILS_AT_IT = ("garbled", "server")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Capabilities:
    """The best decoding_mode that all servers share; ``logprobs``: whether it brings log probabilities.

    ``window``: most tokens of prompt and answer, None where no server says. ``tokenizes``: whether they count tokens.
    ``sample_tokens``: how many tokens the sample messages make, chat template included; 0 where they do not say.
    """

    decoding_mode: DecodingMode
    logprobs: bool
    label_ids: tuple[int, ...]
    window: int | None
    tokenizes: bool
    sample_tokens: int

    def request(self, labels: Sequence[str]) -> dict[str, Any]:
        """What a request has beside its messages."""
        return _request(self.decoding_mode, labels, self.label_ids, self.logprobs)


class _Listed(NamedTuple):
    """What a server says of its model: its window, and what it is beside its name; None where it does not say."""

    window: int | None = None
    root: str | None = None


@dataclass(frozen=True)
class _Found:
    decoding_modes: tuple[DecodingMode, ...]
    choice_logprobs: bool
    label_ids: tuple[int, ...]
    model: _Listed
    tokenizes: bool
    sample_tokens: int


async def detect_capabilities(pool: Pool, messages: Sequence[Mapping[str, str]], labels: Sequence[str]) -> Capabilities:
    """Ask every server that answers what it can do. ``messages`` are a sample of what it will be asked.

    Raises:
        UserError: a server refuses the key or does not serve the model.
        NoServerAvailable: none answers for as long as the pool is patient.
    """
    began, tries = time.monotonic(), 0
    while True:
        tries += 1
        results = await asyncio.gather(*(_look_at(server, pool.model, messages, labels) for server in pool.servers))
        found = [result for result in results if isinstance(result, _Found)]
        if found:
            return _common(found, pool)
        told = "; ".join(f"{server.url}: {result}" for server, result in zip(pool.servers, results, strict=True))
        if time.monotonic() - began > pool.patience:
            raise NoServerAvailable(told)
        _log.warning("waiting for a server: %s", told)
        await asyncio.sleep(1 + pause(tries, None, random.random()))


def _common(found: Sequence[_Found], pool: Pool) -> Capabilities:
    decoding_modes = [
        decoding_mode for decoding_mode in DECODING_MODES if all(decoding_mode in one.decoding_modes for one in found)
    ]
    if len({one.label_ids for one in found}) > 1:
        decoding_modes = [decoding_mode for decoding_mode in decoding_modes if decoding_mode != "label_ids"]
    decoding_mode = decoding_modes[0]
    logprobs = all(one.choice_logprobs for one in found) if decoding_mode == "choice" else decoding_mode != "text"
    if (decoding_mode, logprobs) in _DEGRADED:
        _log.warning("%s: %s", ", ".join(pool.urls), _DEGRADED[decoding_mode, logprobs])
    windows = [one.model.window for one in found if one.model.window] + ([pool.window] if pool.window else [])
    if not windows:
        _log.warning(
            "%s: it does not tell its model's window: what does not fit stays ungraded, or the server cuts it "
            "unsaid. Set resources.judge_window",
            ", ".join(pool.urls),
        )
    roots = sorted({one.model.root for one in found if one.model.root})
    if len(roots) > 1:
        _log.warning(
            "the servers serve different models as %s (%s): their judgments are mixed. Serve one model alone",
            pool.model,
            ", ".join(roots),
        )
    return Capabilities(
        decoding_mode,
        logprobs,
        found[0].label_ids if decoding_mode == "label_ids" else (),
        min(windows) if windows else None,
        all(one.tokenizes for one in found),
        max(one.sample_tokens for one in found) if all(one.sample_tokens for one in found) else 0,
    )


async def _look_at(
    server: Server, model: str, messages: Sequence[Mapping[str, str]], labels: Sequence[str]
) -> _Found | str:
    """What ``server`` can do, or why it cannot be known now."""
    for tries in range(1, _TRIES + 1):
        try:
            return await _find(server, model, messages, labels)
        except TransientError as error:
            reason, asked = error.reason, error.asked
        if tries < _TRIES:
            await asyncio.sleep(pause(tries, asked, random.random()))
    return reason


async def _find(server: Server, model: str, messages: Sequence[Mapping[str, str]], labels: Sequence[str]) -> _Found:
    listed = await _listed(server, model)
    plain = await _send(server, model, messages, _request("text", labels, ()))
    label_ids = await _label_ids(server, model, labels)
    decoding_modes: list[DecodingMode] = []
    if label_ids:
        answer = await _chat(server, model, messages, _request("label_ids", labels, label_ids))
        if answer and _has_all(answer, labels):
            decoding_modes.append("label_ids")
    held = await _chat(server, model, _OFF_TOPIC, _request("choice", labels, ()))
    free = await _chat(server, model, messages, _request("logprobs", labels, ()))
    if held is None and free is None:  # perhaps it is logprobs alone that it refuses
        held = await _chat(server, model, _OFF_TOPIC, _request("choice", labels, (), logprobs=False))
    choice_logprobs = held is not None and _has_all(held, labels)
    free_logprobs = free is not None and bool(free.logprobs)
    # Held without logprobs comes after free with them: the probabilities are worth more.
    if held and held.text in labels and (choice_logprobs or not free_logprobs):
        decoding_modes.append("choice")
    if free_logprobs:
        decoding_modes.append("logprobs")
    counts = label_ids is not None and await _counts(server, model, messages)
    return _Found((*decoding_modes, "text"), choice_logprobs, label_ids or (), listed, counts, plain.prompt_tokens)


def _has_all(answer: Completion, labels: Sequence[str]) -> bool:
    """Whether ``answer`` comes with the log probability of every label."""
    return all(label in (answer.logprobs or {}) for label in labels)


def _request(
    decoding_mode: DecodingMode, labels: Sequence[str], label_ids: Sequence[int], logprobs: bool = True
) -> dict[str, Any]:
    one_token = {"temperature": 0, "max_tokens": 1}
    match decoding_mode:
        case "label_ids":
            return {**one_token, "logprobs": True, "logprob_token_ids": list(label_ids)}
        case "choice":
            told = {"logprobs": True, "top_logprobs": len(labels)} if logprobs else {}
            return {**one_token, **told, "structured_outputs": {"choice": list(labels)}}
        case "logprobs":
            return {**one_token, "logprobs": True, "top_logprobs": _TOP}
        case "text":
            return {"temperature": 0, "max_tokens": _WORDS, "stop": ["\n"]}


async def _chat(
    server: Server, model: str, messages: Sequence[Mapping[str, str]], request: Mapping[str, Any]
) -> Completion | None:
    """The answer; None where the server does not take such a request, or fails at it again and again.

    To be asked of a server that has answered a plain request: some answer 500 to what they cannot do.
    """
    for tries in range(1, _TRIES + 1):
        try:
            return await _send(server, model, messages, request)
        except RequestRejected as refused:
            if refused.status in (401, 403, 404):
                raise
            return None
        except TransientError as error:
            if error.kind not in _FAILS_AT_IT:
                raise
            asked = error.asked
        if tries < _TRIES:
            await asyncio.sleep(pause(tries, asked, random.random()))
    return None


async def _send(
    server: Server, model: str, messages: Sequence[Mapping[str, str]], request: Mapping[str, Any]
) -> Completion:
    body = json.dumps({"model": model, "messages": messages, **request}).encode()
    return parse_completion(await server.client.post(CHAT, body), time.perf_counter(), 1)


async def _listed(server: Server, model: str) -> _Listed:
    """The model as the server lists it.

    Raises:
        UserError: the server lists its models, and this is none of them.
    """
    try:
        served = {entry["id"]: entry for entry in (await server.client.get("/v1/models"))["data"]}
    except (RequestRejected, KeyError, TypeError):
        return _Listed()  # also where a key may ask and not list; whether it may ask is seen next
    except TransientError as error:
        if error.kind not in _FAILS_AT_IT:
            raise
        return _Listed()
    if model not in served:
        names = ", ".join(map(str, served)) or "nothing"
        raise UserError(f"{server.url} does not serve {model!r} but {names}. Set judge.model to what it serves.")
    window, root = served[model].get("max_model_len"), served[model].get("root")
    return _Listed(window if isinstance(window, int) and window > 0 else None, root if isinstance(root, str) else None)


async def _counts(server: Server, model: str, messages: Sequence[Mapping[str, str]]) -> bool:
    """Whether the server counts the tokens of messages: some tokenize plain text alone."""
    body = json.dumps({"model": model, "messages": messages}).encode()
    try:
        return isinstance((await server.client.post("/tokenize", body))["count"], int)
    except (RequestRejected, KeyError, TypeError):
        return False
    except TransientError as error:
        if error.kind not in _FAILS_AT_IT:
            raise
        return False


async def _label_ids(server: Server, model: str, labels: Sequence[str]) -> tuple[int, ...] | None:
    """The token id of each label; empty where a label is not one token; None where the server does not tokenize."""
    ids = []
    for label in labels:
        body = json.dumps({"model": model, "prompt": label, "add_special_tokens": False}).encode()
        try:
            tokens = (await server.client.post("/tokenize", body))["tokens"]
        except (RequestRejected, KeyError, TypeError):
            return None
        except TransientError as error:
            if error.kind in _FAILS_AT_IT:
                return None
            raise
        if len(tokens) != 1:
            return ()
        ids.append(int(tokens[0]))
    return tuple(ids)
