"""The registry of sources."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import pytest

from prepared_tables import prepare_tables
from pyrite import sources
from pyrite.sources.base import Document, Question, Record
from pyrite.spec import PrepareSpec, Section, SourceSpec


class CountingSource(Section):
    kind: Literal["counting"] = "counting"
    path: str
    pairs: int = 9


class Counting:
    def __init__(self, spec: CountingSource) -> None:
        self._spec = spec

    def records(self) -> Iterator[Record]:
        text = Path(self._spec.path).read_text()
        for number in map(str, range(self._spec.pairs)):
            yield Document(number, f"{text} {number}.", topic=number)
            yield Question(number, f"What is {number}?", topic=number, relevant={number: 1})

    def digest(self) -> str:
        return str(self._spec.pairs)


def test_a_registered_source_is_opened_and_prepared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sources.SOURCES, "counting", Counting)
    (tmp_path / "text").write_text("A number")
    opened = sources.open_source(CountingSource(path=str(tmp_path / "text")))  # type: ignore[arg-type]
    prepared = prepare_tables(opened.records(), PrepareSpec(min_chars=5, max_chars=60), 0, "run")
    assert prepared.passages.num_rows == prepared.queries.num_rows == 9
    assert prepared.passages["text"][0].as_py() == "A number 0."


def test_every_kind_in_the_spec_has_a_class() -> None:
    union, _ = get_args(SourceSpec)
    kinds = {kind for section in get_args(union) for kind in get_args(section.model_fields["kind"].annotation)}
    assert kinds == set(sources.SOURCES)
