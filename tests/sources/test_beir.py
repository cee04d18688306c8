"""BEIR folders."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pyrite.errors import UserError
from pyrite.sources import open_source
from pyrite.sources.base import Document, Dropped, Question, Record
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


def _read(path: Path) -> list[Record]:
    return list(open_source(BeirSource(path=str(path))).records())


def test_files_give_documents_queries_grades_and_splits(tmp_path: Path) -> None:
    records = _read(_folder(tmp_path, train="q1 d1 2\nq1 d2 0\n", dev="q2 d2 1\n", test="q3 d3 1\nq3 d1 1\n"))
    assert records == [
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
    records = _read(_folder(tmp_path, train="q1 d1 1\nq9 d1 1\n", test="q1 d2 1\nq2 d9 1\n"))
    assert {r.where.rsplit("/", 1)[1]: r.reason for r in records if isinstance(r, Dropped)} == {
        "corpus.jsonl:4": "document without text",
        "train.tsv:3": "qrels name an unknown query",
        "test.tsv:2": "query is in the qrels of an earlier split",
        "test.tsv:3": "qrels name an unknown document",
        "queries.jsonl:2": "no relevant document",
        "queries.jsonl:3": "no relevant document",
    }
    assert [(r.id, r.split, r.relevant) for r in records if isinstance(r, Question)] == [("q1", "train", {"d1": 1})]


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"qrels: no train\.tsv, dev\.tsv, val\.tsv, test\.tsv in it"):
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
