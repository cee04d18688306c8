"""Reading a run file: YAML and overrides to a RunSpec, with errors that name the file, the line and the field."""

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from pyrite.errors import UserError
from pyrite.spec import RunSpec

_PATHS = (
    ("source", "path"),
    ("source", "id"),
    ("model", "base"),
    ("generate", "prompt"),
    ("judge", "prompt"),
    ("resources", "judge_key_file"),
    ("evaluate", "retention"),
    ("evaluate", "retention", "path"),
)


def load(path: Path, overrides: Sequence[str] = ()) -> RunSpec:
    """Read the run file at ``path`` and apply ``key.sub=value`` overrides.

    Relative paths in the file are taken from the file's own folder, those in overrides from the working directory, and
    the RunSpec holds them absolute.

    Raises:
        UserError: the file cannot be read, is not well formed, or holds an unknown key or a wrong value.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist. `pyrite init` writes a run file to start from.") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; give a run file (YAML).") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}). Save it as UTF-8.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        content = yaml.safe_load(text)
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError) as error:  # the second for a date that no calendar has
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(f"{where}: not YAML: {getattr(error, 'problem', None) or error}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: a run file is a mapping of settings, such as `name: my-run`; this is not one.")
    _drop_empty_sections(content, RunSpec)
    content.setdefault("name", path.stem.lower().replace("_", "-"))
    for place in _PATHS:
        _make_absolute(content, place, path.parent)
    for override in overrides:
        _apply(content, override)
        key = override.partition("=")[0].split(".")
        for place in _PATHS:
            if list(place[: len(key)]) == key:
                _make_absolute(content, place, Path.cwd())
    try:
        return RunSpec.model_validate(content)
    except ValidationError as error:
        raise UserError("\n".join(_messages(path, tree, error))) from None


def dump(spec: RunSpec) -> str:
    """The RunSpec as YAML, whole; reading it gives the same RunSpec."""
    return yaml.safe_dump(spec.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True)


def _drop_empty_sections(content: dict[str, Any], model: type[BaseModel]) -> None:
    """A section with everything under it commented out is read by YAML as null, and means the defaults."""
    for name, field in model.model_fields.items():
        sections = list(_models(field.annotation))
        if not sections or name not in content:
            continue
        if isinstance(content[name], dict):
            _drop_empty_sections(content[name], sections[0])
        elif content[name] is None and type(None) not in get_args(field.annotation):
            del content[name]


def _make_absolute(content: dict[str, Any], place: Sequence[str], folder: Path) -> None:
    node: Any = content
    for name in place[:-1]:
        node = node.get(name) if isinstance(node, dict) else None
    value = node.get(place[-1]) if isinstance(node, dict) else None
    if not isinstance(value, str) or "://" in value or value.startswith("builtin:"):
        return
    found = (folder / Path(value).expanduser()).absolute()
    if _is_path(place, node, found):
        node[place[-1]] = str(found)


def _is_path(place: Sequence[str], section: dict[str, Any], found: Path) -> bool:
    """Whether what stands at ``place`` is a path: a hub id and the name of a prompt look like a relative one."""
    if place[-1] in ("path", "retention"):
        return True
    if place[-1] == "id":  # elsewhere it names a column
        return section.get("kind") == "huggingface" and found.exists()
    return found.is_file() if place[-1] == "prompt" else found.exists()


def _apply(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f"{override!r} is not an override; write key=value, such as finetune.learning_rate=1e-4.")
    *above, last = key.split(".")
    node = content
    for name in above:
        if node.get(name) is None:
            node[name] = {}
        node = node[name]
        if not isinstance(node, dict):
            raise UserError(f"{override!r}: {name} is a value, not a section, and has no {last}.")
    try:
        node[last] = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        raise UserError(f"{override!r}: {value!r} is not a value.") from None


def problems(error: ValidationError) -> Iterator[tuple[Sequence[int | str], str]]:
    """Each thing that is wrong with a RunSpec: where, as the keys down to it, and a sentence that names it."""
    for problem in error.errors(include_url=False):
        loc = _without_tags(problem["loc"])
        field = ".".join(str(part) for part in loc) or "run file"
        if problem["type"] == "extra_forbidden":
            known = _fields(problem["loc"][:-1])
            near = difflib.get_close_matches(str(loc[-1]), known, n=1)
            hint = f" Did you mean {near[0]}?" if near else f" Known here: {', '.join(known)}."
            yield loc, f"{field}: unknown setting.{hint}"
        elif problem["type"] == "missing":
            yield loc, f"{field}: this setting is needed and not there."
        else:
            text = problem["msg"].removeprefix("Value error, ")
            given = problem.get("input")
            # An address may hold a password.
            plain = isinstance(given, str | int | float | bool) and "://" not in str(given)
            shown = f" (it is {given!r})" if plain else ""
            yield loc, f"{field}: {text[0].lower() + text[1:]}{shown}.{_nearest_choice(problem)}"


def _nearest_choice(problem: Any) -> str:
    told = problem.get("ctx", {})
    choices = re.findall(r"'([^']*)'", told.get("expected") or told.get("expected_tags") or "")
    near = difflib.get_close_matches(str(told.get("tag", problem.get("input"))), choices, n=1)
    return f" Did you mean {near[0]}?" if near else ""


def _messages(path: Path, tree: yaml.Node | None, error: ValidationError) -> Iterator[str]:
    for loc, text in problems(error):
        line = _line(tree, loc)
        yield f"{path}:{line}: {text}" if line else f"{path}: {text}"


def _without_tags(loc: Sequence[int | str]) -> list[int | str]:
    """``loc`` without the kind of a source or judge, which pydantic adds; it is not a key of the file."""
    return [part for i, part in enumerate(loc) if not (i == 1 and loc[0] in _UNIONS and part in _KINDS)]


def _line(node: yaml.Node | None, loc: Sequence[int | str]) -> int | None:
    """The line of the deepest part of ``loc`` that stands in the file."""
    line = None
    for part in loc:
        if not isinstance(node, yaml.MappingNode):
            break
        found = next(((key, value) for key, value in node.value if key.value == str(part)), None)
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return line


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def _fields(loc: Sequence[int | str]) -> list[str]:
    """The known keys of the section at ``loc``."""
    models: list[type[BaseModel]] = [RunSpec]
    for part in loc:
        inside = [m for model in models for m in _models_of(model, str(part))]
        if inside:
            models = inside
        elif part in _KINDS:
            models = [m for m in models if part in get_args(m.model_fields["kind"].annotation)]
    return sorted({field.alias or name for model in models for name, field in model.model_fields.items()})


def _models_of(model: type[BaseModel], name: str) -> list[type[BaseModel]]:
    field = model.model_fields.get(name)
    return list(_models(field.annotation)) if field else []


_UNIONS = ("source", "judge")
_KINDS = {
    kind
    for name in _UNIONS
    for model in _models_of(RunSpec, name)
    for kind in get_args(model.model_fields["kind"].annotation)
}
