"""The tables that prepare writes from records, read into memory."""

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pyrite import tables
from pyrite.sources.base import Record
from pyrite.spec import PrepareSpec
from pyrite.stages import prepare


@dataclass(frozen=True, slots=True)
class Prepared:
    """The three tables, as in ``tables``, and the step's summary."""

    passages: pa.Table
    queries: pa.Table
    qrels: pa.Table
    summary: dict[str, Any]


def prepare_tables(
    records: Iterable[Record], spec: PrepareSpec, seed: int, name: str, *, generates: bool = False
) -> Prepared:
    """Run ``prepare.write_tables`` and read what it writes."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        summary = prepare.write_tables(
            records, spec, seed, name, folder.joinpath, folder / "texts", generates=generates
        )
        return Prepared(
            tables.read(folder / prepare.PASSAGES, tables.PASSAGES),
            tables.read(folder / prepare.QUERIES, tables.QUERIES),
            tables.read(folder / prepare.QRELS, tables.QRELS),
            summary,
        )
