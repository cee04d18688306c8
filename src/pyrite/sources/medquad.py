"""MedQuAD: XML documents of questions and answers, in a folder or an archive as published."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast
from xml.etree.ElementTree import Element, ParseError

import defusedxml.ElementTree as SafeXml
from defusedxml.common import DefusedXmlException

from pyrite.errors import UserError
from pyrite.sources import archive, files
from pyrite.sources.base import NO_ANSWER, NO_QUESTION, Document, Dropped, Question, Record, Split
from pyrite.spec import MedquadSource

OLD_MARKUP = "file in MedQuAD's older markup"
NOT_MEDQUAD = "XML file that is not MedQuAD's"

# One published file of the CDC collection calls its root DiseaseFile and its id fid.
_ROOTS = {"Document": "id", "DiseaseFile": "fid"}


class Medquad:
    """The source ``medquad``."""

    def __init__(self, spec: MedquadSource) -> None:
        self._spec = spec

    def records(self) -> Iterator[Record]:
        """Yield a Document and a Question per answered pair. See ``parse``."""
        path = files.existing(self._spec.path)
        return parse(self._xml(path), str(path.absolute()), self._spec.collections)

    def digest(self) -> str:
        """Hex sha256 of the archive, or of the folder's XML files, and of the collections."""
        path = files.existing(self._spec.path)
        return files.digest(path, files.find(path, ".xml"), self._spec.model_dump_json(exclude={"path"}))

    @staticmethod
    def _xml(path: Path) -> Iterator[tuple[str, bytes]]:
        if path.is_file() and path.suffix.lower() != ".xml":
            yield from archive.members(path, ".xml")
            return
        for file in files.find(path, ".xml"):
            yield file.relative_to(path).as_posix() if file != path else file.name, file.read_bytes()


def parse(xml: Iterable[tuple[str, bytes]], origin: str, collections: list[str] | None = None) -> Iterator[Record]:
    """Yield the records of MedQuAD files, given as (name, contents); ``origin`` names them in messages.

    Each answered pair gives a Document (id such as ``NIDDK-0000093-1``) and the Question that it answers.
    Pairs without question or answer are Dropped; so is XML of another kind.

    Raises:
        UserError: broken XML, XML with entities, no MedQuAD file at all, or a name in ``collections`` that no
            file has.
    """
    kept = set(collections or ())
    sources: Counter[str] = Counter()
    ids: set[str] = set()
    for name, content in xml:
        where = f"{origin}: {name}"
        root = _root(where, content)
        if root.tag not in _ROOTS:
            yield Dropped(where, OLD_MARKUP if root.tag == "doc" else NOT_MEDQUAD)
            continue
        source = root.get("source") or "unknown"
        sources[source] += 1
        if not kept or source in kept:
            yield from _pairs(root, source, name, where, ids)
    if not sources:
        raise UserError(f"{origin}: no MedQuAD document (an XML file whose root is <Document>). Correct source.path.")
    for missing in sorted(kept - set(sources)):
        raise UserError(
            f"source.collections: '{missing}' is not in {origin}. {files.suggest(missing, sorted(sources))}"
        )


def _root(where: str, content: bytes) -> Element:
    try:
        return SafeXml.fromstring(content)
    except ParseError as error:
        line, column = cast(tuple[int, int], cast(Any, error).position)
        raise UserError(
            f"{where}, line {line}: broken XML ({str(error).split(':')[0]}, column {column + 1}). The file "
            "is damaged or cut short: get it again, or remove it."
        ) from error
    except DefusedXmlException as error:
        raise UserError(
            f"{where}: refused, because it declares entities ({error}); MedQuAD's own files have none. Remove the file."
        ) from error
    except (ValueError, LookupError) as error:
        raise UserError(f"{where}: broken XML ({error}). Get the file again, or remove it.") from error


def _pairs(root: Element, source: str, name: str, where: str, ids: set[str]) -> Iterator[Record]:
    focus = clean(root.findtext("Focus") or "")
    for number, pair in enumerate(root.iter("QAPair"), start=1):
        question, answer = pair.find("Question"), pair.find("Answer")
        own = question.get("qid") if question is not None else None
        place = f"{where}, pair {own or number}"
        asked = clean(_text(question)).replace("\n", " ")
        answered = clean(_text(answer))
        if not asked or question is None:
            yield Dropped(place, NO_QUESTION)
            continue
        if not answered:
            yield Dropped(place, NO_ANSWER)
            continue
        document = _root_id(root)
        # Some published files share their document's id with another file.
        wanted = f"{source}-{own or f'{document}-{number}'}"
        key = next(k for k in _candidates(wanted, f"{source}-{Path(name).stem}-{number}") if k not in ids)
        ids.add(key)
        kind = question.get("qtype") or ""
        yield Document(key, answered, title=focus, topic=focus, type=kind)
        yield Question(key, asked, topic=focus, type=kind, relevant={key: 1}, split=_split(question, place))


def _root_id(root: Element) -> str:
    return root.get(_ROOTS[root.tag]) or "0"


def _candidates(first: str, second: str) -> Iterator[str]:
    yield first
    yield second
    number = 2
    while True:
        yield f"{second}~{number}"
        number += 1


def _split(question: Element, place: str) -> Split | None:
    value = question.get("split")
    if value not in (None, "train", "val", "test"):
        raise UserError(f"{place}: split is '{value}'. Use train, val or test, or leave it out.")
    return cast(Split | None, value)


def _text(element: Element | None) -> str:
    return "" if element is None else "".join(element.itertext())


def clean(text: str) -> str:
    """``text`` with each run of blanks as one, and paragraph breaks kept: a blank line as one blank line.

    MedQuAD writes list items on one line, each after two or more blanks and a dash; each gets its own line
    back.
    """
    text = re.sub(r"[^\S\n]{2,}- (?=\S)", "\n- ", text)
    text = re.sub(r"[^\S\n]+", " ", text)
    text = re.sub(r" ?\n ?", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()
