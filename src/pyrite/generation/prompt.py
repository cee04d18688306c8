"""What the LLM is told: prompt files, one a field, and the requests that are made of them."""

import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError, field_validator

from pyrite.errors import UserError
from pyrite.llm.escaping import escape_markup
from pyrite.spec import GenerateSpec, Section

#: Reply tokens for each word that a question may have: enough for rare words and for scripts that cost more.
_TOKENS_PER_WORD = 4


class Prompt(Section):
    """A prompt file. ``{passage}``, ``{questions}``, ``{min_words}`` and ``{max_words}`` stand for what is put in."""

    from_passage: str
    few_shot: str

    @field_validator("from_passage")
    @classmethod
    def _takes_a_passage(cls, value: str) -> str:
        if "{passage}" not in value:
            raise ValueError("must hold {passage}, where the passage is put in")
        return value

    @field_validator("few_shot")
    @classmethod
    def _takes_questions(cls, value: str) -> str:
        if "{questions}" not in value:
            raise ValueError("must hold {questions}, where the example questions are put in")
        return value


class Request(NamedTuple):
    """One thing to ask: the body of a chat completion, and a digest of all of it that names the answer."""

    name: str
    key: str
    body: dict[str, Any]


def load(name: str) -> Prompt:
    """The prompt called ``name``: one of Pyrite's, or a file.

    Raises:
        UserError: there is none, or it is not a prompt file.
    """
    text, where = _read(name)
    try:
        return Prompt.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not YAML: {error}. Mend it, or set generate.prompt to another.") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        told = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{where}: {field}: {told}. A prompt file holds from_passage and few_shot, as text.") from error


def digest(name: str) -> str:
    """Hex sha256 of the prompt file's text. Raises UserError as ``load`` does where there is none."""
    return hashlib.sha256(_read(name)[0].encode()).hexdigest()


def fingerprint(model: str, prompt: Prompt, temperature: float) -> str:
    """Hex digest of who answers and how. Answers are kept under it, each by the digest of its whole request."""
    content = {"model": model, "prompt": prompt.model_dump(), "temperature": temperature}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def about_passage(prompt: Prompt, spec: GenerateSpec, name: str, seed: int, title: str, text: str) -> Request:
    """Ask for a question that the passage answers."""
    whole = text if not title or text.startswith(title) else f"{title}\n\n{text}"
    return _request(spec, name, seed, prompt.from_passage, "{passage}", escape_markup(whole))


def like(prompt: Prompt, spec: GenerateSpec, name: str, seed: int, questions: Sequence[str]) -> Request:
    """Ask for a new question of the kind of ``questions``."""
    shown = "\n".join(f"- {escape_markup(question)}" for question in questions)
    return _request(spec, name, seed, prompt.few_shot, "{questions}", shown)


def _request(spec: GenerateSpec, name: str, seed: int, template: str, mark: str, content: str) -> Request:
    limits = template.replace("{min_words}", str(spec.min_words)).replace("{max_words}", str(spec.max_words))
    body = {
        "messages": [{"role": "user", "content": limits.replace(mark, content).strip()}],
        "temperature": spec.temperature,
        "seed": seed,
        "max_tokens": _TOKENS_PER_WORD * spec.max_words,
    }
    return Request(name, hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest(), body)


def _read(name: str) -> tuple[str, str]:
    """The text of the prompt file called ``name``, and where it stands."""
    ours = resources.files("pyrite").joinpath("generation/prompts")
    built_in = sorted(path.name.removesuffix(".yaml") for path in ours.iterdir() if path.name.endswith(".yaml"))
    if name in built_in:
        return ours.joinpath(f"{name}.yaml").read_text(encoding="utf-8"), f"built-in prompt {name}"
    path = Path(name).expanduser()
    try:
        return path.read_text(encoding="utf-8"), str(path.absolute())
    except UnicodeDecodeError as error:
        raise UserError(f"{path.absolute()}: not UTF-8 (byte {error.start}). Save it as UTF-8.") from error
    except OSError as error:
        raise UserError(
            f"generate.prompt {name!r}: {error.strerror}. Name a file, or one of {', '.join(built_in)}."
        ) from error
