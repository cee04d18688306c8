"""Renders facts as passages and questions. The same facts always give the same texts."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from pyrite.sample.facts import Condition, Loader, number

#: Question types in the order of a document, with the key of the list that is shuffled in its passage.
QTYPES: Mapping[str, str] = {
    "information": "",
    "symptoms": "sym",
    "causes": "cau",
    "susceptibility": "ris",
    "exams and tests": "",  # tests and treatments stay in order: the first comes first
    "treatment": "",
    "prevention": "pre",
    "outlook": "",
}
MIN_WORDS, MAX_WORDS = 60, 130

# How a passage refers to its condition: always by name, once by name, by name and synonym, by synonym only, or not at
# all. Each entry applies to a tenth of the passages. Real leaflets often omit the name, which makes retrieval hard.
# With more "also" or "none", the base model would find too little.
_MODES = ("name", "name", "name", "once", "once", "once", "both", "both", "also", "none")

# Names that are capitalised inside a sentence, but have neither an apostrophe nor a second capital.
_PROPER = frozenset({"Gelineau", "Kawasaki", "Lyme", "Meniere", "Raynaud", "Willis-Ekbom", "Peyronie", "Wilms"})
# Endings of singular nouns in -s.
_SINGULAR = re.compile("(ss|is|us|'s|betes|easles|umps|erpes|abies|ickets|shingles|series|lens|hydrops)$")


@cache
def wording() -> dict[str, Any]:
    """The contents of phrasing.yaml."""
    text = (files(__package__) / "phrasing.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.load(text, Loader=Loader)
    return loaded


def passage(condition: Condition, qtype: str) -> str:
    """The passage that answers all questions of this type about this condition."""
    words = wording()
    templates: Sequence[str] = words["passages"][qtype]
    mode = _MODES[number("mode", condition.name, qtype) % len(_MODES)]
    pieces = _pieces(condition, qtype, mode)
    lead = ""
    if mode == "none" and qtype not in ("information", "symptoms"):
        leads = words["leads"][qtype]
        hallmarks = {"sym_1": condition.symptoms[0], "sym_2": condition.symptoms[1]}
        lead = leads[number("lead", condition.name, qtype) % len(leads)].format_map(hallmarks) + " "
    first = number("template", condition.name, qtype)
    # Facts differ in length: use the first template, starting at the condition's own, that is short enough.
    texts = [lead + templates[(first + step) % len(templates)].format_map(pieces) for step in range(len(templates))]
    text = next((text for text in texts if len(text.split()) <= MAX_WORDS), min(texts, key=len))
    for closer in words["closers"][qtype]:
        addition = closer.format_map(pieces)
        if len(text.split()) < MIN_WORDS and addition not in text:
            text += " " + addition
    return re.sub(r" ?\n ?", "\n", text)


def question(condition: Condition, qtype: str, family: int) -> str:
    """The question of this type about this condition, in one of the twelve phrasing families."""
    draw = number("question", condition.name, qtype, family)
    also = _inside(condition.also[draw % len(condition.also)])
    n = _inside(condition.name)
    pieces = {
        "n": n,
        "also": also,
        "lay": n if draw // 7 % 2 else also,
        "feel": _sentence(condition.feels[draw % len(condition.feels)]),
        "is_n": "are" if _plural(n) else "is",
        "does_n": "do" if _plural(n) else "does",
        "is_a": "are" if _plural(also) else "is",
        "does_a": "do" if _plural(also) else "does",
        "Is_a": "Are" if _plural(also) else "Is",
        "Does_a": "Do" if _plural(also) else "Does",
    }
    template: str = wording()["questions"][qtype][family]
    return _capital(template.format_map(pieces))


def _pieces(condition: Condition, qtype: str, mode: str) -> dict[str, str]:
    name = _inside(condition.name)
    first = {"name": name, "once": name, "none": "this condition"}.get(mode, "")
    if mode == "also":
        first = _inside(condition.also[number("other", condition.name, qtype) % len(condition.also)])
    if mode == "both":
        first = f"{name} (also: {_inside(condition.also[0])})"
    later = name if mode == "name" else "the condition"
    pieces = {
        "x": first,
        "X": _capital(first),
        "y": later,
        "Y": _capital(later),
        "is": "are" if _plural(first) else "is",
        "what": condition.what,
        "outlook": _sentence(condition.outlook),
        "warn": _urgent(condition.warning),
    }
    symptoms = condition.symptoms
    if mode == "none":  # the lead names the first two
        symptoms = symptoms[2:] + symptoms[:2]
    lists = {
        "sym": symptoms,
        "cau": condition.causes,
        "ris": condition.risks,
        "tes": condition.tests,
        "tre": condition.treatments,
        "pre": condition.prevention,
        "par": condition.parts,
    }
    for key, items in lists.items():
        if key == QTYPES[qtype]:
            items = tuple(sorted(items, key=lambda item: number("order", condition.name, qtype, item)))
        half = (len(items) + 1) // 2
        parts = {"": items, "_a": items[:half], "_b": items[half:], "_rest": items[1 if len(items) < 3 else 2 :]}
        for suffix, part in parts.items():
            pieces[key + suffix] = _prose(part)
            pieces[_capital(key) + suffix] = _capital(_prose(part))
        for index, item in enumerate(items, start=1):
            pieces[f"{key}_{index}"] = item
            pieces[_capital(f"{key}_{index}")] = _capital(item)
        pieces[f"{key}_dash"] = "\n" + "\n".join(f"- {item}" for item in items) + "\n"
    return pieces


def _prose(items: Sequence[str]) -> str:
    if len(items) < 2:
        return "".join(items)
    comma = "; " if any("," in item for item in items) else ", "
    return comma.join(items[:-1]) + (comma if len(items) > 2 else " ") + "and " + items[-1]


def _urgent(warning: str) -> str:
    if warning.startswith(("if ", "when ", "for ", "at once ", "as soon ")):
        return f"Urgent help is needed {warning}."
    return f"When to get urgent help: {warning}."


def _sentence(clause: str) -> str:
    return _capital(clause) + ("" if clause.endswith(("?", "!")) else ".")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _inside(name: str) -> str:
    """The name as written inside a sentence."""
    word = name.split()[0]
    if word in _PROPER or "'" in word or any(letter.isupper() for letter in word[1:]):
        return name
    return name[:1].lower() + name[1:]


def _plural(name: str) -> bool:
    head = name
    for preposition in (" in ", " of ", " with ", " from ", " after ", " on ", " ("):
        head = head.split(preposition)[0]
    return head.endswith("s") and not _SINGULAR.search(head)
