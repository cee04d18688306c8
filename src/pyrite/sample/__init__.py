"""The built-in sample: a practice corpus of everyday medicine in MedQuAD's XML layout, generated from facts.

It lets users and tests run every stage without a download. It is not medical advice.
"""

import re
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from functools import cache

from pyrite.errors import UserError
from pyrite.sample.facts import Condition, load_families, number
from pyrite.sample.phrasing import QTYPES, passage, question

__all__ = ["FAMILIES", "SOURCE", "documents", "split_of"]

#: Name of the collection, which MedQuAD's documents have too.
SOURCE = "PRACTICE"

#: Phrasing families (0 to 11) of each split's questions. The splits share no wording.
FAMILIES: dict[str, tuple[int, ...]] = {"train": (0, 1, 2, 3, 4, 5, 6, 7), "val": (8, 9), "test": (10, 11)}
#: A training topic has questions in three of the eight families. Steps of three mix clinical and lay wording.
_TRAIN_STEPS = (0, 3, 6)


def split_of(family: str, condition: str) -> str:
    """The split of a condition: each family has one for validation, one for test, and the rest for training."""
    try:
        return _splits()[family, condition]
    except KeyError:
        raise UserError(f"built-in sample: no condition '{condition}' in family '{family}'.") from None


def documents() -> Iterator[tuple[str, bytes]]:
    """Every document as (file name, XML), in the same order and with the same bytes each time."""
    conditions = [condition for family in load_families() for condition in family]
    for index, condition in enumerate(conditions, start=1):
        yield f"{SOURCE}/{index:07d}.xml", _document(condition, index)


@cache
def _splits() -> dict[tuple[str, str], str]:
    splits: dict[tuple[str, str], str] = {}
    for members in load_families():
        family, count = members[0].family, len(members)
        # The positions vary by family, so that no split always has the last condition.
        val = number("val", family) % count
        test = (val + 1 + number("test", family) % (count - 1)) % count
        for index, condition in enumerate(members):
            splits[family, condition.name] = {val: "val", test: "test"}.get(index, "train")
    return splits


def _document(condition: Condition, index: int) -> bytes:
    split = split_of(condition.family, condition.name)
    url = f"https://example.org/practice/{_slug(condition.family)}/{_slug(condition.name)}"
    root = ET.Element("Document", id=f"{index:07d}", source=SOURCE, url=url)
    ET.SubElement(root, "Focus").text = condition.name
    synonyms = ET.SubElement(ET.SubElement(root, "FocusAnnotations"), "Synonyms")
    for name in condition.also:
        ET.SubElement(synonyms, "Synonym").text = name
    pairs = ET.SubElement(root, "QAPairs")
    pid = 0
    for offset, qtype in enumerate(QTYPES):
        answer = passage(condition, qtype)
        for family in _question_families(split, index + offset):
            pid += 1
            pair = ET.SubElement(pairs, "QAPair", pid=str(pid))
            attributes = {"qid": f"{index:07d}-{pid}", "qtype": qtype, "split": split, "phrasing": str(family)}
            ET.SubElement(pair, "Question", attributes).text = question(condition, qtype, family)
            ET.SubElement(pair, "Answer").text = answer
    ET.indent(root, space="\t")
    text = ET.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'.encode()


def _question_families(split: str, start: int) -> tuple[int, ...]:
    families = FAMILIES[split]
    if split != "train":
        return families
    return tuple(sorted(families[(start + step) % len(families)] for step in _TRAIN_STEPS))


def _slug(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower().replace("'", "")).strip("-")
