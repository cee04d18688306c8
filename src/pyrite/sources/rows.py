"""Rows of JSONL, CSV and Parquet files, and the text in their columns."""

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pyrite.errors import UserError
from pyrite.identity import IdSet
from pyrite.sources import files

JSONL = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
CSV = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
PARQUET = (".parquet",)

#: The suffixes of files with rows, by format.
SUFFIXES = {"jsonl": JSONL, "csv": CSV, "parquet": PARQUET}

#: The delimiters of a .csv file, in the order in which they are tried. A .tsv file has tabs.
_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}

#: Limit on the characters of a value. A quotation mark that is not closed makes the rest of the file one value.
_MAX_VALUE = 16 << 20

#: Limit on the characters of a CSV header.
_MAX_HEADER = 1 << 16

#: A row: its location for messages, its number as text (the id of rows without an id column), and its values.
Row = tuple[str, str, Mapping[str, Any]]


def read(file: Path, format_name: str, columns: Mapping[str, str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line or row number from 1, values by column) of each row. ``format_name`` is a key of ``SUFFIXES``.

    Raises:
        UserError: as ``read_jsonl``, ``read_csv`` and ``read_parquet``.
    """
    if format_name == "jsonl":
        return read_jsonl(file)
    return read_csv(file, columns) if format_name == "csv" else read_parquet(file, columns)


def read_jsonl(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) of each line that is not blank. The file may be compressed with gzip.

    Raises:
        UserError: the compressed file is damaged, or a line is not UTF-8, not JSON, or not an object. Names the file
            and line.
    """
    with _decompressed(file) as lines:
        yield from parse_jsonl(lines, str(file.absolute()))


def parse_jsonl(lines: Iterable[bytes], name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """As ``read_jsonl``, from the ``lines`` of a file; messages call the file ``name``."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            raise UserError(
                f"{where}: not UTF-8 (byte {error.start + 1} of the line is 0x{line[error.start]:02x}). "
                "Save the file as UTF-8."
            ) from error
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{where}: not JSON ({error}). A JSONL file holds one JSON object per line: fix or remove the line."
            ) from error
        if not isinstance(value, dict):
            raise UserError(
                f'{where}: JSON, but not an object. Each line must look like {{"question": "...", "answer": "..."}}.'
            )
        yield number, value


def read_csv(file: Path, columns: Mapping[str, str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number of its first line, values by column) of each row that is not blank. The first row is the header.

    The file may be compressed with gzip. It is UTF-8, or UTF-16 with a byte order mark. A .tsv file has tabs between
    values. Any other file has the first of comma, semicolon and tab with which its header has all ``columns`` (setting
    to column).

    Raises:
        UserError: the compressed file is damaged, the text has another encoding, a column is missing or occurs twice,
            or a row has more or fewer values than the header. Names the file and line.
    """
    where = file.absolute()
    tabs = file.name.lower().removesuffix(".gz").endswith(".tsv")
    encoding = _csv_encoding(file)
    csv.field_size_limit(_MAX_VALUE)
    try:
        with _decompressed(file) as stream, io.TextIOWrapper(stream, encoding=encoding, newline="") as text:
            delimiter, head = _header(text, "\t" if tabs else "".join(_DELIMITERS), columns, str(where))
            yield from _csv_rows(text, delimiter, head, str(where))
    except UnicodeError as error:
        line = f":{_first_undecodable_line(file)}" if encoding == "utf-8-sig" else ""
        reason = error.reason if isinstance(error, UnicodeDecodeError) else error
        raise UserError(
            f"{where}{line}: not {encoding.removesuffix('-sig').upper()} ({reason}). Save the file as UTF-8; in Excel, "
            "the format is 'CSV UTF-8'."
        ) from error


def _csv_encoding(file: Path) -> str:
    with _decompressed(file) as stream:
        start = stream.read(2)
    return "utf-16" if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _header(text: IO[str], delimiters: str, columns: Mapping[str, str], where: str) -> tuple[str, list[str]]:
    """The delimiter of the file and the columns in its first row.

    Raises:
        UserError: a column is missing or occurs twice, or the first line is not a header.
    """
    line = text.readline(_MAX_HEADER)
    heads = {delimiter: _values(line, delimiter) for delimiter in delimiters}
    if len(line) == _MAX_HEADER or (line.strip() and not any(heads.values())):
        raise UserError(
            f"{where}:1: not a CSV header. Write the names of the columns into the first line, without line breaks in "
            "them, and close each quotation mark."
        )
    fits = [delimiter for delimiter, head in heads.items() if set(columns.values()) <= set(head)]
    # Without a fit, the message shows the columns by the delimiter that gives most.
    delimiter = fits[0] if fits else max(heads, key=lambda each: len(heads[each]))
    head = heads[delimiter]
    for setting, column in columns.items():
        if column not in head:
            tried = ", ".join(_DELIMITERS[each] for each in delimiters)
            raise UserError(f"{where}:1: {_no_column(setting, column, head)} The first line is the header ({tried}).")
    if twice := [column for column in columns.values() if head.count(column) > 1]:
        raise UserError(f"{where}:1: column '{twice[0]}' occurs twice in the header. Rename one of them.")
    return delimiter, head


def _values(line: str, delimiter: str) -> list[str]:
    """The values in a line; none if it is not a CSV row with this delimiter."""
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True), [])
    except csv.Error:
        return []


def _csv_rows(text: IO[str], delimiter: str, head: list[str], where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    first = 2
    try:
        for values in reader:
            if values and len(values) != len(head):
                raise UserError(
                    f"{where}:{first}: number of values {len(values)}, but the header has {len(head)} columns. Put "
                    f"quotation marks around values that contain a {_DELIMITERS[delimiter]} or a line break, and write "
                    "a quotation mark in them twice."
                )
            if values:
                yield first, dict(zip(head, values, strict=True))
            first = reader.line_num + 2  # The header is the first line.
    except csv.Error as error:
        raise UserError(
            f'{where}:{first}: not a CSV row ({error}). Close each quotation mark, and write " in a value as "".'
        ) from error


def _first_undecodable_line(file: Path) -> int:
    with _decompressed(file) as stream:
        for number, line in enumerate(stream, start=1):
            try:
                line.decode("utf-8-sig")
            except UnicodeDecodeError:
                return number
    return 1


@contextmanager
def _decompressed(file: Path) -> Iterator[IO[bytes]]:
    """The bytes of ``file``, decompressed if they are in gzip's format.

    Raises:
        UserError: the compressed file is damaged, also while its bytes are read in the ``with`` block.
    """
    with file.open("rb") as stream:
        if not stream.peek(2).startswith(b"\x1f\x8b"):
            yield stream
            return
        try:
            with gzip.open(stream) as content:
                yield cast(IO[bytes], content)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(
                f"{file.absolute()}: damaged gzip file ({error}). Get it again, or compress it again."
            ) from error


def read_parquet(file: Path, columns: Mapping[str, str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (row number from 1, values) of the ``columns`` (setting to column).

    Raises:
        UserError: the file is not Parquet, a column is missing, or text in it is not UTF-8. Names the file.
    """
    where = file.absolute()
    number = 0
    try:
        with pq.ParquetFile(file) as parquet:
            names = parquet.schema_arrow.names
            for setting, column in columns.items():
                if column not in names:
                    raise UserError(f"{where}: {_no_column(setting, column, names)}")
            for batch in parquet.iter_batches(batch_size=4096, columns=sorted(set(columns.values()))):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: text after row {number} is not UTF-8. Write the file again as UTF-8.") from error
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{where}: not a readable Parquet file ({error}). If it has another format, correct source.kind; otherwise "
            "write the file again."
        ) from error


def columns_of(spec: object, *settings: str) -> dict[str, str]:
    """Setting to column, for those of ``settings`` that the run file sets."""
    return {setting: column for setting in settings if (column := getattr(spec, setting))}


def texts(
    read: Callable[[], Iterable[Row]], required: Mapping[str, str], optional: Mapping[str, str], id_column: str | None
) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield (location, id, setting to text) of each row. ``required`` and ``optional`` map settings to columns.

    Args:
        read: returns the rows. If an id is not unique, they are read again to find its first location, because all
            locations would take too much memory.

    Raises:
        UserError: a row lacks a required column, a value is not text, an id is empty or not unique, or no row has an
            optional column.
    """
    unseen = dict(optional)
    ids = IdSet()
    where = ""
    row: Mapping[str, Any] = {}
    for where, number, row in read():
        values = {setting: _required_text(where, row, setting, column) for setting, column in required.items()}
        values |= {setting: _text(where, setting, column, row.get(column)) for setting, column in optional.items()}
        unseen = {setting: column for setting, column in unseen.items() if column not in row}
        key = _required_text(where, row, "id", id_column) if id_column else number
        if id_column and not (key and ids.add(key)):
            problem = f"column '{id_column}' is empty"
            if key:
                earlier = (place for place, _, other in read() if _required_text(place, other, "id", id_column) == key)
                problem = f"id '{key}' is already at {next(earlier)}"
            raise UserError(f"{where}: {problem}. Ids must be unique: fix the data, or remove source.id.")
        yield where, key, values
    if where:
        for setting, column in unseen.items():
            _required_text(where, row, setting, column)


def _required_text(where: str, row: Mapping[str, Any], setting: str, column: str) -> str:
    if column not in row:
        raise UserError(f"{where}: {_no_column(setting, column, row)}")
    return _text(where, setting, column, row[column])


def _no_column(setting: str, column: str, names: Iterable[str]) -> str:
    return f"no column '{column}'. {files.suggest(column, names)} Set source.{setting} to the right one."


def _text(where: str, setting: str, column: str, value: Any) -> str:
    """``value`` as stripped text; empty for null. Ids, topics and types may be integers."""
    if value is None:
        return ""
    if setting in ("id", "topic", "type") and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        names = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
        raise UserError(
            f"{where}: column '{column}' holds {names.get(type(value), f'a {type(value).__name__}')}, but "
            f"source.{setting} must be text. Convert it to text, or set source.{setting} to another column."
        )
    files.check_characters(where, f"column '{column}'", value)
    return value.strip()
