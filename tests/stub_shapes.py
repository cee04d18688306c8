"""Shapes of replies that OpenAI-compatible servers and gateways send. Each changes a reply of the stub judge."""

import copy
import json
import math
from collections.abc import Callable
from typing import Any

from stub_judge import LABELS, Pair

Shape = Callable[[Any, dict[str, Any], Pair | None], Any]


def _with_logprobs(change: Callable[[float], float | None]) -> Shape:
    def shape(reply: Any, _body: dict[str, Any], _pair: Pair | None) -> Any:
        for first in _tokens(reply):
            for entry in (first, *first["top_logprobs"]):
                entry["logprob"] = change(entry["logprob"])
        return reply

    return shape


def _tokens(reply: Any) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = reply["choices"][0].get("logprobs", {}).get("content", [])
    return content


def _text(reply: Any) -> str:
    return str(reply["choices"][0]["message"]["content"])


def _message(**message: Any) -> Shape:
    """The text becomes a part of ``message``, where it is ``{}`` in JSON."""

    def shape(reply: Any, _body: dict[str, Any], _pair: Pair | None) -> Any:
        text = json.dumps(_text(reply))[1:-1]
        reply["choices"][0]["message"] = json.loads(json.dumps(message).replace("{text}", text))
        return reply

    return shape


def another_position(reply: Any, _body: dict[str, Any], _pair: Pair | None) -> Any:
    """The log probabilities are those of another token: the reply's text is right, and a rival is the likeliest."""
    for first in _tokens(reply):
        first["token"] = "I"
        first["top_logprobs"].append({"token": "I", "logprob": math.log(0.01)})
    return reply


def rival(reply: Any, _body: dict[str, Any], _pair: Pair | None) -> Any:
    """Another label is likelier than the returned one."""
    text = _text(reply)
    other = next(label for label in LABELS if label != text)
    for first in _tokens(reply):
        first["top_logprobs"] = [{"token": label, "logprob": math.log(0.05)} for label in LABELS]
        first["top_logprobs"][LABELS.index(other)]["logprob"] = math.log(0.8)
    return reply


def sentence(share: float) -> Shape:
    """The server ignores max_tokens. The labels have ``share`` of the first token's probability; 1 is the likeliest."""

    def shape(reply: Any, _body: dict[str, Any], _pair: Pair | None) -> Any:
        reply["choices"][0]["message"]["content"] = f"I would rate this passage {_text(reply)}"
        for first in _tokens(reply):
            rivals = {label: share * part for label, part in zip(LABELS, (0.7, 0.1, 0.1, 0.1), strict=True)}
            top = {"I": 1 - share, **rivals}
            first |= {"token": "I", "logprob": math.log(1 - share)}
            first["top_logprobs"] = [{"token": token, "logprob": math.log(p)} for token, p in top.items()]
        return reply

    return shape


def after_blanks(blanks: str) -> Shape:
    """The first token is ``blanks``. With one token, the reply has no text."""

    def shape(reply: Any, body: dict[str, Any], _pair: Pair | None) -> Any:
        is_short = body.get("max_tokens", 0) == 1
        text = blanks if is_short else blanks + _text(reply)
        reply["choices"][0] |= {"finish_reason": "length" if is_short else "stop"}
        reply["choices"][0]["message"]["content"] = text
        for first in _tokens(reply):
            blank = {"token": blanks, "logprob": -0.01, "top_logprobs": [{"token": blanks, "logprob": -0.01}]}
            reply["choices"][0]["logprobs"]["content"] = [blank] if is_short else [blank, first]
        return reply

    return shape


def few_alternatives(reply: Any, _body: dict[str, Any], _pair: Pair | None) -> Any:
    """The server returns the two likeliest tokens, however many are requested."""
    for first in _tokens(reply):
        first["top_logprobs"] = sorted(first["top_logprobs"], key=lambda each: -each["logprob"])[:2]
    return reply


def reasoning(reply: Any, body: dict[str, Any], _pair: Pair | None) -> Any:
    """The model reasons before it replies."""
    limit = body.get("max_completion_tokens", body.get("max_tokens", 0))
    if limit < 500:
        reply["choices"][0] = {"message": {"content": None, "reasoning_content": "The user"}, "finish_reason": "length"}
    return reply


def masked(reply: Any, _body: dict[str, Any], _pair: Pair | None) -> Any:
    """Impossible tokens have no log probability, or -9999."""
    for first in _tokens(reply):
        impossible = [{"token": "#", "logprob": None}, {"token": "!", "logprob": -9999.0}]
        first["top_logprobs"] += copy.deepcopy(impossible)
    return reply


#: Log probabilities that are not those of a distribution.
INVALID = {
    "probabilities": _with_logprobs(math.exp),
    "positive": _with_logprobs(lambda value: 0.01 - value),
    "not a number": _with_logprobs(lambda _: math.nan),
    "zeros": _with_logprobs(lambda _: 0.0),
    "base 10": _with_logprobs(lambda value: value / math.log(10) / 4),
    "another position": another_position,
    "text": _with_logprobs(lambda value: str(value)),  # type: ignore[arg-type, return-value]
}

#: Replies in unusual forms that have a grade.
GRADED = {
    "parts": _message(content=[{"type": "text", "text": "{text}"}]),
    "parts with reasoning": _message(
        content=[{"type": "thinking", "thinking": "Well"}, {"type": "text", "text": "{text}"}]
    ),
    "halves": _message(content=[{"type": "text", "text": ""}, {"type": "text", "text": "{text}"}]),
    "space": after_blanks(" "),
    "line breaks": after_blanks("\n\n"),
    "sentencepiece": after_blanks("▁"),
    "masked": masked,
    "null fields": _message(content="{text}", refusal=None, tool_calls=None, reasoning_content=None),
    "think tags": _message(content="<think>\n\n</think>\n\n{text}"),
}

#: Replies without a grade, and the reason.
WITHOUT_GRADE = {
    "null": (_message(content=None), "the model's reply is empty"),
    "blank": (_message(content=" \n"), "the model's reply is empty"),
    "refusal": (_message(content=None, refusal="I can't help."), "the model refused to reply: 'I can't help.'"),
    "reasoning": (_message(content=None, reasoning="Grade 4"), "the reply has only reasoning: 'Grade 4'"),
    "tool": (_message(content=None, tool_calls=[{"id": "x"}]), "the reply has only tool calls"),
    "long": (_message(content=f"Dear\n{'x' * 500}"), f"none of the grades 1 to 4: 'Dear {'x' * 75}...'"),
}
