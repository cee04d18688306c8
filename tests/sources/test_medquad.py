"""MedQuAD's XML: its records, and broken and malicious files."""

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from public_data import REAL_DATA
from pyrite.errors import UserError
from pyrite.sources import open_source
from pyrite.sources.base import Document, Dropped, Note, Question, Record
from pyrite.spec import MedquadSource

PUBLISHED = REAL_DATA / "medquad"

CROHN = """<?xml version="1.0" encoding="UTF-8"?>
<Document id="0000093" source="NIDDK" url="http://example.org">
<Focus>Crohn's Disease</Focus>
<FocusAnnotations><UMLS><CUIs><CUI> C0010346 </CUI><CUI/><CUI>C0156147</CUI></CUIs></UMLS></FocusAnnotations>
<QAPairs>
  <QAPair pid="1">
    <Question qid="0000093-1" qtype="information">What is (are) Crohn's Disease ?</Question>
    <Answer>Crohn&apos;s is   chronic.
                
Symptoms are  - pain  - fever</Answer>
  </QAPair>
  <QAPair pid="2"><Question qid="0000093-2" qtype="causes">What now?</Question><Answer> </Answer></QAPair>
  <QAPair pid="3"><Question qid="0000093-3" qtype="causes"></Question><Answer>It is unknown.</Answer></QAPair>
  <QAPair pid="4">
    <Question qid="0000093-4" qtype="causes" split="val">Why?</Question><Answer>So.</Answer>
  </QAPair>
</QAPairs>
</Document>
"""


def _read(path: Path, *collections: str) -> list[Record]:
    return list(open_source(MedquadSource(path=str(path), collections=list(collections))).records())


def _folder(tmp_path: Path, **xml: str) -> Path:
    for name, content in xml.items():
        (tmp_path / f"{name}.xml").write_text(content, encoding="utf-8")
    return tmp_path


def test_pairs_become_documents_and_questions(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("not XML")
    records = _read(_folder(tmp_path, a=CROHN))
    text = "Crohn's is chronic.\n\nSymptoms are\n- pain\n- fever"
    focus = "Crohn's Disease"
    assert records[:2] == [
        Document(
            "NIDDK-0000093-1",
            text,
            title=focus,
            topic=focus,
            type="information",
            concepts=("C0010346", "C0156147"),
        ),
        Question(
            "NIDDK-0000093-1",
            "What is (are) Crohn's Disease ?",
            topic=focus,
            type="information",
            relevant={"NIDDK-0000093-1": 1},
        ),
    ]
    assert [r.reason for r in records if isinstance(r, Dropped)] == [
        "question without an answer",
        "empty question",
    ]
    assert isinstance(records[-2], Question)
    assert records[-2].split == "val"
    assert records[-1] == Note("1 file was not read, because only .xml files are: readme.txt.")


def test_a_folder_and_an_archive_of_it_give_the_same(tmp_path: Path) -> None:
    _folder(tmp_path, a=CROHN, b=CROHN.replace("0000093", "0000094").replace("NIDDK", "CDC"))
    with tarfile.open(tmp_path / "all.tar.xz", "w:xz") as tar:
        for name in ("a.xml", "b.xml"):
            tar.add(tmp_path / name, f"MedQuAD/{name}")
    read = [
        [r for r in _read(path) if isinstance(r, Document | Question)] for path in (tmp_path, tmp_path / "all.tar.xz")
    ]
    assert read[0] == read[1]
    assert len(read[0]) == 8


@pytest.mark.parametrize("archived", [False, True])
def test_files_of_macos_are_skipped(tmp_path: Path, archived: bool) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as zipped:
        zipped.writestr("set/a.xml", CROHN)
        for name in ("__MACOSX/set/._a.xml", "__MACOSX/set/b.xml", "set/._a.xml", "set/.DS_Store"):
            zipped.writestr(name, b"\0\5\x16\7 Mac OS X")
        zipped.writestr("set/LICENCE", "CC BY")
        if not archived:
            zipped.extractall(tmp_path / "folder")
    records = _read(tmp_path / ("all.zip" if archived else "folder"))
    assert len([r for r in records if isinstance(r, Document)]) == 2
    assert records[-1] == Note("1 file was not read, because only .xml files are: set/LICENCE.")


def test_files_with_the_same_id_yield_all_pairs(tmp_path: Path) -> None:
    documents = [r for r in _read(_folder(tmp_path, a=CROHN, b=CROHN)) if isinstance(r, Document)]
    assert len({document.id for document in documents}) == 4


def test_collections_select_documents(tmp_path: Path) -> None:
    _folder(tmp_path, a=CROHN, b=CROHN.replace("NIDDK", "NINDS"))
    assert {r.id.split("-")[0] for r in _read(tmp_path, "NINDS") if isinstance(r, Document)} == {"NINDS"}
    with pytest.raises(UserError, match=r"'NIDKK' is not in .* Did you mean 'NIDDK'\? There are: NIDDK, NINDS"):
        _read(tmp_path, "NIDKK", "NINDS")


def test_truncated_xml_names_file_and_line(tmp_path: Path) -> None:
    _folder(tmp_path, good=CROHN, broken=CROHN[: CROHN.index("chronic")])
    with pytest.raises(UserError, match=r"broken\.xml, line 8: broken XML"):
        _read(tmp_path)


def test_truncated_xml_in_an_archive_names_both(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "mq.tgz", "w:gz") as tar:
        info = tarfile.TarInfo("top/broken.xml")
        info.size = 100
        tar.addfile(info, io.BytesIO(CROHN.encode()[:100]))
    with pytest.raises(UserError, match=r"mq\.tgz: top/broken\.xml, line 2"):
        _read(tmp_path / "mq.tgz")


def test_an_entity_bomb_is_refused_and_named(tmp_path: Path) -> None:
    lol = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    bomb = f'<!DOCTYPE d [<!ENTITY l0 "lol">{lol}]><Document><Focus>&l9;</Focus></Document>'
    with pytest.raises(UserError, match=r"bomb\.xml: refused, because it declares entities"):
        _read(_folder(tmp_path, bomb=bomb))


def test_an_external_entity_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    entity = f'<!ENTITY x SYSTEM "{(tmp_path / "secret").as_uri()}">'
    outside = f"<!DOCTYPE d [{entity}]><Document><Focus>&x;</Focus></Document>"
    with pytest.raises(UserError, match=r"outside\.xml: refused"):
        _read(_folder(tmp_path, outside=outside))


def test_xml_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "latin.xml").write_bytes(CROHN.replace("chronic", "chrönic").encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.xml, line 8"):
        _read(tmp_path)


def test_other_xml_is_dropped_or_an_error_if_alone(tmp_path: Path) -> None:
    _folder(tmp_path, page="<html/>")
    with pytest.raises(UserError, match="no MedQuAD document"):
        _read(tmp_path)
    assert Dropped(f"{tmp_path}: page.xml", "XML file that is not MedQuAD's") in _read(_folder(tmp_path, a=CROHN))


def test_a_missing_path_is_shown_as_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=str(tmp_path / "nowhere")):
        _read(Path("nowhere"))


def test_the_digest_depends_on_contents_names_and_collections(tmp_path: Path) -> None:
    def digest(*collections: str) -> str:
        return open_source(MedquadSource(path=str(tmp_path), collections=list(collections))).digest()

    _folder(tmp_path, a=CROHN)
    seen = {digest(), digest("NIDDK")}
    (tmp_path / "readme.txt").write_text("changes nothing")
    assert digest() in seen
    _folder(tmp_path, a=CROHN.replace("fever", "cough"))
    seen.add(digest())
    (tmp_path / "a.xml").rename(tmp_path / "b.xml")
    seen.add(digest())
    assert len(seen) == 4


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published MedQuAD is not on this machine")
def test_published_collections_have_the_known_pair_counts() -> None:
    records = _read(next(PUBLISHED.glob("*.tar.xz")))
    documents = [r for r in records if isinstance(r, Document)]
    per_source: dict[str, int] = {}
    for document in documents:
        source = document.id.split("-")[0]
        per_source[source] = per_source.get(source, 0) + 1
    assert per_source == {
        "CancerGov": 729,
        "GARD": 5389,
        "GHR": 5430,
        "MPlusHealthTopics": 981,
        "NIDDK": 1192,
        "NINDS": 1088,
    }
    assert len({document.id for document in documents}) == len(documents)
