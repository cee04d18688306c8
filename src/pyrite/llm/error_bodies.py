"""Reads error messages in replies of OpenAI-compatible servers and of the gateways in front of them. Pure."""

import html
import json
import re
from collections.abc import Mapping
from typing import Any

#: Maximum characters that are quoted from a server's error message, and from a model's reply.
_MAX_MESSAGE, _MAX_QUOTE = 300, 80

#: HTTP statuses of errors that have a word as their code, or only a type. The first match is used.
_CODES = (
    (re.compile(r"content_?(?:filter|policy)|moderation|safety", re.I), 400),
    (re.compile(r"rate_?limit|too_?many_?requests|quota|throttl", re.I), 429),
    (re.compile(r"overloaded|unavailable|capacity", re.I), 503),
    (re.compile(r"api_?key|authentication|unauthorized", re.I), 401),
    (re.compile(r"context_?length", re.I), 413),
    (re.compile(r"model_?not_?found", re.I), 404),
    (re.compile(r"invalid_?request|bad_?request|unsupported", re.I), 400),
)

#: Keys of a message, and of a code, in an error object.
_MESSAGES, _STATUSES = ("message", "msg", "detail", "error"), ("code", "status", "status_code", "type")

_TITLE = re.compile(rb"<title[^>]*>(.*?)</title>", re.I | re.S)
_INVISIBLE = re.compile(rb"<(script|style|head)\b.*?</\1>|<[^>]*>", re.I | re.S)


def one_line(text: str, limit: int = _MAX_MESSAGE) -> str:
    """``text`` on one line, without control characters, and cut after ``limit`` characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= limit else line[:limit] + "..."


def quote(text: str) -> str:
    """``text`` in quotation marks, on one line and shortened."""
    return f"'{one_line(text, _MAX_QUOTE)}'"


def decode_json(content: bytes) -> Any:
    """The JSON value at the start of ``content``. A byte order mark and text after the value are ignored.

    Raises:
        ValueError: ``content`` does not start with a JSON value.
    """
    text = content.decode("utf-8-sig").lstrip()
    value, end = json.JSONDecoder().raw_decode(text)
    if text[end:].strip("\0 \t\r\n") and not isinstance(value, dict):
        raise ValueError("text after a JSON value that is no object")
    return value


def message_of(content: bytes) -> str:
    """The error message in the body of a reply, on one line; empty if there is none."""
    try:
        return one_line(_message(decode_json(content)))
    except ValueError:
        return one_line(_text(content))


def error_in(reply: Any) -> tuple[int | None, str] | None:
    """The error that a reply with status 200 reports: its HTTP status, None if unknown, and its message.

    Returns:
        None if ``reply`` reports no error.
    """
    if not isinstance(reply, Mapping):
        return None
    choices = reply.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    nested = choice.get("error") if isinstance(choice, Mapping) else None
    is_error = bool(reply.get("error") or nested) or reply.get("object") == "error"
    if not is_error and (choices is not None or _status(reply) is None or not _message(reply)):
        return None
    source = reply if reply.get("error") or not nested else {"error": nested}
    return _status(source.get("error")) or _status(source), one_line(_message(source))


def _message(reply: Any) -> str:
    """The message in an error reply, or the reply as JSON."""
    if isinstance(reply, str):
        return reply
    if not isinstance(reply, Mapping):
        return json.dumps(reply, ensure_ascii=False)
    error = reply.get("error") or reply
    if isinstance(error, str):
        return error
    if not isinstance(error, Mapping):
        return json.dumps(error, ensure_ascii=False)
    found = next((error[name] for name in _MESSAGES if error.get(name)), None)
    if found is None:
        return json.dumps(error, ensure_ascii=False)
    text = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
    metadata = error.get("metadata")
    cause = metadata.get("raw") if isinstance(metadata, Mapping) else None  # OpenRouter: the provider's own words
    return f"{text} ({cause})" if cause else text


def _status(error: Any) -> int | None:
    """The HTTP status in an error object, from a number or from a word; None if there is none."""
    if not isinstance(error, Mapping):
        return None
    values = [error.get(name) for name in _STATUSES]
    for value in values:
        if isinstance(value, int | str) and re.fullmatch("[45][0-9][0-9]", str(value)):
            return int(value)
    for value in values:
        if isinstance(value, str):
            for pattern, status in _CODES:
                if pattern.search(value):
                    return status
    return None


def _text(content: bytes) -> str:
    """The text of a body that is not JSON: the title of an HTML page, or else its words."""
    if content.lstrip().startswith(b"<"):
        title = _TITLE.search(content)
        content = title[1] if title and title[1].strip() else _INVISIBLE.sub(b" ", content)
        return html.unescape(content.decode("utf-8", "replace"))
    return content.decode("utf-8", "replace")
