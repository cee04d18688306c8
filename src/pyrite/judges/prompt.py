"""Prompts: one file a domain, whose template says how a pair is put to an LLM.

The query and the passage are data. They stand in delimited blocks, and nothing in them can close a block or speak to
the model in the place of its chat template.
"""

import hashlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import yaml

from pyrite.errors import UserError
from pyrite.llm.escaping import escape_markup

_PLACEHOLDERS = ("{query}", "{passage}")
_KEYS = ("template",)

#: Raise when ``render`` puts the same template and texts otherwise.
_RENDERING = 1


@dataclass(frozen=True)
class Prompt:
    """A template in three pieces: what stands before the query, between query and passage, and after."""

    before: str
    between: str
    after: str

    @property
    def digest(self) -> str:
        """Hex digest of all that decides what is asked about a pair."""
        content = "\0".join((str(_RENDERING), self.before, self.between, self.after))
        return hashlib.sha256(content.encode()).hexdigest()

    def render(self, query: str, passage: str) -> str:
        """The message that asks for the grade of ``passage`` for ``query``."""
        return (
            f"{self.before}<query>\n{escape_markup(query)}\n</query>{self.between}"
            f"<passage>\n{escape_markup(passage)}\n</passage>{self.after}"
        )


def load_prompt(name: str) -> Prompt:
    """The packaged prompt of that name, or the one in the file at that path.

    Raises:
        UserError: there is none, or the file is not a prompt. Names the file and the field.
    """
    packaged = resources.files("pyrite.judges") / "prompts"
    if (packaged / f"{name}.yaml").is_file():
        return _parsed((packaged / f"{name}.yaml").read_text(encoding="utf-8"), f"the prompt {name}")
    path = Path(name).expanduser()
    try:
        return _parsed(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        known = ", ".join(sorted(entry.name.removesuffix(".yaml") for entry in packaged.iterdir()))
        raise UserError(f"judge.prompt: {name} is no file, and no prompt that comes with Pyrite ({known}).") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}). Save it as UTF-8.") from None
    except OSError as error:
        raise UserError(f"judge.prompt: {path} cannot be read: {error.strerror}.") from None


def _parsed(text: str, where: str) -> Prompt:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{where}{line}: not YAML: {getattr(error, 'problem', None) or error}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{where}: a prompt file is a mapping with the key template; this is not one.")
    for key in content:
        if key not in _KEYS:
            raise UserError(f"{where}: {key}: unknown key. Known here: {', '.join(_KEYS)}.")
    template = content.get("template")
    if not isinstance(template, str):
        raise UserError(f"{where}: template: this text is needed and not there.")
    for placeholder in _PLACEHOLDERS:
        if template.count(placeholder) != 1:
            raise UserError(
                f"{where}: template: {placeholder} must stand in it once; it does {template.count(placeholder)} times."
            )
    before, _, rest = template.partition("{query}")
    between, placeholder, after = rest.partition("{passage}")
    if not placeholder:
        raise UserError(
            f"{where}: template: {{query}} must come before {{passage}}, so that a query's passages share a prefix."
        )
    if not before.strip():
        raise UserError(f"{where}: template: the grades must be explained before {{query}}.")
    return Prompt(before, between, after.rstrip("\n"))
