"""Reads prompt files: YAML, either built in or the user's own."""

from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from pyrite.errors import UserError


def read_prompt_file(setting: str, built_in: Traversable, name: str) -> tuple[str, str]:
    """Read the prompt ``name`` of the folder ``built_in``, or else the file at the path ``name``.

    Returns:
        The text, and the prompt's name for error messages.

    Raises:
        UserError: there is no such prompt, or it cannot be read. ``setting`` is named in the message.
    """
    if (built_in / f"{name}.yaml").is_file():
        return (built_in / f"{name}.yaml").read_text(encoding="utf-8"), f"built-in prompt {name}"
    path = Path(name).expanduser().absolute()
    try:
        return path.read_text(encoding="utf-8"), str(path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}). Save it as UTF-8.") from None
    except OSError as error:
        names = ", ".join(sorted(each.name.removesuffix(".yaml") for each in built_in.iterdir()))
        raise UserError(
            f"{setting}: {name} is neither a built-in prompt ({names}) nor a file: {error.strerror}."
        ) from None


def parse_prompt_file(text: str, source: str) -> Any:
    """Parse YAML. Raises UserError with ``source``, the line and the problem."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{source}{line}: not YAML: {getattr(error, 'problem', None) or error}. Fix it.") from None
