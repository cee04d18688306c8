"""Negotiates the parameters of a chat request, whose names and values differ between servers."""

import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, Literal

from pyrite.llm.completion import Completion
from pyrite.llm.errors import ContextLengthExceeded, RequestRejected

#: The maximum number of tokens for a model that reasons before it replies.
REASONING_TOKENS = 2048

#: A low temperature for servers that refuse 0.
_LOW_TEMPERATURE = 0.01

#: A server that demands a minimum number of tokens. Other numbers in error messages are larger.
_MINIMUM = re.compile(r"(?:at least|>=?|minimum|greater than|below_min)\D{0,30}(\d{1,2})\b", re.I)
_TOO_FEW = re.compile(r"higher max_|output limit|could not finish", re.I)

Send = Callable[[Mapping[str, Any]], Awaitable[Completion]]


@dataclass(frozen=True)
class Parameters:
    """How servers accept a chat request.

    Attributes:
        limit: the name of the maximum number of tokens.
        min_tokens: the lowest maximum that is accepted.
        min_temperature: the lowest temperature that is accepted.
        dropped: parameters that are refused, and therefore not sent.
    """

    limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    min_tokens: int = 1
    min_temperature: float = 0.0
    dropped: frozenset[str] = frozenset()

    def apply(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """``body``, a request with OpenAI's original parameters, as the servers accept it."""
        adapted = {name: value for name, value in body.items() if name not in self.dropped}
        if "temperature" in adapted:
            adapted["temperature"] = max(adapted["temperature"], self.min_temperature)
        if "max_tokens" in adapted:
            adapted[self.limit] = max(adapted.pop("max_tokens"), self.min_tokens)
        return adapted

    def named(self, words: str, body: Mapping[str, Any]) -> "Parameters | None":
        """The parameters to try after an error with these ``words``; None if it names none that can be changed."""
        if "tokens" in words:
            minimum = _MINIMUM.search(words)
            fewest = REASONING_TOKENS if _TOO_FEW.search(words) else int(minimum[1]) if minimum else 0
            if fewest > self.min_tokens:
                return replace(self, min_tokens=fewest)
        steps = {
            "tokens": self._renamed(),
            "temperature": self._without_temperature(body),
            "seed": self._without_seed(body),
        }
        return next((step for name, step in steps.items() if name in words.lower() and step != self), None)

    def others(self, body: Mapping[str, Any]) -> "list[Parameters]":
        """The parameters to try after an error that names none, those with the fewest changes first."""
        low = self._without_temperature(body)
        temperatures = [self, low, low._without_temperature(body)]
        tried = [self._renamed(), *temperatures, *(each._renamed() for each in temperatures)]
        tried += [each._without_seed(body) for each in tried]
        return list(dict.fromkeys(each for each in tried if each != self))

    def _renamed(self) -> "Parameters":
        return replace(self, limit="max_completion_tokens")

    def _without_seed(self, body: Mapping[str, Any]) -> "Parameters":
        return replace(self, dropped=self.dropped | {"seed"}) if "seed" in body else self

    def _without_temperature(self, body: Mapping[str, Any]) -> "Parameters":
        if "temperature" not in body or "temperature" in self.dropped:
            return self
        if body["temperature"] < _LOW_TEMPERATURE and self.min_temperature == 0:
            return replace(self, min_temperature=_LOW_TEMPERATURE)
        return replace(self, dropped=self.dropped | {"temperature"})


def common_parameters(servers: list[Parameters]) -> Parameters:
    """The parameters that fit all of ``servers``."""
    return reduce(_common, servers, Parameters())


def _common(one: Parameters, other: Parameters) -> Parameters:
    return Parameters(
        other.limit if one.limit == "max_tokens" else one.limit,
        max(one.min_tokens, other.min_tokens),
        max(one.min_temperature, other.min_temperature),
        one.dropped | other.dropped,
    )


async def negotiate(send: Send, body: Mapping[str, Any]) -> tuple[Completion, Parameters]:
    """Send ``body``, and if it is refused, with other parameters. Return the reply and the accepted parameters.

    Raises:
        RequestRejected: the request is refused whatever its parameters; the first error.
        Exception: as ``send``.
    """
    accepted = Parameters()
    first: RequestRejected | None = None
    while True:
        try:
            return await send(accepted.apply(body)), accepted
        except RequestRejected as error:
            if error.status not in (400, 422) or isinstance(error, ContextLengthExceeded):
                raise
            first = first or error
            narrowed = accepted.named(error.words, body)
            if narrowed is None:
                break
            accepted = narrowed
    for other in accepted.others(body):
        with suppress(RequestRejected):
            return await send(other.apply(body)), other
    raise first


async def with_reasoning(send: Send, body: Mapping[str, Any], reply: Completion) -> tuple[Completion, bool]:
    """Repeat a request whose ``reply`` ended before its text began, with tokens for the reasoning before it.

    Returns:
        The reply, and whether it is a new one that has a text.
    """
    if reply.text.strip() or not reply.cut:
        return reply, False
    try:
        longer = await send({**body, "max_tokens": REASONING_TOKENS})
    except RequestRejected:
        return reply, False
    return (longer, True) if longer.text.strip() else (reply, False)
