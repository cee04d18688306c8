"""The facts behind the practice corpus: one YAML file a family of conditions, checked as it is read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from pyrite.errors import UserError

#: Lists of a condition, with how few and how many items each may have.
LISTS: Mapping[str, tuple[int, int]] = {
    "also": (1, 2),
    "parts": (1, 3),
    "symptoms": (5, 7),
    "feels": (3, 3),
    "causes": (3, 5),
    "risks": (4, 6),
    "tests": (3, 5),
    "treatments": (5, 7),
    "prevention": (3, 5),
}
#: Single values of a condition.
TEXTS = ("name", "what", "outlook", "warning")

# The C loader reads the tables in a tenth of the time; it is missing where PyYAML was built without libyaml.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Condition:
    """One condition and what is known of it, in plain words."""

    family: str
    name: str
    what: str
    outlook: str
    warning: str
    also: tuple[str, ...]
    parts: tuple[str, ...]
    symptoms: tuple[str, ...]
    feels: tuple[str, ...]
    causes: tuple[str, ...]
    risks: tuple[str, ...]
    tests: tuple[str, ...]
    treatments: tuple[str, ...]
    prevention: tuple[str, ...]


def parse_family(text: str, where: str) -> tuple[Condition, ...]:
    """Read one family of conditions from YAML text; ``where`` names the file in error messages."""
    try:
        raw = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not valid YAML: {error}") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("family"), str):
        raise UserError(f"{where}: field 'family' is missing or not text")
    conditions = raw.get("conditions")
    if not isinstance(conditions, list) or len(conditions) < 3:
        raise UserError(f"{where}: field 'conditions' must be a list of at least 3 (train, validation, test)")
    return tuple(_condition(entry, raw["family"], where, at) for at, entry in enumerate(conditions, start=1))


@cache
def load_families() -> tuple[tuple[Condition, ...], ...]:
    """All families of conditions, in the sorted order of their files."""
    folder = files(__package__) / "facts"
    found = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".yaml")), key=lambda e: e.name)
    families = tuple(parse_family(entry.read_text(encoding="utf-8"), f"facts/{entry.name}") for entry in found)
    seen: dict[str, str] = {}
    for condition in (condition for family in families for condition in family):
        if (other := seen.setdefault(condition.name.casefold(), condition.family)) != condition.family:
            raise UserError(f"facts: condition '{condition.name}' is in families '{other}' and '{condition.family}'")
    return families


def number(*keys: object) -> int:
    """A number that depends on the keys alone: the same on every machine and in every run."""
    digest = hashlib.sha256("\x1f".join(map(str, keys)).encode()).digest()
    return int.from_bytes(digest[:8], "big")


def _condition(entry: Any, family: str, where: str, at: int) -> Condition:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: condition {at} is not a mapping")
    here = f"{where}: condition {at} ({entry.get('name', 'no name')})"
    if unknown := sorted(map(str, set(entry) - {*TEXTS, *LISTS})):
        raise UserError(f"{here}: unknown field '{unknown[0]}'")
    values: dict[str, Any] = {}
    for field in TEXTS:
        value = entry.get(field)
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{here}: field '{field}' is missing or not text")
        values[field] = value.strip().rstrip(".")
    for field, (least, most) in LISTS.items():
        items = entry.get(field)
        if not isinstance(items, list) or not all(isinstance(item, str) and item.strip() for item in items):
            raise UserError(f"{here}: field '{field}' is missing or not a list of texts")
        if not least <= len(items) <= most:
            wanted = str(least) if least == most else f"{least} to {most}"
            raise UserError(f"{here}: field '{field}' has {len(items)} items, wanted {wanted}")
        if len(set(items)) != len(items):
            raise UserError(f"{here}: field '{field}' has the same item twice")
        values[field] = tuple(item.strip().rstrip(".") for item in items)
    return Condition(family=family, **values)
