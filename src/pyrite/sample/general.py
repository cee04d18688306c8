"""The built-in retention set: general knowledge outside medicine, as documents and questions generated from facts.

It shows only severe forgetting: its passages are short, and half of its questions name their subject.
"""

import hashlib
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import yaml

from pyrite.sample.facts import Loader, number

#: A document's text and a question for each fact of an entry. ``x`` is its name, ``X`` the same capitalised.
_PASSAGES = {
    "what": ("{X} is {fact}.", "In short, {x} is {fact}.", "{X}, a subject of {field}, is {fact}."),
    "how": ("How {x} works: {fact}.", "{X} in detail: {fact}.", "The principle of {x}: {fact}."),
    "trouble": ("A weak point of {x}: {fact}.", "{X} has its troubles: {fact}.", "What to know about {x}: {fact}."),
}
_QUESTIONS = {
    "what": ("What is {x}?", "Define {x}", "What is meant by {x}?"),
    "how": ("How does {x} work?", "Explain the principle of {x}", "What goes on inside {x}?"),
    "trouble": ("What can go wrong with {x}?", "What are the limits of {x}?", "Name a problem with {x}"),
}


class Fact(NamedTuple):
    """A document, and the questions that it answers."""

    id: str
    text: str
    questions: tuple[str, ...]


@cache
def facts() -> tuple[Fact, ...]:
    """All documents. Each entry has three: what it is, how it works, and what is difficult about it.

    An entry has two questions: one in other words, without its name, and one that names it and asks for another fact.
    """
    return tuple(_generate())


def digest() -> str:
    """Hex sha256 of the documents and their questions."""
    return hashlib.sha256(repr(facts()).encode()).hexdigest()


def _generate() -> Iterator[Fact]:
    text = (files(__package__) / "general.yaml").read_text(encoding="utf-8")
    sections: list[dict[str, Any]] = yaml.load(text, Loader=Loader)
    for section in sections:
        for entry in section["entries"]:
            name: str = entry["name"]
            others = [key for key in _PASSAGES if key not in entry["ask"]]
            named = others[number("named", name) % len(others)]
            for key, templates in _PASSAGES.items():
                values = {"x": name, "X": name[0].upper() + name[1:], "field": section["field"], "fact": entry.get(key)}
                passage = templates[number("passage", name, key) % len(templates)].format_map(values)
                questions = [entry["ask"][key]] if key in entry["ask"] else []
                if key == named:
                    wordings = _QUESTIONS[key]
                    questions.append(wordings[number("question", name, key) % len(wordings)].format_map(values))
                yield Fact(f"{name}: {key}", passage, tuple(questions))
