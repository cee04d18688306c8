"""The practice corpus: everyday medicine in MedQuAD's XML layout, made from a table of facts.

It is for practice, not medical advice: it lets every stage be tried, and tested, without a download.
"""

from __future__ import annotations

import re
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from functools import cache

from pyrite.errors import UserError
from pyrite.sample.facts import Condition, load_families, number
from pyrite.sample.phrasing import QTYPES, passage, question

__all__ = ["SOURCE", "documents", "families_of", "split_of"]

#: The collection's name, in MedQuAD's sense.
SOURCE = "PRACTICE"

#: Which phrasing families a split's questions are drawn from: no wording is on two sides.
_FAMILIES: dict[str, tuple[int, ...]] = {"train": (0, 1, 2, 3, 4, 5, 6, 7), "val": (8, 9), "test": (10, 11)}
# A training topic is asked in three of the eight, three apart so that clinical and lay wording mix.
_TRAIN_STEPS = (0, 3, 6)


def families_of(split: str) -> tuple[int, ...]:
    """The phrasing families (0 to 11) that this split's questions are drawn from."""
    return _FAMILIES[split]


def split_of(family: str, condition: str) -> str:
    """A condition's split: of each family one is for validation, one for the test, the rest to train."""
    try:
        return _splits()[family, condition]
    except KeyError:
        raise UserError(f"practice corpus: no condition '{condition}' in a family '{family}'") from None


def documents() -> Iterator[tuple[str, bytes]]:
    """Every document as (file name, XML), in the same order and with the same bytes each time."""
    conditions = [condition for family in load_families() for condition in family]
    for at, condition in enumerate(conditions, start=1):
        yield f"{SOURCE}/{at:07d}.xml", _document(condition, at)


@cache
def _splits() -> dict[tuple[str, str], str]:
    splits: dict[tuple[str, str], str] = {}
    for members in load_families():
        family, count = members[0].family, len(members)
        # The places change from family to family, so that neither split is always the last on the list.
        val = number("val", family) % count
        test = (val + 1 + number("test", family) % (count - 1)) % count
        for at, condition in enumerate(members):
            splits[family, condition.name] = {val: "val", test: "test"}.get(at, "train")
    return splits


def _document(condition: Condition, at: int) -> bytes:
    split = split_of(condition.family, condition.name)
    url = f"https://example.org/practice/{_slug(condition.family)}/{_slug(condition.name)}"
    root = ET.Element("Document", id=f"{at:07d}", source=SOURCE, url=url)
    ET.SubElement(root, "Focus").text = condition.name
    synonyms = ET.SubElement(ET.SubElement(root, "FocusAnnotations"), "Synonyms")
    for other in condition.also:
        ET.SubElement(synonyms, "Synonym").text = other
    pairs = ET.SubElement(root, "QAPairs")
    pid = 0
    for kind, qtype in enumerate(QTYPES):
        answer = passage(condition, qtype)
        for family in _asked(split, at + kind):
            pid += 1
            pair = ET.SubElement(pairs, "QAPair", pid=str(pid))
            attributes = {"qid": f"{at:07d}-{pid}", "qtype": qtype, "split": split, "phrasing": str(family)}
            ET.SubElement(pair, "Question", attributes).text = question(condition, qtype, family)
            ET.SubElement(pair, "Answer").text = answer
    ET.indent(root, space="\t")
    text = ET.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'.encode()


def _asked(split: str, start: int) -> tuple[int, ...]:
    families = _FAMILIES[split]
    if split != "train":
        return families
    return tuple(sorted(families[(start + step) % len(families)] for step in _TRAIN_STEPS))


def _slug(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower().replace("'", "")).strip("-")
