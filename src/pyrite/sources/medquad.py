"""MedQuAD's XML: as published, in a folder or an archive, and as generated for the built-in sample."""

import hashlib
import itertools
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
from pyrite.spec import MedquadSource, SampleSource

OLD_MARKUP = "file in MedQuAD's older markup"
NOT_MEDQUAD = "XML file that is not MedQuAD's"

_XML = ".xml"

#: Root element to its id attribute. One published file of the CDC collection has another root.
_ROOTS = {"Document": "id", "DiseaseFile": "fid"}


class Medquad:
    """The source ``medquad``."""

    def __init__(self, spec: MedquadSource) -> None:
        self._spec = spec

    def records(self) -> Iterator[Record]:
        """Yield a Document and a Question per answered pair. See ``parse``."""
        path = files.existing(self._spec.path)
        skipped: list[str] = []
        yield from parse(self._read(path, skipped), str(path.absolute()), self._spec.collections)
        yield from files.skipped_note(skipped, f"only {_XML} files are")

    def digest(self) -> str:
        """Hex sha256 of the archive, or of the folder's XML files, and of the collections."""
        path = files.existing(self._spec.path)
        return files.digest(path, files.find(path, _XML), self._spec.model_dump_json(exclude={"path"}))

    @staticmethod
    def _read(path: Path, skipped: list[str]) -> Iterator[tuple[str, bytes]]:
        if path.is_file() and path.suffix.lower() != _XML:
            yield from archive.members(path, _XML, skipped=skipped)
            return
        skipped += files.skipped(path, _XML)
        for file in files.find(path, _XML):
            yield file.relative_to(path).as_posix() if file != path else file.name, file.read_bytes()


class Sample:
    """The source ``sample``: the built-in practice corpus. Its files assign the splits."""

    def __init__(self, spec: SampleSource) -> None:
        self._spec = spec

    def records(self) -> Iterator[Record]:
        """Yield a Document and a Question per pair."""
        from pyrite.sample import documents

        return parse(documents(), "built-in sample")

    def digest(self) -> str:
        """Hex sha256 of all names and contents."""
        from pyrite.sample import documents

        total = hashlib.sha256()
        for name, content in documents():
            total.update(f"\0{name}\0{len(content)}\0".encode())
            total.update(content)
        return total.hexdigest()


def parse(xml: Iterable[tuple[str, bytes]], origin: str, collections: list[str] | None = None) -> Iterator[Record]:
    """Yield the records of MedQuAD files, given as (name, contents); messages call their folder ``origin``.

    Each answered pair gives a Document (id such as ``NIDDK-0000093-1``) and its Question. The document's concepts are
    the UMLS ids (CUIs) of the file. Pairs without question or answer, and other XML files, are Dropped.

    Raises:
        UserError: the XML is broken or declares entities, no file is MedQuAD's, or no file belongs to one of
            ``collections``.
    """
    selected = set(collections or ())
    found: Counter[str] = Counter()
    ids: set[str] = set()
    for name, content in xml:
        where = f"{origin}: {name}"
        root = _root(where, content)
        if root.tag not in _ROOTS:
            yield Dropped(where, OLD_MARKUP if root.tag == "doc" else NOT_MEDQUAD)
            continue
        collection = root.get("source") or "unknown"
        found[collection] += 1
        if not selected or collection in selected:
            yield from _pairs(root, collection, name, where, ids)
    if not found:
        raise UserError(f"{origin}: no MedQuAD document (an XML file whose root is <Document>). Correct source.path.")
    for missing in sorted(selected - set(found)):
        raise UserError(f"source.collections: '{missing}' is not in {origin}. {files.suggest(missing, sorted(found))}")


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
            f"{where}: refused, because it declares entities ({error}); MedQuAD's files have none. Remove the file."
        ) from error
    except (ValueError, LookupError) as error:
        raise UserError(f"{where}: broken XML ({error}). Get the file again, or remove it.") from error


def _pairs(root: Element, collection: str, name: str, where: str, ids: set[str]) -> Iterator[Record]:
    focus = clean(root.findtext("Focus") or "")
    concepts = tuple(dict.fromkeys(cui for each in root.iter("CUI") if (cui := clean(each.text or ""))))
    for number, pair in enumerate(root.iter("QAPair"), start=1):
        question, answer = pair.find("Question"), pair.find("Answer")
        qid = question.get("qid") if question is not None else None
        location = f"{where}, pair {qid or number}"
        question_text = clean(_text(question)).replace("\n", " ")
        answer_text = clean(_text(answer))
        if not question_text or question is None:
            yield Dropped(location, NO_QUESTION)
            continue
        if not answer_text:
            yield Dropped(location, NO_ANSWER)
            continue
        # Some published files share their document's id with another file.
        document = root.get(_ROOTS[root.tag]) or "0"
        fallback = f"{collection}-{Path(name).stem}-{number}"
        candidates = itertools.chain(
            [f"{collection}-{qid or f'{document}-{number}'}", fallback],
            (f"{fallback}~{count}" for count in itertools.count(2)),
        )
        key = next(candidate for candidate in candidates if candidate not in ids)
        ids.add(key)
        type_ = question.get("qtype") or ""
        yield Document(key, answer_text, title=focus, topic=focus, type=type_, concepts=concepts)
        split = _split(question, location)
        yield Question(key, question_text, topic=focus, type=type_, relevant={key: 1}, split=split)


def _split(question: Element, location: str) -> Split | None:
    value = question.get("split")
    if value not in (None, "train", "val", "test"):
        raise UserError(f"{location}: split is '{value}'. Use train, val or test, or remove it.")
    return cast(Split | None, value)


def _text(element: Element | None) -> str:
    return "" if element is None else "".join(element.itertext())


def clean(text: str) -> str:
    """``text`` with normalised whitespace: single blanks, and at most one blank line between paragraphs.

    MedQuAD puts list items on one line, each after two or more blanks and a dash. Each gets its own line.
    """
    text = re.sub(r"[^\S\n]{2,}- (?=\S)", "\n- ", text)
    text = re.sub(r"[^\S\n]+", " ", text)
    text = re.sub(r" ?\n ?", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()
