"""Stack Exchange dumps: Posts.xml, .7z archives of it, and damaged ones."""

import contextlib
import functools
import importlib
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prepared_tables import prepare_tables
from pyrite.errors import UserError
from pyrite.sources import open_source, optional
from pyrite.sources.base import Document, Dropped, Question, Record
from pyrite.sources.stackexchange import split_tags
from pyrite.spec import PrepareSpec, StackexchangeSource

Row = dict[str, Any]


def question(number: int, title: str = "How?", **attributes: Any) -> Row:
    return {"Id": number, "PostTypeId": 1, "Title": title, "Tags": "<linux><bash>", "Body": "<p>B</p>", **attributes}


def answer(number: int, parent: int, body: str = "<p>So.</p>", **attributes: Any) -> Row:
    return {"Id": number, "PostTypeId": 2, "ParentId": parent, "Score": 5, "Body": body, **attributes}


def xml(*rows: Row) -> bytes:
    lines = [
        "<row " + " ".join(f"{name}={quoteattr(str(value))}" for name, value in row.items()) + " />" for row in rows
    ]
    return ('\ufeff<?xml version="1.0" encoding="utf-8"?>\n<posts>\n  ' + "\n  ".join(lines) + "\n</posts>").encode()


def read(path: Path, **settings: Any) -> list[Record]:
    return list(open_source(StackexchangeSource(path=str(path), **settings)).records())


ROWS = [
    question(1, "How do I\n list files?", AcceptedAnswerId=4),
    question(2, "Why?", Tags="|network|dns|"),
    answer(
        3, 1, "<p>Use <code>ls</code>:</p>\n\n<pre><code>if true; then\n    ls &lt; x\nfi\n</code></pre>\n<p>Done.</p>"
    ),
    answer(4, 1, Score=-3),
    answer(5, 2, Score=0),
    answer(6, 77),
    {"Id": 7, "PostTypeId": 5, "Body": "A tag's description."},
    # A merged question: its answer has a smaller number.
    answer(8, 9),
    question(9, "Merged?", Tags=""),
]


def test_accepted_and_well_scored_answers_are_read(tmp_path: Path) -> None:
    file = tmp_path / "Posts.xml"
    file.write_bytes(xml(*ROWS))
    (tmp_path / "Users.xml").write_text("<users/>")
    expected: list[Record] = [
        Question("1", "How do I list files?", topic="linux", relevant={"3": 1, "4": 1}),
        Dropped(f"{file}, post 2", "question without an answer"),
        Document("3", "Use ls:\n\nif true; then\n    ls < x\nfi\n\nDone.", title="linux, bash", topic="linux"),
        Document("4", "So.", title="linux, bash", topic="linux"),
        Dropped(f"{file}, post 5", "answer that is not accepted and below source.min_score"),
        Dropped(f"{file}, post 6", "answer without its question in the dump"),
        Document("8", "So."),
        Question("9", "Merged?", relevant={"8": 1}),
    ]
    assert read(tmp_path) == expected
    records = read(file, min_score=-1, topic="question")
    assert [r.topic for r in records if isinstance(r, Document | Question)] == [""] * 7
    assert Question("2", "Why?", relevant={"5": 1}) in records


def test_a_dump_is_prepared_by_tag(tmp_path: Path) -> None:
    rows = [
        row
        for n in range(9)
        for row in (question(10 * n, f"What is {n}?", Tags=f"<tag-{n % 4}>"), answer(10 * n + 1, 10 * n, f"It is {n}."))
    ]
    (tmp_path / "Posts.xml").write_bytes(xml(*rows))
    prepared = prepare_tables(read(tmp_path), PrepareSpec(min_chars=5, max_chars=60), 0, "run")
    splits = {(row["topic"], row["split"]) for row in prepared.queries.to_pylist()}
    assert (prepared.queries.num_rows, len(splits)) == (9, 4)
    assert prepared.passages["context"].to_pylist()[0] == "tag-0"


@given(st.lists(st.from_regex(r"[a-z0-9.#+-]+", fullmatch=True), max_size=5))
def test_both_notations_of_tags_are_read(tags: list[str]) -> None:
    assert split_tags("".join(f"<{tag}>" for tag in tags)) == tags
    assert split_tags(f"|{'|'.join(tags)}|") == tags


def test_memory_does_not_grow_with_the_texts(tmp_path: Path) -> None:
    def peak(characters: int) -> int:
        file = tmp_path / f"{characters}.xml"
        body = f"<p>{'a word ' * (characters // 7)}</p>"
        file.write_bytes(xml(*(row for n in range(0, 400, 2) for row in (question(n), answer(n + 1, n, body)))))
        tracemalloc.start()
        try:
            for _ in open_source(StackexchangeSource(path=str(file))).records():
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1)  # imports
    # 200 answers of 30,000 characters are 6 MB.
    assert peak(30_000) - peak(30) < 1_500_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Posts.xml: broken XML"),
        (xml(*ROWS)[:-300], "Posts.xml: broken XML .*line"),
        (xml(*ROWS).replace(b"So.", b"S\xffo."), "Posts.xml: broken XML .*line"),
        (b"<users><row Id='1'/></users>", "the root element is 'users'"),
        (xml(question(1)).replace(b'"1"', b'"one"', 1), "post one: Id is 'one', but must be a number"),
        (xml({"PostTypeId": 1, "Title": "x"}), "post without Id: Id is missing"),
        (b'<!DOCTYPE p [<!ENTITY a "b">]><posts>&a;</posts>', "it defines entities"),
        (b"<posts><row Body='" + b"x" * 5_000_000 + b"'/></posts>", "a row of more than 4 MiB"),
        (b"<posts>" + b" " * 5_000_000 + b"</posts>", "a row of more than 4 MiB, or none"),
        (bytes(range(256)) * 300, "broken XML"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(200), "not a readable .7z archive"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    if content.startswith(b"7z"):
        pytest.importorskip("py7zr")
    (tmp_path / "Posts.xml").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path / "Posts.xml")


def write_7z(path: Path, **members: bytes) -> Path:
    py7zr = pytest.importorskip("py7zr")
    with py7zr.SevenZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(content, f"site/{name}.xml")
    return path


def test_a_7z_archive_is_read_like_the_file(tmp_path: Path) -> None:
    (tmp_path / "Posts.xml").write_bytes(xml(*ROWS))
    archive = write_7z(tmp_path / "site.com.7z", Badges=b"<badges/>", Posts=xml(*ROWS), Votes=b"<votes/>")
    assert [str(r).replace(archive.name, "Posts.xml") for r in read(archive)] == [str(r) for r in read(tmp_path)]
    (tmp_path / "Posts.xml").unlink()
    assert len(read(tmp_path)) == 8
    # An unfinished read ends the thread that unpacks.
    records = open_source(StackexchangeSource(path=str(archive))).records()
    next(records)
    records.close()  # type: ignore[attr-defined]


def test_a_bad_7z_archive_is_named(tmp_path: Path) -> None:
    complete = write_7z(tmp_path / "a.7z", Posts=xml(*ROWS * 50)).read_bytes()
    for content in (complete[:-10], complete[:60], complete[:40] + bytes(40) + complete[80:]):
        (tmp_path / "a.7z").write_bytes(content)
        with pytest.raises(UserError, match=r"a\.7z: not a readable \.7z archive"):
            read(tmp_path)
    write_7z(tmp_path / "a.7z", Posts=b"<posts><row Body='" + b"x" * 20_000_000)
    with pytest.raises(UserError, match=r"a\.7z: a row of more than 4 MiB"):
        read(tmp_path)
    write_7z(tmp_path / "a.7z", Users=b"<users/>")
    with pytest.raises(UserError, match=r"a\.7z: 0 files called Posts\.xml"):
        read(tmp_path)
    write_7z(tmp_path / "b.7z", Posts=xml(*ROWS))
    with pytest.raises(UserError, match=r"no Posts\.xml in this folder, and 2 \.7z archives"):
        read(tmp_path)


@functools.cache
def archive_of_rows() -> bytes:
    """The same archive for each example, because an archive has the time in it."""
    with tempfile.TemporaryDirectory() as folder:
        return write_7z(Path(folder, "a.7z"), Posts=xml(*ROWS)).read_bytes()


@pytest.mark.parametrize("name", ["Posts.xml", "a.7z"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_file_is_read_or_an_error(name: str, data: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, name)
        content = bytearray(xml(*ROWS) if name == "Posts.xml" else archive_of_rows())
        for _ in range(data.draw(st.integers(1, 4))):
            position = data.draw(st.integers(0, len(content)))
            content[position : position + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
        file.write_bytes(content)
        with contextlib.suppress(UserError):
            read(file)


def test_a_missing_library_is_named_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named '{name}'")

    monkeypatch.setattr(optional.importlib, "import_module", missing)
    assert importlib.import_module is missing
    (tmp_path / "a.7z").write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(99))
    with pytest.raises(UserError, match=r"needs the Python package py7zr.*pip install py7zr"):
        read(tmp_path)
