"""Questions with their answers, one pair per row of JSONL, CSV or Parquet files."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pyrite.sources import files, rows
from pyrite.sources.base import NO_ANSWER, NO_QUESTION, Document, Dropped, Question, Record
from pyrite.spec import HuggingfaceSource, QaSource


class Qa:
    """The sources ``jsonl``, ``csv`` and ``parquet``: a file, or a folder of files."""

    def __init__(self, spec: QaSource) -> None:
        self._spec = spec
        self._suffixes = rows.SUFFIXES[spec.kind]

    def records(self) -> Iterator[Record]:
        """Yield a Document and a Question per row.

        Raises:
            UserError: a file or a row cannot be read. Names the file and line or row.
        """
        path = files.existing(self._spec.path)
        yield from files.skipped_note(files.skipped(path, *self._suffixes), f"source.kind is {self._spec.kind}")
        yield from to_records(lambda: self._rows(path), self._spec, self._spec.id)

    def digest(self) -> str:
        """Hex sha256 of the files and of the source's settings."""
        path = files.existing(self._spec.path)
        return files.digest(path, files.find(path, *self._suffixes), self._spec.model_dump_json(exclude={"path"}))

    def _rows(self, path: Path) -> Iterator[rows.Row]:
        columns = rows.columns_of(self._spec, "question", "answer", "id", "topic", "type", "title")
        for file in files.find(path, *self._suffixes):
            prefix = f"{file.relative_to(path).as_posix()}:" if file != path else ""
            for number, row in rows.read(file, self._spec.kind, columns):
                yield f"{file.absolute()}:{number}", f"{prefix}{number}", row


def to_records(
    read: Callable[[], Iterable[rows.Row]], spec: QaSource | HuggingfaceSource, id_column: str | None
) -> Iterator[Record]:
    """Yield a Document and a Question per row that ``read`` returns; ``spec`` names the columns.

    Raises:
        UserError: as ``rows.texts``.
    """
    required = {"question": spec.question, "answer": spec.answer}
    optional = rows.columns_of(spec, "topic", "type", "title")
    for where, key, text in rows.texts(read, required, optional, id_column):
        if not text["question"]:
            yield Dropped(where, NO_QUESTION)
        elif not text["answer"]:
            yield Dropped(where, NO_ANSWER)
        else:
            title, topic, type_ = (text.get(name, "") for name in ("title", "topic", "type"))
            yield Document(key, text["answer"], title=title, topic=topic, type=type_)
            yield Question(key, text["question"], topic=topic, type=type_, relevant={key: 1})
