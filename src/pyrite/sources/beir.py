"""A BEIR folder: corpus.jsonl, queries.jsonl and qrels/{train,dev,test}.tsv."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyrite.errors import UserError
from pyrite.sources import files
from pyrite.sources.base import Document, Dropped, Question, Record, Split
from pyrite.sources.qa import read_jsonl
from pyrite.spec import BeirSource

NO_TEXT = "document without text"
NO_QUESTION = "empty question"
NO_RELEVANT = "no relevant document"
UNKNOWN_DOCUMENT = "qrels name an unknown document"
UNKNOWN_QUERY = "qrels name an unknown query"
OTHER_SPLIT = "query is in the qrels of an earlier split"

# The order decides which file wins when a query is in several.
_SPLITS: dict[str, Split] = {"train.tsv": "train", "dev.tsv": "val", "val.tsv": "val", "test.tsv": "test"}


class Beir:
    """The source ``beir``. With one qrels file alone, questions carry no split."""

    def __init__(self, spec: BeirSource) -> None:
        self._spec = spec

    def records(self) -> Iterator[Record]:
        """Yield every document of the corpus, then every query that has a relevant document.

        A document's text is its title, if any, and its text, joined by a newline.

        Raises:
            UserError: a file is missing or has a line that cannot be read. Names file and line.
        """
        corpus, queries, *qrels = self._files()
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
        return files.digest(
            files.existing(self._spec.path), self._files(), self._spec.model_dump_json(exclude={"path"})
        )

    def _files(self) -> list[Path]:
        """corpus.jsonl, queries.jsonl and the qrels files in the order of ``_SPLITS``."""
        folder = files.existing(self._spec.path)
        needed = [folder / "corpus.jsonl", folder / "queries.jsonl"]
        for file in needed:
            if not file.is_file():
                raise UserError(
                    f"{file.absolute()}: no such file. A BEIR folder has corpus.jsonl, queries.jsonl and qrels/."
                )
        qrels = [folder / "qrels" / name for name in _SPLITS if (folder / "qrels" / name).is_file()]
        if not qrels:
            raise UserError(f"{(folder / 'qrels').absolute()}: no {', '.join(_SPLITS)} in it. Add at least one.")
        return needed + qrels


def _questions(texts: dict[str, tuple[str, str]], qrels: list[Path], documents: set[str]) -> Iterator[Record]:
    owner: dict[str, Path] = {}
    relevant: dict[str, dict[str, int]] = {}
    refused: set[tuple[str, Path]] = set()
    for file in qrels:
        for where, query, document, grade in _judged(file):
            if query not in texts:
                yield Dropped(where, UNKNOWN_QUERY)
            elif document not in documents:
                yield Dropped(where, UNKNOWN_DOCUMENT)
            elif grade <= 0:
                continue
            elif owner.setdefault(query, file) != file:
                if (query, file) not in refused:
                    refused.add((query, file))
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


def _rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, row in read_jsonl(file):
        yield f"{file.absolute()}:{number}", row


def _field(where: str, row: dict[str, Any], name: str, required: bool = True) -> str:
    value = row.get(name)
    if value is None and not required:
        return ""
    if name == "_id" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        problem = f"no '{name}'. {files.suggest(name, row)}" if name not in row else f"'{name}' is not text."
        raise UserError(f"{where}: {problem} BEIR's own lines have _id, title and text.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: '{name}' holds half a character ({error.reason}). Mend the text.") from error
    if name == "_id" and not value:
        raise UserError(f"{where}: '_id' is empty. Give each line an id of its own.")
    return value.strip() if name != "_id" else value


def _unique(where: str, key: str, seen: set[str]) -> None:
    if key in seen:
        raise UserError(f"{where}: _id '{key}' is there twice. Ids must be unique.")
    seen.add(key)


def _judged(file: Path) -> Iterator[tuple[str, str, str, int]]:
    """Yield (where, query id, document id, grade) of each line of a qrels file."""
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            where = f"{file.absolute()}:{number}"
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
