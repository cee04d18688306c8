"""Documents without questions: text files, or rows of a JSONL or Parquet file."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pyrite.errors import UserError
from pyrite.sources import files, markdown, rows
from pyrite.sources.base import Document, Record
from pyrite.spec import DocumentsSource

_MARKDOWN = ".md"
_TEXT = (".txt", _MARKDOWN)


class Documents:
    """The source ``documents``. It yields no questions."""

    def __init__(self, spec: DocumentsSource) -> None:
        self._spec = spec
        self._columns = rows.columns_of(spec, "text", "title", "topic", "id")

    def records(self) -> Iterator[Record]:
        """Yield a Document for each text file, or for each row.

        Raises:
            UserError: the file format is not supported, or a file or row cannot be read. Names the file and the line
                or row.
        """
        path = files.existing(self._spec.path)
        suffix = path.suffix.lower()
        if path.is_dir() or suffix in _TEXT:
            yield from files.skipped_note(
                files.skipped(path, *_TEXT), f"only {' and '.join(_TEXT)} files are read in a folder"
            )
            yield from self._read_files(path)
        elif path.name.lower().endswith(rows.JSONL):
            yield from self._read_rows(path, lambda: rows.read_jsonl(path))
        elif suffix in rows.PARQUET:
            yield from self._read_rows(path, lambda: rows.read_parquet(path, self._columns))
        else:
            raise UserError(
                f"{path.absolute()}: not a supported file format. Set source.path to a folder of "
                f"{' and '.join(_TEXT)} files, or to a {', '.join((*rows.JSONL, *rows.PARQUET))} file."
            )

    def digest(self) -> str:
        """Hex sha256 of the files and of the source's settings."""
        path = files.existing(self._spec.path)
        return files.digest(path, files.find(path, *_TEXT), self._spec.model_dump_json(exclude={"path"}))

    def _read_files(self, path: Path) -> Iterator[Document]:
        for file in files.find(path, *_TEXT):
            name = file.relative_to(path).as_posix() if file != path else file.name
            try:
                text = file.read_text(encoding="utf-8-sig")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{file.absolute()}: not UTF-8 (byte {error.start}). Save the file as UTF-8."
                ) from error
            text = text.strip()
            headings = markdown.headings(text) if file.suffix.lower() == _MARKDOWN else ()
            yield Document(name, text, title=headings[0][1] if headings else file.stem, headings=headings)

    def _read_rows(self, path: Path, read: Callable[[], Iterator[tuple[int, dict[str, Any]]]]) -> Iterator[Document]:
        def located() -> Iterator[rows.Row]:
            return ((f"{path.absolute()}:{number}", str(number), row) for number, row in read())

        optional = rows.columns_of(self._spec, "title", "topic")
        for _, key, text in rows.texts(located, {"text": self._spec.text}, optional, self._spec.id):
            yield Document(key, text["text"], title=text.get("title", ""), topic=text.get("topic", ""))
