"""The judge's prompts, and messages that fit the model's context length.

Query and passage are data: they are put into delimited blocks and their markup is escaped. So no text can close its
block or imitate a turn of the model's chat template.
"""

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from itertools import pairwise
from typing import Any

from pyrite.errors import UserError
from pyrite.judges.grading import LABELS_OF, Form
from pyrite.llm.escaping import escape_markup
from pyrite.llm.prompt_files import parse_prompt_file, read_prompt_file

#: The placeholders of a template by form, in the order that prefix caching needs.
_PLACEHOLDERS: dict[Form, tuple[str, ...]] = {
    "grades": ("{query}", "{passage}"),
    "yes_no": ("{query}", "{passage}", "{question}"),
}
_WHY = {
    "{passage}": "so that a query's passages share a prefix",
    "{question}": "so that a passage's questions share a prefix",
}

#: The questions of the form yes_no, in the order of the requests.
_QUESTIONS = ("answers", "topic")
_KEYS = ("form", "template", "questions", "paraphrase")

#: Increment when ``render`` gives another message for the same template and texts.
_RENDERING = 1

#: Tokens reserved for the reply, and for tokens that joining texts may add.
_RESERVED_TOKENS = 24

#: Upper bound of a chat template's tokens, used if the server does not count tokens.
_TEMPLATE_TOKENS = 256


@dataclass(frozen=True)
class Prompt:
    """The messages that request a grade: one, or with the form yes_no one per question.

    Attributes:
        before: the text before the query.
        between: the text between query and passage.
        endings: the text after the passage, one per message.
        form: what the replies are.
        paraphrase: the same prompt in other words, to test the judge; None if the file has none. Not in the digest.
    """

    before: str
    between: str
    endings: tuple[str, ...]
    form: Form = "grades"
    paraphrase: "Prompt | None" = field(default=None, compare=False)

    @property
    def digest(self) -> str:
        """Hex digest of everything that decides the messages for a pair, and how replies are read."""
        form = () if self.form == "grades" else (self.form,)
        content = "\0".join((str(_RENDERING), self.before, self.between, *self.endings, *form))
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def labels(self) -> tuple[str, ...]:
        """The valid replies to each message."""
        return LABELS_OF[self.form]

    @property
    def longest(self) -> int:
        """The number of the longest message, from 0."""
        return max(range(len(self.endings)), key=lambda number: len(self.endings[number].encode()))

    def render(self, query: str, passage: str, number: int = 0) -> str:
        """The message with that ``number`` that requests the grade of ``passage`` for ``query``."""
        return (
            f"{self.before}<query>\n{escape_markup(query)}\n</query>{self.between}"
            f"<passage>\n{escape_markup(passage)}\n</passage>{self.endings[number]}"
        )


def load_prompt(name: str, setting: str = "judge.prompt") -> Prompt:
    """Load the built-in prompt of that name, or the file at that path. ``setting`` is named in errors.

    Raises:
        UserError: there is no such prompt, or it is invalid.
    """
    text, where = read_prompt_file(setting, resources.files("pyrite.judges") / "prompts", name)
    content = parse_prompt_file(text, where)
    if not isinstance(content, dict):
        raise UserError(f"{where}: not a mapping. A prompt file is a mapping with the key template.")
    if unknown := content.keys() - set(_KEYS):
        raise UserError(f"{where}: {unknown.pop()}: unknown key. Use {', '.join(_KEYS[:-1])} or {_KEYS[-1]}.")
    form = content.get("form", "grades")
    if form not in LABELS_OF:
        raise UserError(f"{where}: form: {form!r} is unknown. Use {' or '.join(LABELS_OF)}.")
    paraphrase = content.get("paraphrase")
    if paraphrase is not None:
        if not isinstance(paraphrase, dict) or not paraphrase.keys() <= {"template", "questions"}:
            raise UserError(
                f"{where}: paraphrase: not a mapping with the keys template and questions. Write both there."
            )
        paraphrase = _parse(f"{where}: paraphrase", paraphrase, form, None)
    return _parse(where, content, form, paraphrase)


def _parse(where: str, content: Mapping[Any, Any], form: Form, paraphrase: Prompt | None) -> Prompt:
    """The prompt of a ``form`` with the template and the questions in ``content``."""
    template = content.get("template")
    if not isinstance(template, str):
        raise UserError(f"{where}: template: missing, or not text. Write the prompt's text there.")
    placeholders = _PLACEHOLDERS[form]
    for placeholder in placeholders:
        if template.count(placeholder) != 1:
            raise UserError(
                f"{where}: template: {placeholder} must occur once, but occurs {template.count(placeholder)} times."
            )
    for first, second in pairwise(placeholders):
        if template.index(first) > template.index(second):
            raise UserError(f"{where}: template: {first} must come before {second}, {_WHY[second]}.")
    before, _, rest = template.partition("{query}")
    between, _, after = rest.partition("{passage}")
    if not before.strip():
        raise UserError(f"{where}: template: no text before {{query}}. Explain the grades there.")
    after = after.rstrip("\n")
    questions = _questions(where, content.get("questions"), form)
    endings = tuple(after.replace("{question}", question) for question in questions) if questions else (after,)
    return Prompt(before, between, endings, form, paraphrase)


def _questions(where: str, questions: Any, form: Form) -> list[str]:
    """The questions of the form yes_no; none in the form grades."""
    if form == "grades":
        if questions is not None:
            raise UserError(f"{where}: questions: only the form yes_no has them. Set form: yes_no, or remove them.")
        return []
    if not isinstance(questions, dict) or questions.keys() != set(_QUESTIONS):
        raise UserError(f"{where}: questions: not a mapping with the keys {' and '.join(_QUESTIONS)}. Write both.")
    for name in _QUESTIONS:
        if not isinstance(questions[name], str) or not questions[name].strip():
            raise UserError(f"{where}: questions.{name}: empty, or not text. Write a yes/no question.")
    return [questions[name].strip() for name in _QUESTIONS]


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
            sample_tokens: tokens of the longest message with two short texts, chat template included; 0 if unknown.
            count: counts a message's tokens, chat template included; None if the server cannot, then bytes count.
        """
        self._prompt, self._limit, self._count = prompt, limit, count
        self._overhead = _RESERVED_TOKENS + (sample_tokens or _TEMPLATE_TOKENS + len(self._message("", "").encode()))

    async def fit(self, query: str, passage: str) -> str | None:
        """The passage, truncated so that all messages fit; None if no character of it fits."""
        if self._limit is None or self._bytes(query, passage) <= self._limit:
            return passage
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
        return truncated

    def _message(self, query: str, passage: str) -> str:
        return self._prompt.render(query, passage, self._prompt.longest)

    async def _size(self, query: str, passage: str) -> int:
        """Tokens of the message and its reply; an upper bound if the server cannot count."""
        if self._count:
            return await self._count(self._message(query, passage)) + _RESERVED_TOKENS
        return self._bytes(query, passage)

    def _bytes(self, query: str, passage: str) -> int:
        return self._overhead + sum(len(escape_markup(text).encode()) for text in (query, passage))
