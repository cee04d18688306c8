"""A BEIR folder, or an archive of one: corpus.jsonl, queries.jsonl and qrels/{train,dev,test}.tsv."""

import csv
from collections import Counter
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from pyrite.errors import UserError
from pyrite.identity import IdSet
from pyrite.sources import archive, files
from pyrite.sources.base import NO_QUESTION, NO_TEXT, Document, Dropped, Note, Question, Record, Split
from pyrite.sources.rows import parse_jsonl
from pyrite.spec import BeirSource

NO_RELEVANT = "no relevant document"
UNKNOWN_DOCUMENT = "qrels name an unknown document"
UNKNOWN_QUERY = "qrels name an unknown query"
OTHER_SPLIT = "query is in the qrels of an earlier split"

#: A query that is in several files belongs to the first one in this order.
_SPLITS: dict[str, Split] = {
    "train.tsv": "train",
    "dev.tsv": "val",
    "val.tsv": "val",
    "valid.tsv": "val",
    "validation.tsv": "val",
    "test.tsv": "test",
}

_REQUIRED = ("corpus.jsonl", "queries.jsonl")
_QRELS = tuple(f"qrels/{name}" for name in _SPLITS)

#: If more of the qrels' lines name an unknown id, the files do not belong together, and the data set is refused.
_MAX_UNKNOWN_SHARE = 0.10


class _Query(NamedTuple):
    """A line of queries.jsonl: its location, text and topic."""

    where: str
    text: str
    topic: str


@dataclass(frozen=True, slots=True)
class _File:
    """A file: its name in messages, and its path or, in an archive, its contents."""

    where: str
    source: Path | bytes

    @property
    def name(self) -> str:
        return PurePosixPath(self.where).name

    def open(self) -> IO[bytes]:
        return self.source.open("rb") if isinstance(self.source, Path) else BytesIO(self.source)


class Beir:
    """The source ``beir``. Questions have a split only if there are several qrels files."""

    def __init__(self, spec: BeirSource, setting: str = "source.path") -> None:
        """``setting`` is the name of the setting that holds the path, for messages."""
        self._spec = spec
        self._setting = setting

    def records(self) -> Iterator[Record]:
        """Yield every document of the corpus, then every query that has a relevant document.

        A document's text is its title, if any, and its text, joined by a newline. A query's topic is its
        ``metadata.topic``, which many data sets have. A document is relevant to a query if its grade is at least
        ``source.relevance_level`` (default 1). Lower grades count as 0.

        Raises:
            UserError: a file is missing or has a line that cannot be read, or over 10% of the qrels name an unknown
                id. Names file and line.
        """
        (corpus, queries, *qrels), unknown = self._files()
        if unknown:
            known = ", ".join(_SPLITS)
            yield Note(f"qrels/: not read, because only {known} are: {', '.join(unknown)}. Rename or remove them.")
        documents = IdSet()
        for where, row in _rows(corpus):
            key = _unique_id(where, row, documents)
            documents.add(key)
            title, text = _field(where, row, "title", required=False), _field(where, row, "text")
            if title or text:
                yield Document(key, f"{title}\n{text}".strip(), title=title)
            else:
                yield Dropped(where, NO_TEXT)
        texts: dict[str, _Query] = {}
        for where, row in _rows(queries):
            metadata = row.get("metadata")
            topic = metadata.get("topic") if isinstance(metadata, dict) else None
            key = _unique_id(where, row, texts)
            texts[key] = _Query(where, _field(where, row, "text"), topic if isinstance(topic, str) else "")
        yield from _questions(texts, qrels, documents, self._spec.relevance_level)

    def digest(self) -> str:
        """Hex sha256 of the files."""
        path = files.existing(self._spec.path, self._setting)
        paths = (
            [path] if path.is_file() else [file.source for file in self._files()[0] if isinstance(file.source, Path)]
        )
        return files.digest(path, paths, self._spec.model_dump_json(exclude={"path"}))

    def _files(self) -> tuple[list[_File], list[str]]:
        """corpus.jsonl, queries.jsonl, the qrels files in the order of ``_SPLITS``; and names of other qrels files."""
        path = files.existing(self._spec.path, self._setting)
        prefix, found, unknown = _in_archive(path) if path.is_file() else _in_folder(path)
        for name in _REQUIRED:
            if name not in found:
                raise UserError(
                    f"{prefix}{name}: no such file. A BEIR folder has corpus.jsonl, queries.jsonl and qrels/. "
                    f"Correct {self._setting}."
                )
        qrels = [name for name in _QRELS if name in found]
        if not qrels:
            others = f" It has {', '.join(unknown)}: rename them." if unknown else ""
            raise UserError(f"{prefix}qrels: no {', '.join(_SPLITS)} in it. Add at least one.{others}")
        return [_File(prefix + name, found[name]) for name in (*_REQUIRED, *qrels)], unknown


def _in_folder(folder: Path) -> tuple[str, Mapping[str, Path], list[str]]:
    """The prefix of file names in messages, the files in ``folder`` by name, and names of other files in qrels/."""
    paths = {name: folder / name for name in (*_REQUIRED, *_QRELS)}
    found = {name: path for name, path in paths.items() if path.is_file()}
    unknown = [path.name for path in (folder / "qrels").glob("*") if path.is_file() and path.name not in _SPLITS]
    return f"{folder.absolute()}/", found, sorted(name for name in unknown if not files.is_hidden(name))


def _in_archive(path: Path) -> tuple[str, Mapping[str, bytes], list[str]]:
    """As ``_in_folder``, for an archive, in which the BEIR folder may be nested in other folders.

    Raises:
        UserError: the archive cannot be read, or holds several BEIR folders.
    """
    found: dict[PurePosixPath, dict[str, bytes]] = {}
    skipped: list[str] = []
    for member, content in archive.members(path, (*_REQUIRED, *_QRELS), skipped=skipped):
        file = PurePosixPath(member)
        name = file.name if file.name in _REQUIRED else f"qrels/{file.name}"
        if name in (*_REQUIRED, *_QRELS):
            found.setdefault(file.parents[name.count("/")], {})[name] = content
    if len(found) > 1:
        folders = ", ".join(sorted(map(str, found)))
        raise UserError(f"{path.absolute()}: more than one BEIR folder ({folders}). Unpack it, and name one of them.")
    folder, contents = next(iter(found.items()), (PurePosixPath(), {}))
    unknown = sorted(file.name for file in map(PurePosixPath, skipped) if file.parent == folder / "qrels")
    return f"{path.absolute()}: {'' if folder == PurePosixPath() else f'{folder}/'}", contents, unknown


def _questions(
    queries: dict[str, _Query], qrels: list[_File], documents: Container[str], level: int | None
) -> Iterator[Record]:
    """Yield the ``queries`` (by id) that have a document with at least the grade ``level``, or 1."""
    file_of: dict[str, _File] = {}
    relevant: dict[str, dict[str, int]] = {}
    reported: set[tuple[str, str]] = set()
    unknown, first_unknown = 0, ""
    grades: Counter[int] = Counter()
    for file in qrels:
        for where, query, document, grade in _read_qrels(file):
            grades[grade] += 1
            if query not in queries:
                unknown += 1
                first_unknown = first_unknown or f"{where}: query id '{query}' is not in queries.jsonl"
                yield Dropped(where, UNKNOWN_QUERY)
            elif document not in documents:
                unknown += 1
                first_unknown = first_unknown or f"{where}: document id '{document}' is not in corpus.jsonl"
                yield Dropped(where, UNKNOWN_DOCUMENT)
            elif grade < (level or 1):
                continue
            elif file_of.setdefault(query, file) != file:
                if (query, file.name) not in reported:
                    reported.add((query, file.name))
                    yield Dropped(where, OTHER_SPLIT)
            else:
                of_query = relevant.setdefault(query, {})
                of_query[document] = max(grade, of_query.get(document, 0))
    _check_ids(unknown, grades.total(), first_unknown)
    yield from _grade_notes(grades, level, bool(relevant))
    for key, found in queries.items():
        if not found.text:
            yield Dropped(found.where, NO_QUESTION)
        elif key not in relevant:
            yield Dropped(found.where, NO_RELEVANT)
        else:
            split = _SPLITS[file_of[key].name] if len(qrels) > 1 else None
            yield Question(key, found.text, topic=found.topic, relevant=relevant[key], split=split)


def _check_ids(unknown: int, total: int, first: str) -> None:
    """Raise UserError if too many of ``total`` qrels name an unknown id; ``first`` describes the first of them."""
    if unknown > _MAX_UNKNOWN_SHARE * total:
        raise UserError(
            f"{first}. {unknown:,} of the {total:,} lines in qrels/ ({unknown / total:.0%}) name an unknown id; the "
            f"limit is {_MAX_UNKNOWN_SHARE:.0%}. Check that qrels/, queries.jsonl and corpus.jsonl belong together and "
            "spell ids alike, or remove these lines."
        )


def _grade_notes(grades: Mapping[int, int], level: int | None, any_relevant: bool) -> Iterator[Note]:
    """Yield a note if there are grades above 1. ``grades``: number of qrels by grade.

    Raises:
        UserError: no grade reaches ``level``.
    """
    levels = sorted(grade for grade in grades if grade > 0)
    counts = ", ".join(f"{grades[grade]:,} of grade {grade}" for grade in levels)
    if level is None and levels and levels[-1] > 1:
        yield Note(
            f"warning: the qrels are graded ({counts}), and every grade above 0 counts as an answer. If a low grade "
            "means 'related, but no answer', set source.relevance_level to the least grade of an answer."
        )
    if level is None or not levels:
        return
    if not any_relevant and levels[-1] < level:
        raise UserError(f"source.relevance_level is {level}, but the qrels have only {counts}. Set a lower level.")
    if below := sum(grades[grade] for grade in levels if grade < level):
        yield Note(f"{below:,} qrels with a grade below source.relevance_level ({level}) count as not relevant.")


def _rows(file: _File) -> Iterator[tuple[str, dict[str, Any]]]:
    with file.open() as lines:
        for number, row in parse_jsonl(lines, file.where):
            yield f"{file.where}:{number}", row


def _unique_id(where: str, row: dict[str, Any], seen: Container[str]) -> str:
    key = _field(where, row, "_id")
    if not key:
        raise UserError(f"{where}: '_id' is empty. Give each line a unique id.")
    if key in seen:
        raise UserError(f"{where}: _id '{key}' occurs twice. Ids must be unique.")
    return key


def _field(where: str, row: dict[str, Any], name: str, required: bool = True) -> str:
    value = row.get(name)
    if value is None and not required:
        return ""
    if name == "_id" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        problem = f"no '{name}'. {files.suggest(name, row)}" if name not in row else f"'{name}' is not text."
        raise UserError(f"{where}: {problem} Lines of a BEIR folder have _id, title and text.")
    files.check_characters(where, f"'{name}'", value)
    return value.strip() if name != "_id" else value


def _read_qrels(file: _File) -> Iterator[tuple[str, str, str, int]]:
    """Yield (location, query id, document id, grade) of each line."""
    with file.open() as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{file.where}:{number}"
            try:
                fields = _split(line.decode("utf-8-sig").strip("\r\n"))
            except UnicodeDecodeError as error:
                raise UserError(f"{where}: not UTF-8. Save the file as UTF-8.") from error
            if fields == [""] or (number == 1 and fields[0] == "query-id"):
                continue
            try:
                query, document, grade = fields
                yield where, query, document, int(grade)
            except ValueError as error:
                raise UserError(
                    f"{where}: not 'query id <tab> document id <tab> whole number'. Fix or remove the line."
                ) from error


def _split(line: str) -> list[str]:
    """The fields of a tab-separated line, without the quotes that CSV writers put around fields."""
    if '"' not in line:
        return line.split("\t")
    try:
        return next(csv.reader([line], delimiter="\t", strict=True))
    except csv.Error:
        return line.split("\t")
