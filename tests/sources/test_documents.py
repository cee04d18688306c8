"""The source of documents without questions."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pyrite.errors import UserError
from pyrite.sources import open_source
from pyrite.sources.base import Document, Note, Record
from pyrite.spec import DocumentsSource

ROWS = [
    {"key": "a", "text": " Gout hurts. ", "name": "On gout", "field": "gout"},
    {"key": "b", "text": "Acne itches.", "name": None, "field": "acne"},
]
COLUMNS = {"id": "key", "title": "name", "topic": "field"}


def read(path: Path, **columns: Any) -> list[Record]:
    return list(open_source(DocumentsSource(path=str(path), **columns)).records())


def documents(path: Path, **columns: Any) -> list[Document]:
    return [record for record in read(path, **columns) if isinstance(record, Document)]


def digest(path: Path, **columns: Any) -> str:
    return open_source(DocumentsSource(path=str(path), **columns)).digest()


def test_each_text_file_becomes_a_document(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/gout.md").write_text("# Gout\n\nIt hurts.\n")
    (tmp_path / "acne.TXT").write_bytes("\ufeffAcne itches: naïve.".encode())
    (tmp_path / "notes.docx").write_text("no")
    assert read(tmp_path) == [
        Note(
            "1 file was not read, because only .txt, .md, .mdx, .html, .htm and .pdf files are read in a folder: "
            "notes.docx."
        ),
        Document("acne.TXT", "Acne itches: naïve.", title="acne"),
        Document("deep/gout.md", "# Gout\n\nIt hurts.", title="Gout", headings=((0, "Gout"),)),
    ]
    before = digest(tmp_path)
    (tmp_path / "deep/gout.md").write_text("# Gout\n\nIt hurts!\n")
    assert digest(tmp_path) != before


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_optional_columns_set_id_title_and_topic(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"data.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif kind == "csv":
        path.write_text("key;text;name;field\na; Gout hurts. ;On gout;gout\nb;Acne itches.;;acne\n")
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    assert read(path, **COLUMNS) == [
        Document("a", "Gout hurts.", title="On gout", topic="gout"),
        Document("b", "Acne itches.", topic="acne"),
    ]
    assert [document.id for document in documents(path)] == (["2", "3"] if kind == "csv" else ["1", "2"])
    assert digest(path) != digest(path, **COLUMNS)


@pytest.mark.parametrize(
    ("name", "content", "columns", "message"),
    [
        ("a.jsonl", b'{"body": "x"}\n', {}, "a.jsonl:1: no column 'text'"),
        ("a.jsonl", b'{"text": "x", "topic": "y"}\n', {"topic": "topics"}, "Did you mean 'topic'"),
        ("a.jsonl", b'{"text": "x", "n": 1}\n{"text": "y", "n": 1}\n', {"id": "n"}, "a.jsonl:2: id '1' is already at"),
        ("a.jsonl", b'{"text": ["x"]}\n', {}, "a list"),
        ("a.txt", b"caf\xe9", {}, "not UTF-8"),
        ("a.docx", b"PK", {}, "not a supported file format"),
        ("a.csv", b"text,n\nx,1\ny,1\n", {"id": "n"}, "a.csv:3: id '1' is already at"),
    ],
)
def test_unreadable_input_is_named(tmp_path: Path, name: str, content: bytes, columns: Any, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as raised:
        read(tmp_path / name, **columns)
    assert name in str(raised.value)
    assert message in str(raised.value)


def test_a_folder_without_text_files_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\.htm or \.pdf"):
        read(tmp_path)


def test_a_passage_of_markdown_has_the_heading_above_it(tmp_path: Path) -> None:
    parts = [
        "Before all headings.",
        "# Gout",
        "About it.",
        "## How *it* is [treated](a.md) ##",
        "```\n# code\n```",
        "More.",
    ]
    parts += ["Signs\n-----", "It hurts."]
    (tmp_path / "a.md").write_text("\n\n".join(parts))
    (tmp_path / "b.md").write_text("---\n# A comment\ntags: x\n---\nNo heading: #gout and\n\n- a list\n---\n")
    a, b = documents(tmp_path)
    titles = {part: a.title_at(a.text.index(part)) for part in parts}
    assert list(titles.values()) == ["Gout", "Gout", "Gout", *["How it is treated"] * 3, *["Signs"] * 2]
    assert (b.title, b.headings) == ("b", ())
