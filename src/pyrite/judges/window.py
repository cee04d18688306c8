"""Passages that do not fit a model's window are cut here, on purpose, and never by the server."""

from collections.abc import Awaitable, Callable

from pyrite.judges.prompt import Prompt
from pyrite.llm.escaping import escape_markup

#: Tokens that joining texts may add, and the answer's own.
_SPARE = 24

#: What a chat template may put around a message, where no server says how long a sample is.
_TEMPLATE_TOKENS = 256

Count = Callable[[str], Awaitable[int]]


class Window:
    """Fits messages into ``limit`` tokens.

    A text never has more tokens than UTF-8 bytes, so what fits by bytes needs no counting, and nearly all does.
    ``sample_tokens``: how many tokens the message of two short texts has, template and all; 0: not known.
    ``count``: counts a message's tokens, template and all; None: nobody can, and bytes decide.
    """

    def __init__(self, prompt: Prompt, limit: int | None, sample_tokens: int, count: Count | None):
        self._prompt, self._limit, self._count = prompt, limit, count
        self._around = _SPARE + (sample_tokens or _TEMPLATE_TOKENS + len(prompt.render("", "").encode()))

    async def fit(self, query: str, passage: str) -> tuple[str, bool] | None:
        """The message, and whether its passage was cut; None where not even a character of the passage has room."""
        message = self._prompt.render(query, passage)
        if self._limit is None or self._by_bytes(query, passage) <= self._limit:
            return message, False
        around, size = await self._size(query, ""), await self._size(query, passage)
        if around >= self._limit:
            return None
        cut = passage
        while size > self._limit:
            share = (self._limit - around) / (size - around)
            cut = cut[: max(0, min(len(cut) - 1, int(len(cut) * share)))].rstrip()
            if not cut:
                return None
            size = await self._size(query, cut)
        return self._prompt.render(query, cut), cut != passage

    async def _size(self, query: str, passage: str) -> int:
        """Tokens of the message and its answer, or, where nobody counts, a number that is no less."""
        if self._count:
            return await self._count(self._prompt.render(query, passage)) + _SPARE
        return self._by_bytes(query, passage)

    def _by_bytes(self, query: str, passage: str) -> int:
        return self._around + _bytes(query) + _bytes(passage)


def _bytes(text: str) -> int:
    """Of the text as it stands in the message, where marks are broken up."""
    return len(escape_markup(text).encode())
