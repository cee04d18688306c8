"""A BEIR folder, or an archive of one: corpus.jsonl, queries.jsonl and qrels/{train,dev,test}.tsv."""

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Any

from pyrite.errors import UserError
from pyrite.sources import archive, files
from pyrite.sources.base import NO_QUESTION, NO_TEXT, Document, Dropped, Question, Record, Split
from pyrite.sources.rows import parse_jsonl
from pyrite.spec import BeirSource

NO_RELEVANT = "no relevant document"
UNKNOWN_DOCUMENT = "qrels name an unknown document"
UNKNOWN_QUERY = "qrels name an unknown query"
OTHER_SPLIT = "query is in the qrels of an earlier split"

#: A query that is in several files belongs to the first one in this order.
_SPLITS: dict[str, Split] = {"train.tsv": "train", "dev.tsv": "val", "val.tsv": "val", "test.tsv": "test"}

_REQUIRED = ("corpus.jsonl", "queries.jsonl")
_QRELS = tuple(f"qrels/{name}" for name in _SPLITS)


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

        A document's text is its title, if any, and its text, joined by a newline.

        Raises:
            UserError: a file is missing or has a line that cannot be read. Names file and line.
        """
        corpus, queries, *qrels = self._files()
        documents: set[str] = set()
        for where, row in _rows(corpus):
            key = _unique_id(where, row, documents)
            documents.add(key)
            title, text = _field(where, row, "title", required=False), _field(where, row, "text")
            if title or text:
                yield Document(key, f"{title}\n{text}".strip(), title=title)
            else:
                yield Dropped(where, NO_TEXT)
        texts: dict[str, tuple[str, str]] = {}
        for where, row in _rows(queries):
            texts[_unique_id(where, row, texts)] = (where, _field(where, row, "text"))
        yield from _questions(texts, qrels, documents)

    def digest(self) -> str:
        """Hex sha256 of the files."""
        path = files.existing(self._spec.path, self._setting)
        paths = [path] if path.is_file() else [file.source for file in self._files() if isinstance(file.source, Path)]
        return files.digest(path, paths, self._spec.model_dump_json(exclude={"path"}))

    def _files(self) -> list[_File]:
        """corpus.jsonl, queries.jsonl, and the qrels files in the order of ``_SPLITS``."""
        path = files.existing(self._spec.path, self._setting)
        prefix, found = _in_archive(path) if path.is_file() else _in_folder(path)
        for name in _REQUIRED:
            if name not in found:
                raise UserError(
                    f"{prefix}{name}: no such file. A BEIR folder has corpus.jsonl, queries.jsonl and qrels/. "
                    f"Correct {self._setting}."
                )
        qrels = [name for name in _QRELS if name in found]
        if not qrels:
            raise UserError(f"{prefix}qrels: no {', '.join(_SPLITS)} in it. Add at least one.")
        return [_File(prefix + name, found[name]) for name in (*_REQUIRED, *qrels)]


def _in_folder(folder: Path) -> tuple[str, Mapping[str, Path]]:
    """The prefix of file names in messages, and the files in ``folder`` by name."""
    paths = {name: folder / name for name in (*_REQUIRED, *_QRELS)}
    return f"{folder.absolute()}/", {name: path for name, path in paths.items() if path.is_file()}


def _in_archive(path: Path) -> tuple[str, Mapping[str, bytes]]:
    """As ``_in_folder``, for an archive, in which the BEIR folder may be nested in other folders.

    Raises:
        UserError: the archive cannot be read, or holds several BEIR folders.
    """
    found: dict[PurePosixPath, dict[str, bytes]] = {}
    for member, content in archive.members(path, (*_REQUIRED, *_QRELS)):
        file = PurePosixPath(member)
        name = file.name if file.name in _REQUIRED else f"qrels/{file.name}"
        if name in (*_REQUIRED, *_QRELS):
            found.setdefault(file.parents[name.count("/")], {})[name] = content
    if len(found) > 1:
        folders = ", ".join(sorted(map(str, found)))
        raise UserError(f"{path.absolute()}: more than one BEIR folder ({folders}). Unpack it, and name one of them.")
    folder, contents = next(iter(found.items()), (PurePosixPath(), {}))
    return f"{path.absolute()}: {'' if folder == PurePosixPath() else f'{folder}/'}", contents


def _questions(texts: dict[str, tuple[str, str]], qrels: list[_File], documents: set[str]) -> Iterator[Record]:
    """Yield the queries (id to location and text) that have a relevant document."""
    file_of: dict[str, _File] = {}
    relevant: dict[str, dict[str, int]] = {}
    reported: set[tuple[str, str]] = set()
    for file in qrels:
        for where, query, document, grade in _read_qrels(file):
            if query not in texts:
                yield Dropped(where, UNKNOWN_QUERY)
            elif document not in documents:
                yield Dropped(where, UNKNOWN_DOCUMENT)
            elif grade <= 0:
                continue
            elif file_of.setdefault(query, file) != file:
                if (query, file.name) not in reported:
                    reported.add((query, file.name))
                    yield Dropped(where, OTHER_SPLIT)
            else:
                grades = relevant.setdefault(query, {})
                grades[document] = max(grade, grades.get(document, 0))
    for query, (where, text) in texts.items():
        if not text:
            yield Dropped(where, NO_QUESTION)
        elif query not in relevant:
            yield Dropped(where, NO_RELEVANT)
        else:
            split = _SPLITS[file_of[query].name] if len(qrels) > 1 else None
            yield Question(query, text, relevant=relevant[query], split=split)


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
                fields = line.decode("utf-8-sig").strip("\r\n").split("\t")
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
