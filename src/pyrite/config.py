"""Read a run file with overrides into a RunSpec. Errors name the field, and its line in the file or its override."""

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from pyrite.errors import UserError, plain_message
from pyrite.spec import RunSpec

#: Settings that may hold a path.
_PATHS = (
    ("source", "path"),
    ("source", "id"),
    ("model", "base"),
    ("generate", "prompt"),
    ("judge", "prompt"),
    ("judge", "confusion"),
    ("judge", "calibration"),
    *(("judge", place, name) for place in ("first", "second") for name in ("prompt", "confusion", "calibration")),
    ("resources", "judge_key_file"),
    ("resources", "first_judge_key_file"),
    ("resources", "evaluate_judge_key_file"),
    ("evaluate", "judge", "prompt"),
    ("evaluate", "retention"),
    ("evaluate", "retention", "path"),
    ("evaluate", "retention", "report"),
)


def load(path: Path, overrides: Sequence[str] = ()) -> RunSpec:
    """Read the run file at ``path`` and apply ``key.sub=value`` overrides.

    Relative paths in the file are relative to its folder, those in overrides to the working directory. In the RunSpec
    they are absolute.

    Raises:
        UserError: the file cannot be read or is not YAML, or a setting is unknown, missing or invalid.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}). Save it as UTF-8.") from None
    except OSError as error:
        hint = "Check the path, or write a run file with `pyrite init`."
        raise UserError(f"{path} cannot be read: {error.strerror}. {hint}") from error
    try:
        content = yaml.safe_load(text)
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an impossible date
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        reason = getattr(error, "problem", None) or error
        raise UserError(f"{where}: not YAML: {reason}. Fix the syntax in this line or above.") from None
    if not isinstance(content, dict):
        raise UserError(
            f"{path} is not a mapping of settings. Write settings such as `name: my-run`, or start with `pyrite init`."
        )
    _drop_empty_sections(content, RunSpec)
    content.setdefault("name", re.sub("[^a-z0-9.]+", "-", path.stem.lower()).strip(".-"))
    for place in _PATHS:
        _make_absolute(content, place, path.parent)
    for override in overrides:
        _apply_override(content, override)
        key = override.partition("=")[0].split(".")
        for place in _PATHS:
            if list(place[: len(key)]) == key:
                _make_absolute(content, place, Path.cwd())
    try:
        return RunSpec.model_validate(content)
    except ValidationError as error:
        keys = [override.partition("=")[0] for override in overrides]
        raise UserError("\n".join(_messages(path, tree, keys, error))) from None


def dump(spec: RunSpec) -> str:
    """The RunSpec as YAML, with all defaults. Reading it gives an equal RunSpec."""
    return yaml.safe_dump(spec.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True)


def _drop_empty_sections(content: dict[str, Any], model: type[BaseModel]) -> None:
    """Remove null sections, so that they get their defaults. YAML reads a section with only comments as null."""
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
    if isinstance(value, list):
        node[place[-1]] = [_absolute(each, place, node, folder) for each in value]
    elif isinstance(value, str):
        node[place[-1]] = _absolute(value, place, node, folder)


def _absolute(value: Any, place: Sequence[str], section: dict[str, Any], folder: Path) -> Any:
    if not isinstance(value, str) or "://" in value or value.startswith("builtin:"):
        return value
    path = (folder / Path(value).expanduser()).absolute()
    return str(path) if _is_path(place, section, path) else value


def _is_path(place: Sequence[str], section: dict[str, Any], path: Path) -> bool:
    """Whether the setting at ``place`` is a path. Hub ids and prompt names look like relative paths."""
    if place[-1] in ("path", "retention", "report", "confusion", "calibration"):
        return True
    if place[-1] == "id":  # in other sources, the name of a column
        return section.get("kind") == "huggingface" and path.exists()
    return path.is_file() if place[-1] == "prompt" else path.exists()


def _apply_override(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f"{override!r} is not an override. Write key=value, such as finetune.learning_rate=1e-4.")
    *above, last = key.split(".")
    node = content
    for name in above:
        if node.get(name) is None:
            node[name] = {}
        node = node[name]
        if not isinstance(node, dict):
            raise UserError(
                f"{override!r}: {name} is a value, not a section, and has no {last}. Check the setting's name."
            )
    try:
        node[last] = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        raise UserError(f"{override!r}: {value!r} is not a value in YAML. Fix it, or put it in quotes.") from None


def problems(error: ValidationError) -> Iterator[tuple[Sequence[int | str], str]]:
    """The errors of a RunSpec: the path of keys to the invalid setting, and the message."""
    for problem in error.errors(include_url=False):
        loc = _without_tags(problem["loc"])
        if problem["type"] in ("union_tag_not_found", "union_tag_invalid"):
            loc.append("kind")
        field = ".".join(str(part) for part in loc) or "run file"
        if problem["type"] == "extra_forbidden":
            known = _fields(problem["loc"][:-1])
            near = difflib.get_close_matches(str(loc[-1]), known, n=1)
            hint = f" Did you mean {near[0]}?" if near else f" This section has: {', '.join(known)}."
            yield loc, f"{field}: unknown setting.{hint}"
        elif problem["type"] == "missing":
            yield loc, f"{field}: this setting is required but missing. Add it."
        elif problem["type"] == "union_tag_not_found":
            kinds = [kind for model in _models_at(problem["loc"]) for kind in _kinds(model)]
            yield loc, f"{field}: this setting is required but missing. Set it to one of: {', '.join(kinds)}."
        else:
            given = problem.get("ctx", {}).get("tag", problem.get("input"))
            # A URL may contain a password.
            printable = isinstance(given, str | int | float | bool) and "://" not in str(given)
            shown = f" (it is {given!r})" if printable else ""
            yield loc, f"{field}: {_reason(problem)}{shown}.{_hint(problem, field, given)}"


#: pydantic's types of errors for a value where a section should be.
_NO_SECTION = ("model_type", "model_attributes_type")
#: YAML's terms, by pydantic's types of errors.
_REASONS = {
    **dict.fromkeys(_NO_SECTION, "must be a section of settings"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    "list_type": "must be a list, such as [a, b]",
}


def _reason(problem: Any) -> str:
    """Why the value is invalid, without pydantic's terms."""
    if problem["type"] == "union_tag_invalid":
        return f"must be one of {problem['ctx']['expected_tags']}"
    text = plain_message(problem["msg"])
    return _REASONS.get(problem["type"], f"{text[0].lower()}{text[1:]}")


def _hint(problem: Any, field: str, given: Any) -> str:
    if problem["type"] in _NO_SECTION:
        name, setting = next(iter(_models_at(problem["loc"])[0].model_fields.items()))
        return f" Write its settings, such as {field}.{setting.alias or name}."
    context = problem.get("ctx", {})
    choices = re.findall(r"'([^']*)'", context.get("expected") or context.get("expected_tags") or "")
    near = difflib.get_close_matches(str(given), choices, n=1)
    return f" Did you mean {near[0]}?" if near else ""


def _messages(path: Path, tree: yaml.Node | None, overrides: Sequence[str], error: ValidationError) -> Iterator[str]:
    """The messages of an error. ``overrides``: the keys of the overrides, such as "finetune.epochs"."""
    for loc, text in problems(error):
        depth, line = _line(tree, loc)
        where = f"{path}:{line}" if line else str(path)
        keys = [key for key in overrides if _overlap(key.split("."), loc)]
        if not keys:
            yield f"{where}: {text}"
        elif depth < len(loc) or any(len(key.split(".")) <= len(loc) for key in keys):
            yield f"override {', '.join(keys)}: {text}"
        else:  # the error concerns a section, of which the file and the overrides set parts
            yield f"{where}, with override {', '.join(keys)}: {text}"


def _overlap(key: Sequence[str], loc: Sequence[int | str]) -> bool:
    """Whether an override of ``key`` sets the setting at ``loc``, a part of it, or a section that contains it."""
    return all(part == str(other) for part, other in zip(key, loc, strict=False)) and bool(loc)


def _without_tags(loc: Sequence[int | str]) -> list[int | str]:
    """``loc`` without the kind of a source or judge, which pydantic adds; it is not a key of the file."""
    return [part for i, part in enumerate(loc) if not (i and loc[i - 1] in _TAGGED and part in _KINDS)]


def _line(node: yaml.Node | None, loc: Sequence[int | str]) -> tuple[int, int | None]:
    """How many keys of ``loc`` are in the file, and the line of the deepest; None if none is."""
    line, depth = None, 0
    for part in loc:
        if not isinstance(node, yaml.MappingNode):
            break
        found = next(((key, value) for key, value in node.value if key.value == str(part)), None)
        if found is None:
            break
        line, node, depth = found[0].start_mark.line + 1, found[1], depth + 1
    return depth, line


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def _models_at(loc: Sequence[int | str]) -> list[type[BaseModel]]:
    """The sections that may be at ``loc``."""
    models: list[type[BaseModel]] = [RunSpec]
    for part in loc:
        inside = [m for model in models for m in _models_of(model, str(part))]
        if inside:
            models = inside
        elif part in _KINDS:
            models = [m for m in models if part in _kinds(m)]
    return models


def _fields(loc: Sequence[int | str]) -> list[str]:
    """The keys of the section at ``loc``."""
    return sorted({field.alias or name for model in _models_at(loc) for name, field in model.model_fields.items()})


def _kinds(model: type[BaseModel]) -> tuple[str, ...]:
    return get_args(model.model_fields["kind"].annotation)


def _models_of(model: type[BaseModel], name: str) -> list[type[BaseModel]]:
    field = model.model_fields.get(name)
    return list(_models(field.annotation)) if field else []


_UNIONS = ("source", "judge")
_TAGGED = (*_UNIONS, "first", "second")  # the judges of a cascade have a kind too
_KINDS = {kind for name in _UNIONS for model in _models_of(RunSpec, name) for kind in _kinds(model)}
