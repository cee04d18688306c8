"""Rows of questions and answers, wherever they come from, to records."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from pyrite.errors import UserError
from pyrite.sources import files
from pyrite.sources.base import NO_ANSWER, NO_QUESTION, Document, Dropped, Question, Record


class Columns(Protocol):
    """Which column holds what. ``QaSource`` and ``HuggingfaceSource`` are of this form."""

    @property
    def question(self) -> str: ...
    @property
    def answer(self) -> str: ...
    @property
    def topic(self) -> str | None: ...
    @property
    def type(self) -> str | None: ...
    @property
    def title(self) -> str | None: ...


def to_records(
    rows: Iterable[tuple[str, str, Mapping[str, Any]]], columns: Columns, id_column: str | None
) -> Iterator[Record]:
    """Yield a Document and a Question per row. ``rows`` gives (where it stands, its number as text, its
    values).

    Raises:
        UserError: a row lacks a column or holds something that is not text in it, an id is there twice, or a
            column that the run file names is in no row.
    """
    optional = {name: column for name in ("topic", "type", "title") if (column := getattr(columns, name))}
    unseen = dict(optional)
    ids: dict[str, str] = {}
    where = ""
    row: Mapping[str, Any] = {}
    for where, number, row in rows:
        question = required(where, row, "question", columns.question)
        answer = required(where, row, "answer", columns.answer)
        extra = {name: text(where, column, row.get(column), name) for name, column in optional.items()}
        for name in [name for name, column in unseen.items() if column in row]:
            del unseen[name]
        key = required(where, row, "id", id_column) if id_column else number
        if key in ids or not key:
            problem = f"id '{key}' was used at {ids[key]} already" if key else f"column '{id_column}' is empty"
            raise UserError(f"{where}: {problem}. Ids must be unique: mend the data, or leave source.id out.")
        ids[key] = where
        if not question:
            yield Dropped(where, NO_QUESTION)
        elif not answer:
            yield Dropped(where, NO_ANSWER)
        else:
            topic, kind = extra.get("topic", ""), extra.get("type", "")
            yield Document(key, answer, title=extra.get("title", ""), topic=topic, type=kind)
            yield Question(key, question, topic=topic, type=kind, relevant={key: 1})
    for name, column in unseen.items():
        if ids:
            raise UserError(f"{where}: {_missing(column, name, row)}")


def required(where: str, row: Mapping[str, Any], setting: str, column: str) -> str:
    """The text in a column that must be there. Raises UserError as ``text`` does, and where it is not."""
    if column not in row:
        raise UserError(f"{where}: {_missing(column, setting, row)}")
    return text(where, column, row[column], setting)


def _missing(column: str, setting: str, row: Iterable[str]) -> str:
    return f"no column '{column}'. {files.suggest(column, row)} Set source.{setting} to the right one."


def text(where: str, column: str, value: Any, setting: str) -> str:
    """The text that ``column`` holds, stripped; empty for null. ``setting`` (source.<setting>) names the column.

    Raises:
        UserError: it is not text.
    """
    if value is None:
        return ""
    if setting in ("id", "topic", "type") and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise UserError(
            f"{where}: column '{column}' holds {_kind(value)}, and source.{setting} must be text. Convert it "
            f"to text, or set source.{setting} to another column."
        )
    files.check_characters(where, f"column '{column}'", value)
    return value.strip()


def _kind(value: Any) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")
