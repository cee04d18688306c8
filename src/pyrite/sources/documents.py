"""Documents without questions: text files, or rows of a JSONL or Parquet file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyrite.errors import UserError
from pyrite.sources import files
from pyrite.sources.base import Document, Record
from pyrite.sources.qa import read_jsonl, read_parquet
from pyrite.sources.rows import required, text
from pyrite.spec import DocumentsSource

_TEXT = (".txt", ".md")
_JSONL = (".jsonl", ".ndjson")
_PARQUET = (".parquet",)


class Documents:
    """The source ``documents``: yields no question."""

    def __init__(self, spec: DocumentsSource) -> None:
        self._spec = spec

    def records(self) -> Iterator[Record]:
        """Yield a Document for each text file, or for each row.

        Raises:
            UserError: the file is of another kind, a text is not UTF-8, a row lacks a column or holds something that
                is not text in it, or an id is there twice. Names the file and the line or row.
        """
        path = files.existing(self._spec.path)
        suffix = path.suffix.lower()
        if path.is_dir() or suffix in _TEXT:
            yield from self._files(path)
        elif suffix in _JSONL:
            yield from self._rows(path, read_jsonl(path))
        elif suffix in _PARQUET:
            yield from self._rows(path, read_parquet(path, self._columns()))
        else:
            raise UserError(
                f"{path.absolute()}: not a kind of file that documents are read from. Set source.path to a folder of "
                f"{' and '.join(_TEXT)} files, or to a {', '.join((*_JSONL, *_PARQUET))} file."
            )

    def digest(self) -> str:
        """Hex sha256 of the files and of the columns that are read."""
        path = files.existing(self._spec.path)
        return files.digest(path, files.find(path, *_TEXT), self._spec.model_dump_json(exclude={"path"}))

    def _files(self, path: Path) -> Iterator[Document]:
        for file in files.find(path, *_TEXT):
            name = file.relative_to(path).as_posix() if file != path else file.name
            try:
                yield Document(name, file.read_text(encoding="utf-8-sig").strip(), title=file.stem)
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{file.absolute()}: not UTF-8 (byte {error.start}). Save the file as UTF-8."
                ) from error

    def _rows(self, path: Path, read: Iterator[tuple[int, dict[str, Any]]]) -> Iterator[Document]:
        spec, seen = self._spec, set[str]()
        optional = {name: column for name, column in self._columns().items() if name in ("title", "topic")}
        unseen = dict(optional)
        where, row = "", dict[str, Any]()
        for number, row in read:
            where = f"{path.absolute()}:{number}"
            body = required(where, row, "text", spec.text)
            extra = {name: text(where, column, row.get(column), name) for name, column in optional.items()}
            unseen = {name: column for name, column in unseen.items() if column not in row}
            key = required(where, row, "id", spec.id) if spec.id else str(number)
            if not key or key in seen:
                problem = f"id '{key}' is there twice" if key else f"column '{spec.id}' is empty"
                raise UserError(f"{where}: {problem}. Ids must be unique: mend the data, or leave source.id out.")
            seen.add(key)
            yield Document(key, body, **extra)
        for name, column in unseen.items() if seen else ():
            required(where, row, name, column)  # a column that no row has: misspelt

    def _columns(self) -> dict[str, str]:
        """Setting to column, for the columns that the run file names."""
        names = ("text", "title", "topic", "id")
        return {name: column for name in names if (column := getattr(self._spec, name))}
