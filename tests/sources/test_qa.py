"""Questions and answers in JSONL, Parquet and Hugging Face data sets."""

import contextlib
import csv
import gzip
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrite.errors import UserError
from pyrite.sources import open_source
from pyrite.sources.base import Document, Dropped, Note, Question, Record
from pyrite.spec import HuggingfaceSource, QaSource

ROWS = [
    {"question": "Why?", "answer": "So.", "topic": "A", "year": 1},
    {"question": " ", "answer": "Without a question.", "topic": "A", "year": 2},
    {"question": "How?", "answer": None, "topic": "B", "year": 3},
    {"question": "Where?", "answer": "Hére.", "topic": "B", "year": 4},
]
GOOD = '{"question": "Why?", "answer": "So."}\n'


def _read(path: Path, kind: Any = "jsonl", **settings: str) -> list[Record]:
    return list(open_source(QaSource(kind=kind, path=str(path), **settings)).records())


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_rows_become_records(tmp_path: Path, kind: str) -> None:
    file = _write(tmp_path / f"data.{kind}", ROWS)
    expected = [
        Document("1", "So.", topic="A"),
        Question("1", "Why?", topic="A", relevant={"1": 1}),
        Dropped(f"{file}:2", "empty question"),
        Dropped(f"{file}:3", "question without an answer"),
        Document("4", "Hére.", topic="B"),
        Question("4", "Where?", topic="B", relevant={"4": 1}),
    ]
    assert _read(file, kind, topic="topic") == expected
    documents = [r for r in _read(tmp_path, kind, id="year") if isinstance(r, Document)]
    assert [document.id for document in documents] == ["1", "4"]


CSV_ROWS = [
    ["Why, and how?", 'He said "so".', "A"],
    ["Two\r\nlines?", "A; B\tC", ""],
    [" ", "Without a question.", "A"],
    ["Last?", "Hére.", "B"],
]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_spreadsheet_exports_are_read(tmp_path: Path, name: str, delimiter: str, encoding: str, line_end: str) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter="\t" if name == "a.tsv" else delimiter, lineterminator=line_end)
    writer.writerows([["question", "answer", "topic, or field"], *CSV_ROWS[:2], [], *CSV_ROWS[2:]])
    content = text.getvalue().encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    records = _read(tmp_path / name, "csv", topic="topic, or field")
    assert records == [
        Document("2", 'He said "so".', topic="A"),
        Question("2", "Why, and how?", topic="A", relevant={"2": 1}),
        Document("3", "A; B\tC"),
        Question("3", "Two\r\nlines?", relevant={"3": 1}),
        Dropped(f"{tmp_path / name}:6", "empty question"),
        Document("7", "Hére.", topic="B"),
        Question("7", "Last?", topic="B", relevant={"7": 1}),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"a\.csv:1: no column 'question'"),
        (b"x" * 100_000, r"a\.csv:1: not a CSV header"),
        (b'"a\nquestion",answer\nx,y\n', r"a\.csv:1: not a CSV header"),
        (b"Question;answer\nx;y\n", r"a\.csv:1: no column 'question'\. Did you mean 'Question'\?"),
        (b"question,answer,question\nx,y,z\n", r"a\.csv:1: column 'question' occurs twice"),
        (b"question,answer\nx,y\nWhy, how?,z\n", r"a\.csv:3: number of values 3, but the header has 2 columns"),
        (b"question,answer\nx,y\nWhy?\n", r"a\.csv:3: number of values 1, but the header has 2 columns"),
        (b'question,answer\nx,y\nWhy?,"so\nx,y\nx,y\n', r"a\.csv:3: not a CSV row \(unexpected end of data\)"),
        (b'question,answer\nx,"y"z\n', r"a\.csv:2: not a CSV row"),
        ("question,answer\nx,y\nWör?,z\n".encode("cp1252"), r"a\.csv:3: not UTF-8 .*CSV UTF-8"),
        ("question,answer\nx,y\n".encode("utf-16")[:-1], r"a\.csv: not UTF-16"),
        (gzip.compress(b"question,answer\nx,y\n" * 99, mtime=0)[:-9], r"a\.csv: damaged gzip file"),
        (b'question,answer\nx,"' + b"y" * 17_000_000, r"a\.csv:2: not a CSV row \(field larger"),
    ],
)
def test_a_bad_csv_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        _read(tmp_path, "csv")


def test_a_tsv_file_has_tabs_only(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("question,answer\nWhy?,So.\n")
    with pytest.raises(UserError, match=r"a\.tsv:1: no column 'question'.*\(tab\)"):
        _read(tmp_path, "csv")


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200))
def test_any_csv_file_is_read_or_an_error(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "a.csv")
        for before in (b"", b"question,answer\n", b"question\tanswer\r\n", b"\x1f\x8b", b"\xff\xfe"):
            file.write_bytes(before + content)
            with contextlib.suppress(UserError):
                _read(file, "csv")


def test_ids_differ_between_files_of_a_folder(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl"):
        _write(tmp_path / name, ROWS[:1])
    assert [r.id for r in _read(tmp_path) if isinstance(r, Document)] == ["a.jsonl:1", "b.jsonl:1"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'question': 'Why?'}", r"data\.jsonl:2: not JSON"),
        ('["Why?", "So."]', r"data\.jsonl:2: JSON, but not an object"),
        ("[" * 100_000, r"data\.jsonl:2: not JSON"),
        (
            '{"query": "Why?", "answer": "So."}',
            r"data\.jsonl:2: no column 'question'\. .*There are: query, answer\. Set source",
        ),
        ('{"question": "Why?", "answers": "So."}', r"no column 'answer'\. Did you mean 'answers'\?"),
        ('{"question": "Why?", "answer": ["So."]}', r"data\.jsonl:2: column 'answer' holds a list"),
        ('{"question": 7, "answer": "So."}', r"data\.jsonl:2: column 'question' holds a number"),
        (
            '{"question": "Why?", "answer": "\\ud800"}',
            r"data\.jsonl:2: column 'answer' has an invalid Unicode character",
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "data.jsonl").write_text(GOOD + line + "\n")
    with pytest.raises(UserError, match=message):
        _read(tmp_path / "data.jsonl")


def test_a_line_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_bytes(GOOD.encode() + '{"question": "Wör?", "answer": "So."}\n'.encode("latin-1"))
    with pytest.raises(UserError, match=r"data\.jsonl:2: not UTF-8 \(byte 16 of the line is 0xf6\)"):
        _read(tmp_path / "data.jsonl")


def test_a_byte_order_mark_and_blank_lines_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_bytes(b"\xef\xbb\xbf" + GOOD.encode() + b"\n  \n" + GOOD.encode())
    assert [r.id for r in _read(tmp_path) if isinstance(r, Document)] == ["data.jsonl:1", "data.jsonl:4"]


def test_an_optional_column_must_be_in_some_row(
    tmp_path: Path,
) -> None:
    (tmp_path / "data.jsonl").write_text(GOOD + '{"question": "How?", "answer": "Thus.", "topics": "A"}\n')
    with pytest.raises(UserError, match=r"no column 'topic'\. Did you mean 'topics'\?"):
        _read(tmp_path / "data.jsonl", topic="topic")
    assert [r.topic for r in _read(tmp_path / "data.jsonl", topic="topics") if isinstance(r, Document)] == [
        "",
        "A",
    ]


def test_a_duplicate_id_is_an_error(tmp_path: Path) -> None:
    file = _write(tmp_path / "data.jsonl", [{**ROWS[0], "key": "x"}] * 2)
    with pytest.raises(UserError, match=r"data\.jsonl:2: id 'x' is already at .*data\.jsonl:1"):
        _read(file, id="key")


def test_bad_parquet_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text(GOOD)
    with pytest.raises(UserError, match=r"text\.parquet: not a readable Parquet file"):
        _read(tmp_path / "text.parquet", "parquet")
    file = _write(tmp_path / "data.parquet", [{"Question": "Why?", "answer": "So."}])
    with pytest.raises(UserError, match=r"data\.parquet: no column 'question'\. Did you mean 'Question'\?"):
        _read(file, "parquet")
    latin = pa.array([b"W\xf6r?"]).view(pa.string())
    pq.write_table(pa.table({"question": latin, "answer": ["So."]}), tmp_path / "latin.parquet")
    with pytest.raises(UserError, match=r"latin\.parquet: .*not UTF-8"):
        _read(tmp_path / "latin.parquet", "parquet")


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no \.jsonl, \.ndjson, \.jsonl\.gz or \.ndjson\.gz file"):
        _read(tmp_path)


def test_the_digest_depends_on_contents_and_columns(tmp_path: Path) -> None:
    file = _write(tmp_path / "data.jsonl", ROWS)

    def digest(**settings: str) -> str:
        return open_source(QaSource(kind="jsonl", path=str(file), **settings)).digest()

    seen = {digest(), digest(), digest(topic="topic")}
    _write(file, ROWS[:3])
    assert len({*seen, digest()}) == 3


def test_a_local_folder_is_read_through_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    _write(tmp_path / "train.jsonl", ROWS)
    spec = HuggingfaceSource(id=str(tmp_path), topic="topic")
    documents = [r for r in open_source(spec).records() if isinstance(r, Document)]
    assert documents == [Document("1", "So.", topic="A"), Document("4", "Hére.", topic="B")]
    before = open_source(spec).digest()
    # The library must not return a cached copy after the file has changed.
    _write(tmp_path / "train.jsonl", ROWS[:1])
    assert len([r for r in open_source(spec).records() if isinstance(r, Document)]) == 1
    assert open_source(spec).digest() != before


def test_a_dataset_that_cannot_be_loaded_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    _write(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(UserError, match=r"source\.split"):
        list(open_source(HuggingfaceSource(id=str(tmp_path), split="dev")).records())
    with pytest.raises(UserError, match="no column 'query'"):
        list(open_source(HuggingfaceSource(id=str(tmp_path), question="query")).records())


def _csv_folder(tmp_path: Path) -> Path:
    rows = ["question,answer,topic", "Why?,None,NA", "How?,null,", "Where?,nan,1", '"Who, me?",So.,None']
    (tmp_path / "train.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_csv_is_read_without_guessing_missing_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    records = list(open_source(HuggingfaceSource(id=str(_csv_folder(tmp_path)), topic="topic")).records())
    found = [(r.text, r.topic) for r in records if isinstance(r, Document)]
    assert found == [("None", "NA"), ("null", ""), ("nan", "1"), ("So.", "None")]
    assert [r.text for r in records if isinstance(r, Question)] == ["Why?", "How?", "Where?", "Who, me?"]
    assert not [r for r in records if isinstance(r, Dropped | Note)]


def test_datasets_reports_the_files_that_it_does_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    _write(_csv_folder(tmp_path) / "more.parquet", ROWS)
    (tmp_path / "test.csv").write_text("question,answer,topic\n")
    (tmp_path / "README.md").write_text("A data set.")
    notes = [r.text for r in open_source(HuggingfaceSource(id=str(tmp_path))).records() if isinstance(r, Note)]
    assert notes == [
        "1 file was not read, because the datasets library reads files of one format: more.parquet.",
        "source.split is train; not read: test.",
    ]


def test_a_folder_is_read_completely_and_the_rest_is_listed(tmp_path: Path) -> None:
    _write(tmp_path / "part-0.jsonl", ROWS[:1])
    (tmp_path / "part-1.jsonl.gz").write_bytes(gzip.compress(GOOD.encode() * 2))
    (tmp_path / "part-2.NDJSON").write_text(GOOD)
    _write(tmp_path / "part-3.parquet", ROWS)
    (tmp_path / "part-4.jsonl.zst").write_bytes(b"")
    for hidden in ("__MACOSX/part-0.jsonl", "._part-0.jsonl", ".DS_Store"):
        (tmp_path / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / hidden).write_bytes(b"\0Mac OS X")
    records = _read(tmp_path)
    ids = ["part-0.jsonl:1", "part-1.jsonl.gz:1", "part-1.jsonl.gz:2", "part-2.NDJSON:1"]
    assert [r.id for r in records if isinstance(r, Document)] == ids
    notes = [r.text for r in records if isinstance(r, Note)]
    assert notes == ["2 files were not read, because source.kind is jsonl: part-3.parquet, part-4.jsonl.zst."]


def test_a_damaged_gzip_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl.gz").write_bytes(gzip.compress(GOOD.encode() * 2, mtime=0)[:-9])
    with pytest.raises(UserError, match=r"data\.jsonl\.gz: damaged gzip file"):
        _read(tmp_path / "data.jsonl.gz")


def test_a_csv_set_of_the_hub_is_found_in_the_local_cache(tmp_path: Path) -> None:
    # In a process of its own, because datasets reads HF_HUB_OFFLINE and the cache's folder when it is imported.
    program = """
import sys
from datasets.data_files import DataFilesDict
from datasets.packaged_modules.csv.csv import Csv, CsvConfig
from pyrite.sources.base import Document
from pyrite.sources.huggingface import Huggingface
from pyrite.spec import HuggingfaceSource

class Hub(Csv):  # as load_dataset configures it for a data set of the hub
    files = DataFilesDict.from_patterns({"train": [sys.argv[1]]})
    BUILDER_CONFIGS = [CsvConfig(name="default", data_files=files)]

source = Huggingface(HuggingfaceSource(id="some-set", revision="0" * 40, topic="topic"))
Hub(dataset_name="some-set", hash="0" * 40, **source._csv_options).download_and_prepare()
print([(r.text, r.topic) for r in source.records() if isinstance(r, Document)])
"""
    file = _csv_folder(tmp_path) / "train.csv"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", program, str(file)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[('None', 'NA'), ('null', ''), ('nan', '1'), ('So.', 'None')]", done.stderr
