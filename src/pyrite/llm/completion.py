"""Chat completions: the reply's text, and its first token's log probabilities if they are a distribution. Pure."""

import math
import re
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from pyrite.llm.error_bodies import quote
from pyrite.llm.errors import TransientError

#: What tokenizers put before a word, and servers before a reply: white space, or a character that encodes it.
BLANKS = " \t\r\n\f\v\u00a0\u200b\ufeff▁ĠĊ"

#: Maximum of a log probability, and of the sum of probabilities: 0 and 1, with a tolerance for rounding.
_MAX_LOGPROB, _MAX_TOTAL = 1e-3, 1.02

#: A reply that contains its reasoning, as servers without a reasoning parser send it.
_REASONING = re.compile(r"\s*<think>.*?</think>(.*)", re.DOTALL)


class Completion(NamedTuple):
    """A chat completion.

    Attributes:
        text: the reply; empty if ``problem`` is set.
        logprobs: the log probabilities of the alternatives of ``token``, by token text; None if there are none, or if
            they are not a distribution. -inf: an impossible token.
        latency: seconds from the last attempt to its reply.
        attempts: number of times that the request was sent.
        token: the first generated token that is not blank; empty if unknown.
        problem: why the reply has no text, such as a refusal; empty if it has one, or if it is empty without a reason.
        logprobs_problem: why the log probabilities that the server sent are not a distribution; empty if they are one.
        cut: whether the reply ended at the maximum number of tokens.
    """

    text: str
    logprobs: Mapping[str, float] | None
    prompt_tokens: int
    cached_tokens: int
    latency: float
    attempts: int
    token: str = ""
    problem: str = ""
    logprobs_problem: str = ""
    cut: bool = False


def parse_completion(reply: Any, started: float, attempts: int) -> Completion:
    """Parse a reply of /v1/chat/completions; ``started`` is a value of ``time.perf_counter``.

    Raises:
        TransientError: the reply has another format.
    """
    try:
        choice = reply["choices"][0]
        finish = choice.get("finish_reason")
        message = choice.get("message") or ({} if finish == "content_filter" else choice["message"])
        text = _join(message.get("content"))
        usage = reply.get("usage") or {}
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        tokens = int(usage.get("prompt_tokens") or 0)
        problem = _problem(text, message, finish)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise TransientError("garbled", f"the reply was not a chat completion: {quote(str(reply))}") from None
    if finish == "error":
        raise TransientError("server", "the server stopped its reply because of an error")
    if problem:
        text = ""
    elif reasoned := _REASONING.fullmatch(text):
        text = reasoned[1]
    token, logprobs, logprobs_problem = _first_token(choice, text)
    latency = time.perf_counter() - started
    cut = finish == "length"
    return Completion(text, logprobs, tokens, int(cached), latency, attempts, token, problem, logprobs_problem, cut)


def _join(content: Any) -> str:
    """The text of a message's content, which is a text, a list of parts, or None."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise TypeError
    parts = [part if isinstance(part, str) else _part(part) for part in content]
    return "".join(parts)


def _part(part: Mapping[str, Any]) -> str:
    """The text of a part; empty if it is not part of the reply, such as reasoning."""
    text = part.get("text") if part.get("type", "text") in ("text", "output_text") else None
    return text if isinstance(text, str) else ""


def _problem(text: str, message: Mapping[str, Any], finish: Any) -> str:
    if finish == "content_filter":
        return f"a content filter stopped the reply{': ' + quote(text) if text.strip() else ''}"
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    refusals = [message.get("refusal"), *(part.get("refusal") for part in parts if isinstance(part, Mapping))]
    refusal = next((each for each in refusals if isinstance(each, str) and each.strip()), None)
    if refusal:
        return f"the model refused to reply: {quote(refusal)}"
    if text.strip():
        return ""
    thoughts = [part.get("thinking") or part.get("reasoning") for part in parts if isinstance(part, Mapping)]
    reasoning = message.get("reasoning_content") or message.get("reasoning") or next(filter(None, thoughts), None)
    if reasoning:
        return f"the reply has only reasoning: {quote(str(reasoning))}"
    return "the reply has only tool calls" if message.get("tool_calls") else ""


def _first_token(choice: Mapping[str, Any], text: str) -> tuple[str, dict[str, float] | None, str]:
    """The first token that is not blank, its alternatives' log probabilities, and why these are not used."""
    try:
        tokens = (choice.get("logprobs") or {}).get("content") or []
        if not tokens:
            return "", None, ""
        first = next((each for each in tokens if each["token"].strip(BLANKS)), tokens[0])
        token, own = first["token"], first.get("logprob")
        alternatives = [(each["token"], _number(each["logprob"])) for each in first.get("top_logprobs") or []]
    except (KeyError, TypeError, AttributeError, ValueError):
        return "", None, "their format is unknown"
    alternatives = list(dict.fromkeys(alternatives))
    if not alternatives:
        return token, None, ""
    listed = any(name == token for name, _ in alternatives)
    values = [value for _, value in alternatives]
    if not listed and isinstance(own, int | float) and not isinstance(own, bool):
        values.append(float(own))
    problem = _distribution_problem(values)
    if not problem and text.strip(BLANKS) and not text.strip(BLANKS).startswith(token.strip(BLANKS)):
        problem = f"they belong to the token {quote(token)}, and the reply is {quote(text)}"
    if problem:
        return token, None, problem
    chances: dict[str, float] = {}
    for name, value in alternatives:  # tokens may have the same text
        chances[name] = chances.get(name, 0.0) + math.exp(value)
    return token, {name: math.log(chance) if chance > 0 else -math.inf for name, chance in chances.items()}, ""


def _number(value: Any) -> float:
    """A log probability. None, which some servers send instead of -inf, is an impossible token."""
    if value is None:
        return -math.inf
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    return float(value)


def _distribution_problem(logprobs: list[float]) -> str:
    """Why ``logprobs`` are not log probabilities of a distribution's alternatives; empty if they are."""
    if any(math.isnan(value) for value in logprobs):
        return "one is not a number"
    if (highest := max(logprobs)) > _MAX_LOGPROB:
        return f"one is {highest:.4g}, and a log probability is not above 0"
    if (total := math.fsum(map(math.exp, logprobs))) > _MAX_TOTAL:
        return f"their probabilities add up to {total:.4g}, not to 1 at most"
    return "" if total > 0 else "their probabilities are all 0"
