"""Questions with their answers in JSONL or Parquet files."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pyrite.errors import UserError
from pyrite.sources import files, rows
from pyrite.sources.base import Record
from pyrite.spec import QaSource

_SUFFIXES = {"jsonl": (".jsonl", ".ndjson"), "parquet": (".parquet",)}


class Qa:
    """The sources ``jsonl`` and ``parquet``: a file or a folder of them, a question and its answer a row."""

    def __init__(self, spec: QaSource) -> None:
        self._spec = spec

    def records(self) -> Iterator[Record]:
        """Yield a Document and a Question per row.

        Raises:
            UserError: as ``rows.to_records``; also a line that is not a JSON object in UTF-8, or a file that
                is not Parquet. Names file and line or row.
        """
        path = files.existing(self._spec.path)
        return rows.to_records(self._rows(path), self._spec, self._spec.id)

    def digest(self) -> str:
        """Hex sha256 of the files and of the columns that are read."""
        path = files.existing(self._spec.path)
        found = files.find(path, *_SUFFIXES[self._spec.kind])
        return files.digest(path, found, self._spec.model_dump_json(exclude={"path"}))

    def _rows(self, path: Path) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
        for file in files.find(path, *_SUFFIXES[self._spec.kind]):
            prefix = f"{file.relative_to(path).as_posix()}:" if file != path else ""
            read = read_jsonl(file) if self._spec.kind == "jsonl" else read_parquet(file, self._wanted())
            for number, row in read:
                yield f"{file.absolute()}:{number}", f"{prefix}{number}", row

    def _wanted(self) -> dict[str, str]:
        """Setting to column, for the columns that the run file names."""
        names = ("question", "answer", "id", "topic", "type", "title")
        return {name: column for name in names if (column := getattr(self._spec, name))}


def read_jsonl(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) of each line that is not blank.

    Raises:
        UserError: a line is not UTF-8, not JSON or not an object. Names file and line.
    """
    with file.open("rb") as stream:
        yield from parse_jsonl(stream, str(file.absolute()))


def parse_jsonl(lines: Iterable[bytes], name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """As ``read_jsonl``, of the ``lines`` of a file that messages call ``name``."""
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
                f"{where}: not JSON ({error}). A JSONL file holds one JSON object a line: mend or remove the line."
            ) from error
        if not isinstance(value, dict):
            raise UserError(
                f'{where}: JSON, but not an object. Each line must look like {{"question": "...", "answer": "..."}}.'
            )
        yield number, value


def read_parquet(file: Path, wanted: Mapping[str, str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (row number from 1, values) of the ``wanted`` columns (setting to column).

    Raises:
        UserError: not Parquet, a column is missing, or text in it is not UTF-8. Names the file.
    """
    where = file.absolute()
    number = 0
    try:
        with pq.ParquetFile(file) as opened:
            names = opened.schema_arrow.names
            for setting, column in wanted.items():
                if column not in names:
                    raise UserError(
                        f"{where}: no column '{column}'. {files.suggest(column, names)} "
                        f"Set source.{setting} to the right one."
                    )
            for batch in opened.iter_batches(batch_size=4096, columns=sorted(set(wanted.values()))):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: text after row {number} is not UTF-8. Write the file again as UTF-8.") from error
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{where}: not a readable Parquet file ({error}). If it is another format, set source.kind to "
            "it; if not, write it again."
        ) from error
