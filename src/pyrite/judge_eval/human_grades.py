"""Reads pairs with human grades: TREC qrels, or texts with grades in CSV, TSV or JSONL."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from pyrite.errors import UserError
from pyrite.sources.files import check_characters, suggest
from pyrite.sources.rows import read_jsonl

COLUMNS = ("query", "passage", "grade")

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_JSONL = (".jsonl", ".ndjson")
#: Enough for any passage; Python's own limit for a CSV field is 131,072 characters.
_LONGEST_FIELD = 10_000_000


class Row(NamedTuple):
    """One graded pair: its ids (qrels) or texts (other files), and its grade on the file's scale."""

    where: str
    query: str
    passage: str
    grade: int


@dataclass(frozen=True)
class GradedFile:
    """All pairs of a file, each once. ``has_texts``: rows contain texts, not ids."""

    rows: list[Row]
    has_texts: bool


class Scale(StrEnum):
    """Grading scales that can be mapped to the judge's grades."""

    BINARY = "0-1"
    FROM_ZERO = "0-3"
    FROM_ONE = "1-4"

    def to_judge(self, grade: int) -> int:
        """``grade`` on the judge's scale of 1 to 4."""
        return 1 + 3 * grade if self is Scale.BINARY else grade + (self is Scale.FROM_ZERO)

    @property
    def description(self) -> str:
        """How grades are mapped to the judge's scale."""
        return {
            Scale.BINARY: "0 and 1, read as 1 and 4",
            Scale.FROM_ZERO: "0 to 3, each read as one more",
            Scale.FROM_ONE: "1 to 4, as the judge's",
        }[self]


def read_graded(path: Path) -> GradedFile:
    """Read ``path``: CSV, TSV or JSONL by its suffix, with columns query, passage and grade; otherwise TREC qrels.

    Raises:
        UserError: the file cannot be read, a row is invalid, a pair has two grades, or there is no pair.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise UserError(f"{path}: {what}. Use TREC qrels, or CSV, TSV or JSONL with columns query, passage and grade.")
    suffix = path.suffix.lower()
    has_texts = suffix in _DELIMITERS or suffix in _JSONL
    if suffix in _DELIMITERS:
        rows = _delimited(path, _DELIMITERS[suffix])
    else:
        rows = _jsonl(path) if suffix in _JSONL else _qrels(path)
    found: dict[tuple[str, str], Row] = {}
    try:
        for row in rows:
            first = found.setdefault((row.query, row.passage), row)
            if first.grade != row.grade:
                raise UserError(
                    f"{row.where}: this pair has grade {row.grade} here and {first.grade} at {first.where}. "
                    "Remove one of the two rows."
                )
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason}). Save the file as UTF-8.") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from None
    if not found:
        raise UserError(f"{path}: no graded pair in this file.")
    return GradedFile(list(found.values()), has_texts)


def scale_of(path: Path, rows: Sequence[Row], given: Scale | None) -> Scale:
    """The scale of the grades in ``path``: the ``given`` one, or the only one that fits.

    Raises:
        UserError: a grade does not fit the given scale, or no scale fits all grades, or several do.
    """
    if given is not None:
        for row in rows:
            if not _fits(row.grade, given):
                raise UserError(f"{row.where}: grade {row.grade} is not on the scale {given} (--scale).")
        return given
    grades = sorted({row.grade for row in rows})
    fitting = [scale for scale in Scale if all(_fits(grade, scale) for grade in grades)]
    if not fitting:
        row = next(row for row in rows if not any(_fits(row.grade, s) and _fits(grades[0], s) for s in Scale))
        both = f"both grade {row.grade} and grade {grades[0]}" if row.grade != grades[0] else f"grade {row.grade}"
        raise UserError(f"{row.where}: no scale has {both}. Map the grades to 0 or 1, 0 to 3, or 1 to 4.")
    if grades[0] == 0:
        return fitting[0]  # only 0 and 1: read as binary
    if grades[-1] == 4:
        return Scale.FROM_ONE
    raise UserError(
        f"{path}: its grades are {', '.join(map(str, grades))}, which fit several scales. Choose one with --scale."
    )


def _fits(grade: int, scale: Scale) -> bool:
    low, _, high = scale.partition("-")
    return int(low) <= grade <= int(high)


def _qrels(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}:{number}"
            fields = line.split()
            if not fields:
                continue
            if len(fields) != 4:
                raise UserError(
                    f"{where}: the number of fields is {len(fields)} instead of 4. A line of TREC qrels is: query-id 0 "
                    "document-id grade. A file with texts needs the suffix .csv, .tsv or .jsonl."
                )
            yield Row(where, fields[0], fields[2], _grade(where, fields[3]))


def _delimited(path: Path, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(_LONGEST_FIELD)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        before = 0
        try:
            _check_columns(path, reader.fieldnames or [])
            before = reader.line_num
            for values in reader:
                # The first line of the row: a quoted field may contain line breaks.
                yield _row(f"{path}:{before + 1}", values)
                before = reader.line_num
        except csv.Error as error:
            raise UserError(f"{path}:{before + 1}: not {path.suffix[1:].upper()} ({error}). Fix the row.") from None


def _jsonl(path: Path) -> Iterator[Row]:
    for number, values in read_jsonl(path):
        _check_columns(Path(f"{path}:{number}"), values)
        yield _row(f"{path}:{number}", values)


def _check_columns(where: Path, names: Iterable[str]) -> None:
    names = list(names)
    for column in COLUMNS:
        if column not in names:
            raise UserError(f"{where}: no column '{column}'. {suggest(column, names)} Required: {', '.join(COLUMNS)}.")


def _row(where: str, values: dict[Any, Any]) -> Row:
    if None in values or None in values.values():
        raise UserError(f"{where}: the number of fields differs from the header's, or a field is null. Fix the row.")
    for column in ("query", "passage"):
        if not isinstance(values[column], str) or not values[column].strip():
            raise UserError(f"{where}: '{column}' is empty or not text. Fix or remove the row.")
        check_characters(where, f"'{column}'", values[column])
    return Row(where, values["query"].strip(), values["passage"].strip(), _grade(where, values["grade"]))


def _grade(where: str, text: Any) -> int:
    try:
        value = float(text)
        if value.is_integer() and not isinstance(text, bool):
            return int(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise UserError(f"{where}: grade {text!r} is not an integer. Use grades 0 or 1, 0 to 3, or 1 to 4.")
