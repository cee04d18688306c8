"""Data sets as people have them, with defects that were reported in public. See the folder ``cases``."""

from collections.abc import Iterator
from typing import Any

import pytest

from prepared_tables import Prepared, prepare_tables
from public_data import REAL_DATA
from pyrite.errors import UserError
from pyrite.sources import open_source
from pyrite.sources.base import Record
from pyrite.spec import BeirSource, HuggingfaceSource, MedquadSource, PrepareSpec, QaSource

CASES = REAL_DATA / "cases"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="PYRITE_TEST_DATA names no folder with the folder cases")


def _records(spec: Any) -> Iterator[Record]:
    return open_source(spec).records()


def _prepare(spec: Any) -> Prepared:
    return prepare_tables(_records(spec), PrepareSpec(), 0, "run")


def test_csv_topics_called_na_are_topics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    prepared = _prepare(HuggingfaceSource(id=str(CASES / "csv-na"), topic="topic", type="type"))
    rows = prepared.queries.to_pylist()
    assert len(rows) == 60
    assert prepared.summary["dropped"] == {}
    assert prepared.summary["notes"] == []
    assert {"NA", "None"} <= {row["topic"] for row in rows}
    assert len({(row["topic"], row["split"]) for row in rows}) == len({row["topic"] for row in rows})
    assert "None" in prepared.passages["text"].to_pylist()


def test_validation_is_dev_and_a_missing_test_is_an_error() -> None:
    spec = BeirSource(path=str(CASES / "beir-validation-only"))
    splits = [record.split for record in _records(spec) if hasattr(record, "split")]
    assert (splits.count("train"), splits.count("val")) == (40, 20)
    with pytest.raises(UserError, match="no query is in test, and the data set assigns the splits"):
        _prepare(spec)


def test_a_compressed_part_is_read_with_the_rest() -> None:
    prepared = _prepare(QaSource(kind="jsonl", path=str(CASES / "jsonl-gzmix"), topic="topic"))
    assert (prepared.summary["questions"], prepared.summary["notes"]) == (60, [])


def test_a_zip_from_a_mac_is_read() -> None:
    prepared = _prepare(MedquadSource(path=str(CASES / "mq-mac.zip")))
    assert (prepared.summary["questions"], prepared.summary["dropped"], prepared.summary["notes"]) == (60, {}, [])


def test_grade_one_is_no_answer_with_a_relevance_level() -> None:
    spec = BeirSource(path=str(CASES / "beir-trecdl"))
    prepared = _prepare(spec)
    assert "(120 of grade 1, 60 of grade 3)" in prepared.summary["notes"][0]
    prepared = _prepare(spec.model_copy(update={"relevance_level": 2}))
    assert prepared.qrels["grade"].to_pylist() == [3] * 60
    assert prepared.summary["notes"][0].startswith("120 qrels with a grade below")
