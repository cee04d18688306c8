"""A BEIR folder, or an archive of one: corpus.jsonl, queries.jsonl and qrels/{train,dev,test}.tsv."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Any

from pyrite.errors import UserError
from pyrite.sources import archive, files
from pyrite.sources.base import NO_QUESTION, NO_TEXT, Document, Dropped, Question, Record, Split
from pyrite.sources.qa import parse_jsonl
from pyrite.spec import BeirSource

NO_RELEVANT = "no relevant document"
UNKNOWN_DOCUMENT = "qrels name an unknown document"
UNKNOWN_QUERY = "qrels name an unknown query"
OTHER_SPLIT = "query is in the qrels of an earlier split"

# The order decides which file wins when a query is in several.
_SPLITS: dict[str, Split] = {"train.tsv": "train", "dev.tsv": "val", "val.tsv": "val", "test.tsv": "test"}

_NEEDED = ("corpus.jsonl", "queries.jsonl")
_QRELS = tuple(f"qrels/{name}" for name in _SPLITS)


@dataclass(frozen=True, slots=True)
class _Part:
    """One of the files: as messages call it, and where its bytes are."""

    where: str
    held: Path | bytes

    @property
    def name(self) -> str:
        return PurePosixPath(self.where).name

    def open(self) -> IO[bytes]:
        return self.held.open("rb") if isinstance(self.held, Path) else BytesIO(self.held)


class Beir:
    """The source ``beir``. With one qrels file alone, questions carry no split."""

    def __init__(self, spec: BeirSource, setting: str = "source.path") -> None:
        """``setting`` holds the path, and is named where the path is wrong."""
        self._spec = spec
        self._setting = setting

    def records(self) -> Iterator[Record]:
        """Yield every document of the corpus, then every query that has a relevant document.

        A document's text is its title, if any, and its text, joined by a newline.

        Raises:
            UserError: a file is missing or has a line that cannot be read. Names file and line.
        """
        corpus, queries, *qrels = self._parts()
        documents: set[str] = set()
        for where, row in _rows(corpus):
            key = _field(where, row, "_id")
            title, text = _field(where, row, "title", required=False), _field(where, row, "text")
            _unique(where, key, documents)
            if not (title or text):
                yield Dropped(where, NO_TEXT)
            else:
                yield Document(key, f"{title}\n{text}".strip(), title=title)
        texts: dict[str, tuple[str, str]] = {}
        for where, row in _rows(queries):
            key = _field(where, row, "_id")
            if key in texts:
                raise UserError(f"{where}: _id '{key}' is there twice. Ids must be unique.")
            texts[key] = (where, _field(where, row, "text"))
        yield from _questions(texts, qrels, documents)

    def digest(self) -> str:
        """Hex sha256 of the files that are read."""
        path = files.existing(self._spec.path, self._setting)
        held = [path] if path.is_file() else [part.held for part in self._parts() if isinstance(part.held, Path)]
        return files.digest(path, held, self._spec.model_dump_json(exclude={"path"}))

    def _parts(self) -> list[_Part]:
        """corpus.jsonl, queries.jsonl and the qrels files in the order of ``_SPLITS``."""
        path = files.existing(self._spec.path, self._setting)
        above, held = _packed(path) if path.is_file() else _lying(path)
        for name in _NEEDED:
            if name not in held:
                raise UserError(
                    f"{above}{name}: no such file. A BEIR folder has corpus.jsonl, queries.jsonl and qrels/. "
                    f"Correct {self._setting}."
                )
        qrels = [name for name in _QRELS if name in held]
        if not qrels:
            raise UserError(f"{above}qrels: no {', '.join(_SPLITS)} in it. Add at least one.")
        return [_Part(above + name, held[name]) for name in (*_NEEDED, *qrels)]


def _lying(folder: Path) -> tuple[str, Mapping[str, Path]]:
    """What stands before a file's name in messages, and the files by their names in ``folder``."""
    there = {name: folder / name for name in (*_NEEDED, *_QRELS)}
    return f"{folder.absolute()}/", {name: file for name, file in there.items() if file.is_file()}


def _packed(path: Path) -> tuple[str, Mapping[str, bytes]]:
    """As ``_lying``, of the archive ``path``, in which the folder may lie in others.

    Raises:
        UserError: it cannot be read, or holds more than one BEIR folder.
    """
    found: dict[PurePosixPath, dict[str, bytes]] = {}
    for member, content in archive.members(path, (*_NEEDED, *_QRELS)):
        place = PurePosixPath(member)
        name = place.name if place.name in _NEEDED else f"qrels/{place.name}"
        if name in (*_NEEDED, *_QRELS):
            found.setdefault(place.parents[name.count("/")], {})[name] = content
    if len(found) > 1:
        folders = ", ".join(sorted(map(str, found)))
        raise UserError(f"{path.absolute()}: more than one BEIR folder ({folders}). Unpack it, and name one of them.")
    folder, held = next(iter(found.items()), (PurePosixPath(), {}))
    return f"{path.absolute()}: {'' if folder == PurePosixPath() else f'{folder}/'}", held


def _questions(texts: dict[str, tuple[str, str]], qrels: list[_Part], documents: set[str]) -> Iterator[Record]:
    owner: dict[str, _Part] = {}
    relevant: dict[str, dict[str, int]] = {}
    refused: set[tuple[str, str]] = set()
    for file in qrels:
        for where, query, document, grade in _judged(file):
            if query not in texts:
                yield Dropped(where, UNKNOWN_QUERY)
            elif document not in documents:
                yield Dropped(where, UNKNOWN_DOCUMENT)
            elif grade <= 0:
                continue
            elif owner.setdefault(query, file) != file:
                if (query, file.name) not in refused:
                    refused.add((query, file.name))
                    yield Dropped(where, OTHER_SPLIT)
            else:
                graded = relevant.setdefault(query, {})
                graded[document] = max(grade, graded.get(document, 0))
    for query, (where, text) in texts.items():
        if not text:
            yield Dropped(where, NO_QUESTION)
        elif query not in relevant:
            yield Dropped(where, NO_RELEVANT)
        else:
            split = _SPLITS[owner[query].name] if len(qrels) > 1 else None
            yield Question(query, text, relevant=relevant[query], split=split)


def _rows(part: _Part) -> Iterator[tuple[str, dict[str, Any]]]:
    with part.open() as lines:
        for number, row in parse_jsonl(lines, part.where):
            yield f"{part.where}:{number}", row


def _field(where: str, row: dict[str, Any], name: str, required: bool = True) -> str:
    value = row.get(name)
    if value is None and not required:
        return ""
    if name == "_id" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        problem = f"no '{name}'. {files.suggest(name, row)}" if name not in row else f"'{name}' is not text."
        raise UserError(f"{where}: {problem} BEIR's own lines have _id, title and text.")
    files.check_characters(where, f"'{name}'", value)
    if name == "_id" and not value:
        raise UserError(f"{where}: '_id' is empty. Give each line an id of its own.")
    return value.strip() if name != "_id" else value


def _unique(where: str, key: str, seen: set[str]) -> None:
    if key in seen:
        raise UserError(f"{where}: _id '{key}' is there twice. Ids must be unique.")
    seen.add(key)


def _judged(part: _Part) -> Iterator[tuple[str, str, str, int]]:
    """Yield (where, query id, document id, grade) of each line of a qrels file."""
    with part.open() as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{part.where}:{number}"
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
                    f"{where}: not 'query id <tab> document id <tab> whole number'. Mend or remove the line."
                ) from error
