"""The facts behind the built-in sample: one YAML file per family of conditions, validated when read."""

import hashlib
from functools import cache
from importlib.resources import files
from typing import Annotated

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from pyrite.errors import UserError

# The C loader is ten times as fast, but PyYAML may be built without libyaml.
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _distinct(items: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(items)) != len(items):
        raise ValueError("the same item occurs twice")
    return items


Text = Annotated[str, AfterValidator(lambda text: text.strip().rstrip(".")), Field(min_length=1)]
Texts = Annotated[tuple[Text, ...], AfterValidator(_distinct)]


class Condition(BaseModel):
    """One condition and its facts, in plain words."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    family: str
    name: Text
    what: Text
    outlook: Text
    warning: Text
    also: Annotated[Texts, Field(min_length=1, max_length=2)]
    parts: Annotated[Texts, Field(min_length=1, max_length=3)]
    symptoms: Annotated[Texts, Field(min_length=5, max_length=7)]
    feels: Annotated[Texts, Field(min_length=3, max_length=3)]
    causes: Annotated[Texts, Field(min_length=3, max_length=5)]
    risks: Annotated[Texts, Field(min_length=4, max_length=6)]
    tests: Annotated[Texts, Field(min_length=3, max_length=5)]
    treatments: Annotated[Texts, Field(min_length=5, max_length=7)]
    prevention: Annotated[Texts, Field(min_length=3, max_length=5)]


def parse_family(text: str, where: str) -> tuple[Condition, ...]:
    """Read a family of conditions from YAML; ``where`` is the file's name in messages."""
    try:
        raw = yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not valid YAML: {error}") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("family"), str):
        raise UserError(f"{where}: field 'family' is missing or not text")
    entries = raw.get("conditions")
    if not isinstance(entries, list) or len(entries) < 3 or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{where}: field 'conditions' must be a list of at least 3 mappings (train, validation, test)")
    conditions = []
    for index, entry in enumerate(entries, start=1):
        try:
            conditions.append(Condition(**{**entry, "family": raw["family"]}))
        except ValidationError as error:
            problem = error.errors()[0]
            raise UserError(
                f"{where}: condition {index} ({entry.get('name', 'no name')}): "
                f"field '{problem['loc'][0]}': {problem['msg']}"
            ) from error
    return tuple(conditions)


@cache
def load_families() -> tuple[tuple[Condition, ...], ...]:
    """All families of conditions, sorted by file name."""
    folder = files(__package__) / "facts"
    found = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".yaml")), key=lambda e: e.name)
    families = tuple(parse_family(entry.read_text(encoding="utf-8"), f"facts/{entry.name}") for entry in found)
    family_of: dict[str, str] = {}
    for condition in (condition for family in families for condition in family):
        if (other := family_of.setdefault(condition.name.casefold(), condition.family)) != condition.family:
            raise UserError(f"facts: condition '{condition.name}' is in families '{other}' and '{condition.family}'")
    return families


def number(*keys: object) -> int:
    """A pseudo-random number that depends on ``keys`` alone, on every machine and in every process."""
    digest = hashlib.sha256("\x1f".join(map(str, keys)).encode()).digest()
    return int.from_bytes(digest[:8], "big")
