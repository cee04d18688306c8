"""BEIR folders."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pyrite.errors import UserError
from pyrite.sources import open_source
from pyrite.sources.base import Document, Dropped, Note, Question, Record
from pyrite.spec import BeirSource


def _folder(tmp_path: Path, **qrels: str) -> Path:
    tmp_path.mkdir(parents=True, exist_ok=True)
    corpus = [{"_id": f"d{n}", "title": "T" if n == 1 else "", "text": f"text {n}"} for n in (1, 2, 3)]
    corpus.append({"_id": "d4", "title": "", "text": " "})
    queries = [{"_id": f"q{n}", "text": f"query {n}"} for n in (1, 2, 3)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)))
    (tmp_path / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    (tmp_path / "qrels").mkdir(exist_ok=True)
    for name, lines in qrels.items():
        text = "query-id\tcorpus-id\tscore\n" + lines.replace(" ", "\t")
        (tmp_path / "qrels" / f"{name}.tsv").write_text(text)
    return tmp_path


def _read(path: Path, **settings: int) -> list[Record]:
    return list(open_source(BeirSource(path=str(path), **settings)).records())


def _questions(records: list[Record]) -> dict[str, tuple[str | None, dict[str, int]]]:
    """Split and relevant documents of each question by id."""
    return {record.id: (record.split, record.relevant) for record in records if isinstance(record, Question)}


def _notes(records: list[Record]) -> str:
    return " ".join(record.text for record in records if isinstance(record, Note))


def test_files_give_documents_queries_grades_and_splits(tmp_path: Path) -> None:
    records = _read(_folder(tmp_path, train="q1 d1 2\nq1 d2 0\n", dev="q2 d2 1\n", test="q3 d3 1\nq3 d1 1\n"))
    assert [record for record in records if not isinstance(record, Note)] == [
        Document("d1", "T\ntext 1", title="T"),
        Document("d2", "text 2"),
        Document("d3", "text 3"),
        Dropped(f"{tmp_path / 'corpus.jsonl'}:4", "document without text"),
        Question("q1", "query 1", relevant={"d1": 2}, split="train"),
        Question("q2", "query 2", relevant={"d2": 1}, split="val"),
        Question("q3", "query 3", relevant={"d3": 1, "d1": 1}, split="test"),
    ]


def test_one_qrels_file_alone_gives_no_split(tmp_path: Path) -> None:
    questions = [r for r in _read(_folder(tmp_path, test="q1 d1 1\nq2 d2 1\n")) if isinstance(r, Question)]
    assert [(question.id, question.split) for question in questions] == [("q1", None), ("q2", None)]


def test_unusable_records_are_dropped_with_a_reason(tmp_path: Path) -> None:
    known = "q1 d1 1\n" * 18
    records = _read(_folder(tmp_path, train=known + "q9 d1 1\n", test="q1 d2 1\nq2 d9 1\n"))
    assert {r.where.rsplit("/", 1)[1]: r.reason for r in records if isinstance(r, Dropped)} == {
        "corpus.jsonl:4": "document without text",
        "train.tsv:20": "qrels name an unknown query",
        "test.tsv:2": "query is in the qrels of an earlier split",
        "test.tsv:3": "qrels name an unknown document",
        "queries.jsonl:2": "no relevant document",
        "queries.jsonl:3": "no relevant document",
    }
    assert [(r.id, r.split, r.relevant) for r in records if isinstance(r, Question)] == [("q1", "train", {"d1": 1})]


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"qrels: no train\.tsv, dev\.tsv, .*, test\.tsv in it"):
        _read(_folder(tmp_path))
    with pytest.raises(UserError, match=r"test\.tsv:3: not 'query id <tab> document id <tab> whole number'"):
        _read(_folder(tmp_path, test="q1 d1 1\nq2 d2 good\n"))
    (tmp_path / "queries.jsonl").write_text('{"id": "q1", "text": "query"}')
    with pytest.raises(UserError, match=r"queries\.jsonl:1: no '_id'\. Did you mean 'id'\?"):
        _read(tmp_path)
    (tmp_path / "corpus.jsonl").unlink()
    with pytest.raises(UserError, match=r"corpus\.jsonl: no such file"):
        _read(tmp_path)


def test_the_digest_follows_the_qrels(tmp_path: Path) -> None:
    first = open_source(BeirSource(path=str(_folder(tmp_path, test="q1 d1 1\n")))).digest()
    assert open_source(BeirSource(path=str(_folder(tmp_path, test="q1 d2 1\n")))).digest() != first


@pytest.mark.parametrize("suffix", [".tar.xz", ".tar.gz", ".zip"])
def test_an_archive_is_read_like_its_folder(tmp_path: Path, suffix: str) -> None:
    folder = _folder(tmp_path / "set", train="q1 d1 2\n", test="q3 d3 1\n")
    archive = Path(
        shutil.make_archive(
            str(tmp_path / "packed"),
            {".tar.xz": "xztar", ".tar.gz": "gztar", ".zip": "zip"}[suffix],
            root_dir=tmp_path,
            base_dir="set",
        )
    )
    expected = [
        replace(record, where=record.where.replace(f"{folder}/", f"{archive}: set/"))
        if isinstance(record, Dropped)
        else record
        for record in _read(folder)
    ]
    assert _read(archive) == expected
    assert open_source(BeirSource(path=str(archive))).digest()


def test_an_archive_without_one_beir_folder_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        _folder(tmp_path / "sets" / name, test="q1 d1 1\n")
    with pytest.raises(UserError, match=r"two\.zip: more than one BEIR folder \(a, b\)"):
        _read(Path(shutil.make_archive(str(tmp_path / "two"), "zip", root_dir=tmp_path / "sets")))
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=r"none\.tar\.gz: corpus\.jsonl: no such file.*Correct source\.path"):
        _read(Path(shutil.make_archive(str(tmp_path / "none"), "gztar", root_dir=tmp_path / "other")))


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_other_names_of_dev_are_its_split(tmp_path: Path, name: str) -> None:
    records = _read(_folder(tmp_path, train="q1 d1 1\n", **{name: "q2 d2 1\n"}, test="q3 d3 1\n"))
    assert {key: split for key, (split, _) in _questions(records).items()} == {"q1": "train", "q2": "val", "q3": "test"}
    assert not _notes(records)


@pytest.mark.parametrize("archived", [False, True])
def test_an_unknown_qrels_file_is_reported(tmp_path: Path, archived: bool) -> None:
    path = _folder(tmp_path / "set", test="q1 d1 1\n", holdout="q2 d2 1\n")
    (path / "qrels/._test.tsv").write_bytes(b"\0Mac OS X")
    if archived:
        path = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", root_dir=tmp_path, base_dir="set"))
    records = _read(path)
    assert _questions(records) == {"q1": (None, {"d1": 1})}
    assert re.search(r"qrels/: not read, .*: holdout\.tsv\.", _notes(records))


def test_grades_below_the_relevance_level_are_no_answer(tmp_path: Path) -> None:
    folder = _folder(tmp_path, test="q1 d1 3\nq1 d2 1\nq2 d2 1\nq2 d3 2\nq3 d3 0\nq3 d1 2\n")
    records = _read(folder)
    assert _questions(records)["q1"] == (None, {"d1": 3, "d2": 1})
    assert "2 of grade 1, 2 of grade 2, 1 of grade 3" in _notes(records)
    assert "set source.relevance_level" in _notes(records)
    records = _read(folder, relevance_level=2)
    assert _questions(records) == {"q1": (None, {"d1": 3}), "q2": (None, {"d3": 2}), "q3": (None, {"d1": 2})}
    assert _notes(records) == "2 qrels with a grade below source.relevance_level (2) count as not relevant."
    with pytest.raises(UserError, match=r"source\.relevance_level is 4, but the qrels have only 2 of grade 1"):
        _read(folder, relevance_level=4)
    assert not _notes(_read(_folder(tmp_path, test="q1 d1 1\nq1 d2 0\n")))


def test_qrels_in_csv_quotes_are_parsed(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    lines = ['"query-id"\t"corpus-id"\t"score"', '"q1"\t"d1"\t"1"', 'q2\t"d2"\t1', "q3\td3\t1"]
    (folder / "qrels/test.tsv").write_text("\r\n".join(lines))
    assert [relevant for _, relevant in _questions(_read(folder)).values()] == [{"d1": 1}, {"d2": 1}, {"d3": 1}]


def test_many_unknown_ids_are_an_error_with_one_of_them(tmp_path: Path) -> None:
    known = "q1 d1 1\n" * 18
    assert _questions(_read(_folder(tmp_path, test=known + "q1 D2 1\nq1 D3 1\n"))) == {"q1": (None, {"d1": 1})}
    with pytest.raises(UserError, match=r"test\.tsv:20: document id 'D2' is not in corpus\.jsonl\. 3 of the 21 lines"):
        _read(_folder(tmp_path, test=known + "q1 D2 1\nq1 D3 1\nQ1 d1 1\n"))
    with pytest.raises(UserError, match=r"test\.tsv:2: query id 'Q1' is not in queries\.jsonl"):
        _read(_folder(tmp_path, test="Q1 d1 1\n"))
