"""The judge's prompts, and messages that fit the model's context length.

Query and passage are data: they are put into delimited blocks and their markup is escaped. So no text can close its
block or imitate a turn of the model's chat template.
"""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import resources

from pyrite.errors import UserError
from pyrite.llm.escaping import escape_markup
from pyrite.llm.prompt_files import parse_prompt_file, read_prompt_file

_PLACEHOLDERS = ("{query}", "{passage}")

#: Increment when ``render`` gives another message for the same template and texts.
_RENDERING = 1

#: Tokens reserved for the reply, and for tokens that joining texts may add.
_RESERVED_TOKENS = 24

#: Upper bound of a chat template's tokens, used if the server does not count tokens.
_TEMPLATE_TOKENS = 256


@dataclass(frozen=True)
class Prompt:
    """A template: the text before the query, between query and passage, and after the passage."""

    before: str
    between: str
    after: str

    @property
    def digest(self) -> str:
        """Hex digest of everything that decides the message for a pair."""
        content = "\0".join((str(_RENDERING), self.before, self.between, self.after))
        return hashlib.sha256(content.encode()).hexdigest()

    def render(self, query: str, passage: str) -> str:
        """The message that requests the grade of ``passage`` for ``query``."""
        return (
            f"{self.before}<query>\n{escape_markup(query)}\n</query>{self.between}"
            f"<passage>\n{escape_markup(passage)}\n</passage>{self.after}"
        )


def load_prompt(name: str) -> Prompt:
    """Load the built-in prompt of that name, or the file at that path.

    Raises:
        UserError: there is no such prompt, or it is invalid.
    """
    text, where = read_prompt_file("judge.prompt", resources.files("pyrite.judges") / "prompts", name)
    content = parse_prompt_file(text, where)
    if not isinstance(content, dict):
        raise UserError(f"{where}: not a mapping. A prompt file is a mapping with the key template.")
    if unknown := content.keys() - {"template"}:
        raise UserError(f"{where}: {unknown.pop()}: unknown key. The only key is template.")
    template = content.get("template")
    if not isinstance(template, str):
        raise UserError(f"{where}: template: missing, or not text. Write the prompt's text there.")
    for placeholder in _PLACEHOLDERS:
        if template.count(placeholder) != 1:
            raise UserError(
                f"{where}: template: {placeholder} must occur once, but occurs {template.count(placeholder)} times."
            )
    before, _, rest = template.partition("{query}")
    between, placeholder, after = rest.partition("{passage}")
    if not placeholder:
        raise UserError(
            f"{where}: template: {{query}} must come before {{passage}}, so that a query's passages share a prefix."
        )
    if not before.strip():
        raise UserError(f"{where}: template: no text before {{query}}. Explain the grades there.")
    return Prompt(before, between, after.rstrip("\n"))


class Window:
    """Truncates passages so that messages fit into ``limit`` tokens.

    A text never has more tokens than UTF-8 bytes, so most messages fit for sure and are not tokenized.
    """

    def __init__(
        self, prompt: Prompt, limit: int | None, sample_tokens: int, count: Callable[[str], Awaitable[int]] | None
    ):
        """
        Args:
            limit: the context length; None if unknown, then nothing is truncated.
            sample_tokens: tokens of a message with two short texts, chat template included; 0 if unknown.
            count: counts a message's tokens, chat template included; None if the server cannot, then bytes count.
        """
        self._prompt, self._limit, self._count = prompt, limit, count
        self._overhead = _RESERVED_TOKENS + (sample_tokens or _TEMPLATE_TOKENS + len(prompt.render("", "").encode()))

    async def fit(self, query: str, passage: str) -> tuple[str, bool] | None:
        """The message, and whether its passage is truncated; None if no character of the passage fits."""
        message = self._prompt.render(query, passage)
        if self._limit is None or self._bytes(query, passage) <= self._limit:
            return message, False
        empty, size = await self._size(query, ""), await self._size(query, passage)
        if empty >= self._limit:
            return None
        truncated = passage
        while size > self._limit:
            share = (self._limit - empty) / (size - empty)
            truncated = truncated[: max(0, min(len(truncated) - 1, int(len(truncated) * share)))].rstrip()
            if not truncated:
                return None
            size = await self._size(query, truncated)
        return self._prompt.render(query, truncated), truncated != passage

    async def _size(self, query: str, passage: str) -> int:
        """Tokens of the message and its reply; an upper bound if the server cannot count."""
        if self._count:
            return await self._count(self._prompt.render(query, passage)) + _RESERVED_TOKENS
        return self._bytes(query, passage)

    def _bytes(self, query: str, passage: str) -> int:
        return self._overhead + sum(len(escape_markup(text).encode()) for text in (query, passage))
