"""Prompts that request a question, and the requests that they render."""

import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any, NamedTuple

from pydantic import ValidationError, field_validator

from pyrite.errors import UserError, plain_message
from pyrite.llm.escaping import escape_markup
from pyrite.llm.prompt_files import parse_prompt_file, read_prompt_file
from pyrite.spec import GenerateSpec, Section

#: Maximum reply tokens per word of a question: enough for rare words and for scripts that need more tokens.
_TOKENS_PER_WORD = 4


class Prompt(Section):
    """A prompt file: two templates. Both may contain {min_words} and {max_words}."""

    from_passage: str
    few_shot: str

    @field_validator("from_passage")
    @classmethod
    def _has_passage(cls, value: str) -> str:
        if "{passage}" not in value:
            raise ValueError("must contain {passage}, which the passage replaces")
        return value

    @field_validator("few_shot")
    @classmethod
    def _has_questions(cls, value: str) -> str:
        if "{questions}" not in value:
            raise ValueError("must contain {questions}, which the example questions replace")
        return value


class Request(NamedTuple):
    """A chat completion request. Its reply is saved under ``key``, the digest of ``body``."""

    name: str
    key: str
    body: dict[str, Any]


def load(name: str) -> Prompt:
    """Load the built-in prompt of that name, or the file at that path.

    Raises:
        UserError: there is no such prompt, or it is invalid.
    """
    text, source = _read(name)
    try:
        return Prompt.model_validate(parse_prompt_file(text, source))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        message = plain_message(first["msg"])
        raise UserError(
            f"{source}: {field}: {message}. A prompt file has the texts from_passage and few_shot."
        ) from error


def digest(name: str) -> str:
    """Hex sha256 of the prompt file. Raises UserError if it cannot be read."""
    return hashlib.sha256(_read(name)[0].encode()).hexdigest()


def fingerprint(model: str, prompt: Prompt, temperature: float) -> str:
    """Hex digest of model, prompt and temperature, under which replies are stored."""
    content = {"model": model, "prompt": prompt.model_dump(), "temperature": temperature}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def passage_request(prompt: Prompt, spec: GenerateSpec, name: str, seed: int, passage: str) -> Request:
    """Build the request for a question that ``passage``, in context, answers."""
    return _request(spec, name, seed, prompt.from_passage, "{passage}", escape_markup(passage))


def few_shot_request(prompt: Prompt, spec: GenerateSpec, name: str, seed: int, examples: Sequence[str]) -> Request:
    """Build the request for a new question similar to ``examples``."""
    questions = "\n".join(f"- {escape_markup(example)}" for example in examples)
    return _request(spec, name, seed, prompt.few_shot, "{questions}", questions)


def _request(spec: GenerateSpec, name: str, seed: int, template: str, placeholder: str, text: str) -> Request:
    filled = template.replace("{min_words}", str(spec.min_words)).replace("{max_words}", str(spec.max_words))
    body = {
        "messages": [{"role": "user", "content": filled.replace(placeholder, text).strip()}],
        "temperature": spec.temperature,
        "seed": seed,
        "max_tokens": _TOKENS_PER_WORD * spec.max_words,
    }
    return Request(name, hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest(), body)


def _read(name: str) -> tuple[str, str]:
    return read_prompt_file("generate.prompt", resources.files("pyrite.generation") / "prompts", name)
