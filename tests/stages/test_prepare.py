"""prepare: from records to tables, and their splits."""

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from prepared_tables import Prepared, prepare_tables
from public_data import REAL_DATA
from pyrite import spill, splitting, tables
from pyrite.chunking import split_into_passages
from pyrite.errors import UserError
from pyrite.identity import normalise, passage_id
from pyrite.plan import Step
from pyrite.progress import NullProgress
from pyrite.sources import open_source
from pyrite.sources.base import Document, Dropped, Note, Question, Record, Split
from pyrite.spec import MedquadSource, PrepareSpec, RunSpec, SplitSpec
from pyrite.stages import prepare
from pyrite.stages.context import StepContext
from pyrite.stages.corpus import context_of
from pyrite.store import open_store

PUBLISHED = REAL_DATA / "medquad"
SPEC = PrepareSpec(min_chars=10, max_chars=60)


def _pair(key: str, question: str, answer: str, topic: str = "", split: Split | None = None) -> list[Record]:
    return [
        Document(key, answer, title=topic, topic=topic, type="t"),
        Question(key, question, topic=topic, type="t", relevant={key: 1}, split=split),
    ]


def _many(topics: int, each: int) -> list[Record]:
    keys = [(t, n) for t in range(topics) for n in range(each)]
    return [
        r for t, n in keys for r in _pair(f"{t}-{n}", f"Question {t}-{n}?", f"Answer number {t}-{n}.", f"Topic {t}")
    ]


def _prepare(records: Iterable[Record], seed: int = 0, **spec: Any) -> Prepared:
    return prepare_tables(records, SPEC.model_copy(update=spec), seed, "test-run")


def _split_of_query(prepared: Prepared) -> dict[str, str]:
    return {row["text"]: row["split"] for row in prepared.queries.to_pylist()}


def _groups(prepared: Prepared) -> list[set[str]]:
    """The texts of the queries of each group."""
    found: dict[str, set[str]] = defaultdict(set)
    for row in prepared.queries.to_pylist():
        found[row["group"]].add(row["text"])
    return list(found.values())


def _check_no_leak(prepared: Prepared) -> None:
    """Assert that no topic, question or relevant passage is in two splits."""
    split_of = {row["query_id"]: row["split"] for row in prepared.queries.to_pylist()}
    splits: dict[str, set[str]] = defaultdict(set)
    for row in prepared.queries.to_pylist():
        splits["topic " + normalise(row["topic"])].add(row["split"])
        splits["text " + normalise(row["text"])].add(row["split"])
    passage_split = dict(zip(*(prepared.passages[name].to_pylist() for name in ("passage_id", "split")), strict=True))
    for row in prepared.qrels.to_pylist():
        splits["passage " + row["passage_id"]] |= {split_of[row["query_id"]], passage_split[row["passage_id"]]}
    assert len(splits) > 6
    assert [key for key, found in splits.items() if len(found) > 1] == []


def test_tables_have_their_schemas_and_offsets_are_right() -> None:
    records = _many(8, 3) + _pair("long", "A long one?", "One sentence is here. " * 20, "Long")
    prepared = _prepare(records)
    assert prepared.passages.schema == tables.PASSAGES
    assert prepared.queries.schema == tables.QUERIES
    assert prepared.qrels.schema == tables.QRELS
    text_of = {record.id: record.text for record in records if isinstance(record, Document)}
    rebuilt: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for row in prepared.passages.to_pylist():
        for parent in row["parents"]:
            assert text_of[parent["document_id"]][parent["start"] : parent["end"]] == row["text"]
            rebuilt[parent["document_id"]].append((parent["start"], parent["end"]))
    assert rebuilt.keys() == text_of.keys()
    for key, spans in rebuilt.items():
        covered = "".join(text_of[key][start:end] for start, end in sorted(spans))
        assert "".join(covered.split()) == "".join(text_of[key].split())
    # The long answer repeats itself, so its passages are merged.
    assert prepared.summary["merged_passages"] > 0
    _check_no_leak(prepared)


@given(st.text(), st.text())
@example("Gout", "GOUT  hurts.")
@example("Gout\x85and\u2028acne", "They hurt.")
def test_a_context_is_one_line_and_added_once(title: str, text: str) -> None:
    context = context_of(title, text)
    assert len(context.splitlines()) <= 1
    assert context_of(context, text) == context
    assert context_of(title, f"{context}\n{text}") == ""
    assert context in ("", " ".join(title.split()))


@pytest.mark.parametrize(
    ("title", "text", "starts"),
    [
        ("Gout", "GOUT  hurts.", True),
        ("Gout", "Gout: what it is.", True),
        ("Gout", "# Gout\nIt hurts.", True),
        ("Gout", "Goutweed is a plant.", False),
        ("Gout", "It hurts. Gout is painful.", False),
        ("C++", "C is a language.", False),
        (
            "\u75db\u98ce",
            "\u75db\u98ce\u662f\u4e00\u79cd\u75be\u75c5\u3002",
            True,
        ),
    ],
)
def test_a_context_is_left_out_if_the_text_starts_with_it(title: str, text: str, starts: bool) -> None:
    assert context_of(title, text) == ("" if starts else title)


def test_the_same_input_and_seed_give_the_same_bytes(tmp_path: Path) -> None:
    def digests(seed: int) -> list[str]:
        prepared = _prepare(_many(20, 3), seed, max_train_queries=20)
        named = {
            "c": (prepared.passages, tables.PASSAGES),
            "q": (prepared.queries, tables.QUERIES),
            "r": (prepared.qrels, tables.QRELS),
        }
        for name, (table, schema) in named.items():
            tables.write(tmp_path / name, table, schema)
        return [hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in named]

    assert digests(0) == digests(0)
    assert digests(0) != digests(1)


_WORDS = ("Rest", "ice", "heat", "and", "a", "walk", "help", "it.", "It", "hurts.")


@st.composite
def _random_records(draw: st.DrawFn) -> list[Record]:
    """Documents and questions with equal passages, equal questions and near-duplicates, and three plain topics."""
    texts = draw(st.lists(st.lists(st.sampled_from(_WORDS), min_size=1, max_size=30), min_size=1, max_size=4))
    records = _many(5, 1)
    for number in range(draw(st.integers(0, 12))):
        text = " ".join(draw(st.sampled_from(texts)))
        question = draw(st.sampled_from(["What?", "what?", "Why?", f"Question {number}?"]))
        records += _pair(f"x{number}", question, text, draw(st.sampled_from(["", "X", "Y", f"T{number}"])))
    return records


@given(_random_records(), st.integers(1, 5))
def test_merged_rows_are_complete_over_the_borders_of_parts(records: list[Record], rows: int) -> None:
    everything = _prepare(records)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "PART", rows)
        patch.setattr(spill, "_BATCH", rows)
        prepared = _prepare(records)
    assert prepared == everything
    documents = {record.id: record for record in records if isinstance(record, Document)}
    occurrences = [(document.id, start) for document in documents.values() for start, _ in _spans(document)]
    found = prepared.passages.to_pylist()
    parents = [[(parent["document_id"], parent["start"]) for parent in row["parents"]] for row in found]
    assert sorted(itertools.chain(*parents)) == sorted(occurrences)
    assert [each[0] for each in parents] == sorted((each[0] for each in parents), key=occurrences.index)
    for row, own in zip(found, parents, strict=True):
        assert own == sorted(own, key=occurrences.index)
        texts = [documents[parent["document_id"]].text[parent["start"] : parent["end"]] for parent in row["parents"]]
        assert row["text"] == texts[0]
        assert {passage_id(text) for text in texts} == {row["passage_id"]}
        first = documents[own[0][0]]
        assert (row["title"], row["parents"][0]["topic"]) == (first.title, first.topic)
    asked: dict[str, list[str]] = defaultdict(list)
    for record in records:
        if isinstance(record, Question):
            asked[normalise(record.text)].append(record.id)
    assert {
        normalise(row["text"]): row["question_ids"] for row in prepared.queries.to_pylist()
    }.items() <= asked.items()


def _spans(document: Document) -> list[tuple[int, int]]:
    return split_into_passages(document.text, SPEC.min_chars, SPEC.max_chars)


def test_splits_have_their_shares_of_queries() -> None:
    prepared = _prepare(_many(100, 3), split=SplitSpec(train=0.6, val=0.2, test=0.2))
    assert prepared.summary["queries"] == {"train": 180, "val": 60, "test": 60}
    assert sum(prepared.summary["topics"].values()) == 100
    _check_no_leak(prepared)
    # Three topics of any size are enough.
    assert set(_prepare(_many(3, 10)).summary["queries"].values()) == {10}


def test_equal_questions_are_merged_with_all_their_passages() -> None:
    records = [
        *_many(6, 2),
        *_pair("x", "WHAT  is it?", "First answer here.", "X"),
        *_pair("y", "What is it?", "Another answer.", "Y"),
    ]
    prepared = _prepare(records)
    row = next(row for row in prepared.queries.to_pylist() if row["question_ids"] == ["x", "y"])
    assert (row["text"], row["topic"]) == ("WHAT  is it?", "X")
    assert len([r for r in prepared.qrels.to_pylist() if r["query_id"] == row["query_id"]]) == 2
    assert prepared.summary["merged_questions"] == 1


def test_topics_that_share_a_passage_share_a_split() -> None:
    shared = "See your doctor if it gets worse."
    records = [
        r for n in range(30) for r in _pair(f"{n}", f"Question {n}?", f"{shared if n < 4 else n} is it.", f"T{n}")
    ]
    for seed in range(20):
        prepared = _prepare(records, seed)
        assert len({_split_of_query(prepared)[f"Question {n}?"] for n in range(4)}) == 1
        merged = [row for row in prepared.passages.to_pylist() if len(row["parents"]) == 4]
        assert [parent["topic"] for parent in merged[0]["parents"]] == ["T0", "T1", "T2", "T3"]


def test_a_question_answered_by_another_topic_connects_both() -> None:
    records = _many(30, 2)
    records += [Question(f"x{n}", f"Extra {n}?", topic="Extra", relevant={f"{n}-0": 1}) for n in range(3)]
    for seed in range(20):
        split_of = _split_of_query(_prepare(records, seed))
        assert len({split_of[f"Question {n}-{m}?"] for n in range(3) for m in range(2)}) == 1


def test_unnamed_documents_follow_their_topic_or_go_to_train() -> None:
    text = "This is number {0}, without a question. A second passage of number {0} follows it."
    unnamed: list[Record] = [Document(f"u{n}", text.format(n), topic=f"Topic {n}") for n in range(30)]
    prepared = _prepare([*_many(30, 1), *unnamed, Document("free", "Alone and free.")])
    split_of = _split_of_query(prepared)
    found: dict[str, list[str]] = defaultdict(list)
    for row in prepared.passages.to_pylist():
        found[row["parents"][0]["document_id"]].append(row["split"])
    assert [found[f"u{n}"] for n in range(30)] == [[split_of[f"Question {n}-0?"]] * 2 for n in range(30)]
    assert found["free"] == ["train"]


def test_topics_with_a_common_concept_share_a_split() -> None:
    concepts = {0: ("C1", "C2"), 1: ("C2", "C3"), 2: ("C3",)}
    records = [
        replace(record, concepts=(*concepts.get(int(record.id.split("-")[0]), ()), "general"))
        if isinstance(record, Document)
        else record
        for record in _many(30, 2)
    ]
    for seed in range(20):
        prepared = _prepare(records, seed)
        split_of = _split_of_query(prepared)
        connected = {f"Question {n}-{m}?" for n in range(3) for m in range(2)}
        assert len({split_of[text] for text in connected}) == 1
        groups = _groups(prepared)
        assert len(groups) == 28
        assert connected in groups
        assert prepared.summary["notes"] == [
            "Concepts that join no topics, because each belongs to more than 10% of the 30 topics: 1, such as general "
            "with 30."
        ]


_SENTENCES = [
    "Rest the ankle, keep it raised, and put ice on it for ten minutes every few hours of the first day.",
    "Wear a splint on the wrist at night, and take a painkiller with food for no more than three days in a row.",
]


def test_near_duplicates_of_held_out_passages_are_not_trained_on() -> None:
    first, second = _SENTENCES
    records = [
        *_pair("t1", "Ankle?", f"{first} Then walk.", split="train"),
        *_pair("t2", "Wrist?", second, split="train"),
        *_pair("t3", "Both?", "Something else.", split="train"),
        *_pair("v", "Val?", "Another text.", split="val"),
        *_pair("e1", "Ankles?", first, split="test"),
        *_pair("e2", "Hat?", "Wear a hat.", split="test"),
        Question("t4", "Either?", relevant={"t1": 1, "t3": 1}, split="train"),
        Question("e3", "Wrists?", relevant={"t2": 1}, split="test"),
    ]
    prepared = _prepare(records, max_chars=200)
    text_of = {row["passage_id"]: row["text"] for row in prepared.passages.to_pylist()}
    marked = {
        row["text"]: text_of[row["near_duplicate"]] for row in prepared.passages.to_pylist() if row["near_duplicate"]
    }
    assert marked == {f"{first} Then walk.": first, first: f"{first} Then walk."}
    assert set(_split_of_query(prepared)) == {"Wrist?", "Both?", "Either?", "Val?", "Ankles?", "Hat?", "Wrists?"}
    reason = "training query whose relevant passages are all near-duplicates of held-out passages"
    assert prepared.summary["dropped"] == {reason: 1}
    assert prepared.summary["near_duplicates"] == {
        "train_passages": 1,
        "held_out_passages": 1,
        "queries": {"val": 0, "test": 2},
        "examples": [{"train": f"{first} Then walk."[:120], "held_out": first}],
    }
    affected = splitting.affected_queries(prepared.passages, prepared.queries, prepared.qrels)
    text_of_query = dict(zip(*(prepared.queries[name].to_pylist() for name in ("query_id", "text")), strict=True))
    # The answer to "Wrists?" is itself in the training split, because a training query has it too.
    assert {text_of_query[key] for key in affected["test"]} == {"Ankles?", "Wrists?"}
    assert prepared.summary["notes"] == [
        "Training passages excluded as near-duplicates of held-out passages: 1, such as "
        "'Rest the ankle, keep it raised, and put ice on it for ten mi'.",
        "Held-out queries with a relevant passage that is in the training split or has a near-duplicate there: "
        "0 in val, 2 in test.",
    ]


def test_a_large_group_goes_to_train_with_a_note() -> None:
    records = [
        *_many(1, 60),
        *(r for n in range(40) for r in _pair(f"x{n}", f"Other {n}?", f"Other answer {n}.", f"X{n}")),
    ]
    prepared = _prepare(records)
    assert {split for text, split in _split_of_query(prepared).items() if text.startswith("Question")} == {"train"}
    assert prepared.summary["queries"] == {"train": 70, "val": 15, "test": 15}
    assert "60 of 100 queries (60%)" in prepared.summary["notes"][0]


DISCLAIMER = "This page informs only, and replaces no visit to a doctor."


def _with_disclaimer(pages: int, of: int) -> list[Record]:
    """Questions about ``of`` topics. ``pages`` of the answers end with the same passage."""
    answer = "The answer number {0} has some words of its own, unlike the others."
    return [
        r
        for n in range(of)
        for r in _pair(f"{n}", f"Question {n}?", f"{answer.format(n)}{' ' + DISCLAIMER if n < pages else ''}", f"T{n}")
    ]


def test_boilerplate_is_reported_and_joins_no_topics() -> None:
    prepared = _prepare(_with_disclaimer(30, of=30), min_chars=50, max_chars=80)
    assert prepared.summary["queries"] == {"train": 21, "val": 5, "test": 4}
    assert len(prepared.summary["notes"]) == 1
    assert prepared.summary["notes"][0].startswith("1 passage is boilerplate")
    assert f"in 30 of 30 documents: '{DISCLAIMER}'" in prepared.summary["notes"][0]
    passages = {row["passage_id"]: row for row in prepared.passages.to_pylist()}
    boilerplate = [row for row in passages.values() if row["text"] == DISCLAIMER]
    assert [(row["split"], len(row["parents"]), row["group"]) for row in boilerplate] == [("train", 30, None)]
    assert [row["text"] for row in passages.values() if row["boilerplate"]] == [DISCLAIMER]
    answers = [passages[row["passage_id"]]["text"] for row in prepared.qrels.to_pylist()]
    assert len(answers) == 30
    assert DISCLAIMER not in answers
    _check_no_leak(prepared)


@pytest.mark.parametrize(("pages", "of"), [(9, 60), (10, 250)])
def test_a_passage_below_the_limits_joins_its_topics(pages: int, of: int) -> None:
    for seed in range(5):
        prepared = _prepare(_with_disclaimer(pages, of), seed, min_chars=50, max_chars=80)
        assert len({_split_of_query(prepared)[f"Question {n}?"] for n in range(pages)}) == 1
        assert prepared.summary["notes"] == []


def test_equal_answers_are_not_boilerplate() -> None:
    answer = f"The answer to many questions, which all have the same one. {DISCLAIMER}"
    same = [r for n in range(20) for r in _pair(f"s{n}", f"Same {n}?", answer, f"S{n}")]
    for seed in range(5):
        prepared = _prepare([*same, *_with_disclaimer(0, of=80)], seed, min_chars=50, max_chars=80)
        assert len({_split_of_query(prepared)[f"Same {n}?"] for n in range(20)}) == 1


def test_boilerplate_in_documents_without_questions_is_in_train() -> None:
    documents = [record for record in _with_disclaimer(30, of=30) if isinstance(record, Document)]
    prepared = prepare_tables(documents, PrepareSpec(min_chars=50, max_chars=80), 0, "test-run", generates=True)
    splits = [row["split"] for row in prepared.passages.to_pylist()]
    assert {split: splits.count(split) for split in ("train", "val", "test")} == {"train": 22, "val": 5, "test": 4}
    assert [row["split"] for row in prepared.passages.to_pylist() if row["text"] == DISCLAIMER] == ["train"]


def test_missing_topics_and_notes_of_the_source_are_reported() -> None:
    prepared = _prepare(
        [Note("A file was not read."), *_many(8, 3), *_pair("a", "Why?", "So it is."), *_pair("b", "How?", "So.")]
    )
    assert prepared.summary["notes"] == [
        "A file was not read.",
        "2 of 26 questions have no topic. Each of them is its own topic.",
    ]
    without = [record for n in range(9) for record in _pair(f"{n}", f"Question {n}?", f"Answer number {n}.")]
    assert _prepare(without).summary["notes"] == []


def test_a_passage_has_the_heading_above_it_as_title() -> None:
    text = "About gout, in one sentence. Its signs are pain and heat. Its treatment is rest and ice."
    headings = ((text.index("Its signs"), "Signs"), (text.index("treatment"), "Treatment"))
    prepared = _prepare(
        [*_many(5, 1), Document("d", text, title="Gout", headings=headings)], min_chars=20, max_chars=30
    )
    titles = {row["text"]: row["title"] for row in prepared.passages.to_pylist()}
    assert titles["About gout, in one sentence."] == "Gout"
    assert titles["Its signs are pain and heat."] == "Signs"
    assert titles["Its treatment is rest and ice."] == "Signs", "the heading is within the passage, not above it"


def test_given_splits_hold_and_the_earliest_wins() -> None:
    records = [
        *_pair("a", "Shared?", "Answer of test.", "T", "test"),
        *_pair("b", "shared?", "Answer of train.", "T", "train"),
        *_pair("c", "Val?", "Answer of val.", "T", "val"),
        *_pair("d", "Test?", "Answer of val.", "T", "test"),
        Document("e", "No question names this."),
    ]
    prepared = _prepare(records)
    assert _split_of_query(prepared) == {"shared?": "train", "Val?": "val", "Test?": "test"}
    assert set(prepared.queries["group"].to_pylist()) == {None}
    assert {row["text"]: row["split"] for row in prepared.passages.to_pylist()} == {
        "Answer of test.": "train",
        "Answer of train.": "train",
        "Answer of val.": "val",
        "No question names this.": "train",
    }
    assert prepared.summary["dropped"] == {"the same question is in an earlier split": 1}
    assert prepared.summary["dropped_examples"] == {"the same question is in an earlier split": ["a"]}


def test_the_highest_grade_of_a_passage_wins() -> None:
    records: list[Record] = [
        Document("a", "Same text."),
        Document("b", "same  text."),
        Document("c", "SAME text."),
        *_many(5, 1),
    ]
    prepared = _prepare([*records, Question("q", "Graded?", relevant={"a": 1, "b": 3, "c": 2})])
    query = next(row["query_id"] for row in prepared.queries.to_pylist() if row["text"] == "Graded?")
    assert [row["grade"] for row in prepared.qrels.to_pylist() if row["query_id"] == query] == [3]


def test_training_queries_are_limited() -> None:
    everything, limited = _prepare(_many(40, 2)), _prepare(_many(40, 2), max_train_queries=10)
    assert limited.summary["queries"] == {**everything.summary["queries"], "train": 10}
    assert set(limited.qrels["query_id"].to_pylist()) == set(limited.queries["query_id"].to_pylist())
    assert limited.passages == everything.passages
    assert limited.summary["dropped"] == {"training query beyond prepare.max_train_queries": 46}


def test_dropped_records_are_counted_with_examples() -> None:
    lost = [Question(f"lost{n}", f"Lost {n}?", relevant={"nowhere": 1}) for n in range(5)]
    prepared = _prepare([*_many(5, 1), Dropped("file:7", "bad"), Document("empty", "  "), Question("e", " "), *lost])
    assert prepared.summary["dropped"] == {
        "question names an unknown document": 5,
        "query without a relevant passage": 5,
        "bad": 1,
        "document without text": 1,
        "empty question": 1,
    }
    assert prepared.summary["dropped_examples"]["query without a relevant passage"] == [
        "lost0",
        "lost1",
        "lost2",
    ]


def test_reasons_with_equal_counts_are_in_order_of_occurrence() -> None:
    lost = Question("lost", "Lost?", relevant={"nowhere": 1})
    for questions in ([lost, Question("e", " ")], [Question("e", " "), lost]):
        reasons = list(_prepare([*_many(5, 1), *questions]).summary["dropped"])
        first = ["question names an unknown document", "empty question"]
        assert reasons == [*(first if questions[0] is lost else reversed(first)), "query without a relevant passage"]


def test_a_query_without_a_relevant_passage_joins_no_topics() -> None:
    lost = [Question(f"lost{n}", "Lost?", topic=f"Topic {n}", relevant={"nowhere": 1}) for n in range(5)]
    assert len(_groups(_prepare([*_many(5, 1), *lost]))) == 5


def test_each_query_without_a_topic_counts_as_a_topic() -> None:
    records = _many(5, 1) + [r for n in range(10) for r in _pair(f"x{n}", f"Other {n}?", f"Other answer number {n}.")]
    assert sum(_prepare(records).summary["topics"].values()) == 15


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "the corpus is empty: no document with text was read. Check source.path"),
        ([Dropped("f:1", "bad")], r"the corpus is empty: .*\(dropped: bad: 1, such as f:1\)"),
        (
            [Document("a", "Text."), Question("q", "Why?", relevant={"b": 1})],
            r"no query has a relevant passage \(dropped: que",
        ),
        (_many(2, 5), r"no query is in val or test: the 10 queries form fewer than three groups"),
        (_pair("a", "Why?", "So.", split="train"), r"no query is in val or test, and the data set assigns"),
        (_pair("a", "A?", "So.", split="train") + _pair("b", "B?", "So."), "question 'b' has no split"),
        (_many(4, 1) + _many(1, 1), "document id '0-0' occurs twice"),
        (_many(4, 1) + _many(1, 1)[1:], "question id '0-0' occurs twice"),
    ],
)
def test_unusable_input_is_rejected_with_advice(records: list[Record], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _prepare(records)


@pytest.mark.parametrize("grade", [0, -1, 128, 2**40, 10**30])
def test_grades_out_of_range_are_rejected(grade: int) -> None:
    graded = Question("q", "Graded?", relevant={"nowhere": 10**30, "0-0": grade})
    with pytest.raises(UserError, match=rf"question 'q': grade {grade} of '0-0'\. Use grades from 1 to 127\."):
        _prepare([*_many(5, 1), graded])


class _Recorder(NullProgress):
    """Records progress."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.counted = 0

    def advance(self, n: int = 1) -> None:
        self.counted += n

    def message(self, text: str) -> None:
        self.messages.append(text)


def _context(settings: dict[str, Any], folder: Path) -> tuple[StepContext, _Recorder]:
    progress, store = _Recorder(), open_store(str(folder / "store"))
    spec = RunSpec.model_validate({"name": "run", **settings})
    return StepContext(spec, Step("prepare"), store, "runs/run", {}, "scratch", progress), progress


def test_the_stage_writes_its_tables_and_reports_counts(tmp_path: Path) -> None:
    rows = "".join(f'{{"question": "Question {n}?", "answer": "Answer {n}."}}\n' for n in range(20))
    (tmp_path / "data.jsonl").write_text(rows + '{"question": "Why?", "answer": ""}\n')
    source = {"kind": "jsonl", "path": str(tmp_path / "data.jsonl")}
    context, progress = _context({"source": source}, tmp_path)
    summary = prepare.run(context)
    assert summary["queries"] == {"train": 14, "val": 3, "test": 3}
    assert tables.read(context.output("corpus/passages.parquet"), tables.PASSAGES).num_rows == 20
    assert tables.read(context.output("queries/queries.parquet"), tables.QUERIES).num_rows == 20
    assert tables.read(context.output("queries/qrels.parquet"), tables.QRELS).num_rows == 20
    assert progress.counted == 41
    assert progress.messages == [
        "20 documents, 20 passages; queries: 14 train, 3 val, 3 test",
        f"left out 1: question without an answer (for example {tmp_path / 'data.jsonl'}:21)",
    ]
    assert [path.name for path in context.scratch.iterdir()] == ["outputs"], "the texts of the first pass are deleted"
    opened = [path.readlink() for path in Path("/proc/self/fd").glob("*") if path.is_symlink()]
    assert [path for path in opened if path.is_relative_to(context.scratch / "texts")] == [], (
        "an open file would keep its disk space"
    )


def test_texts_are_deleted_if_the_input_is_invalid(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"question": "Question?", "answer": "Answer."}\n')
    source = {"kind": "jsonl", "path": str(tmp_path / "data.jsonl")}
    context, _ = _context({"source": source}, tmp_path)
    with pytest.raises(UserError, match="no query is in val or test"):
        prepare.run(context)
    assert list(context.scratch.iterdir()) == []


def test_prepare_seed_alone_decides_the_split(tmp_path: Path) -> None:
    rows = "".join(f'{{"question": "Question {n}?", "answer": "Answer {n}."}}\n' for n in range(20))
    (tmp_path / "data.jsonl").write_text(rows)
    source = {"kind": "jsonl", "path": str(tmp_path / "data.jsonl")}

    def split_with(seed: int, prepare_seed: int | None) -> dict[str, str]:
        context, _ = _context({"source": source, "seed": seed, "prepare": {"seed": prepare_seed}}, tmp_path)
        prepare.run(context)
        queries = tables.read(context.output("queries/queries.parquet"), tables.QUERIES)
        return dict(zip(queries["text"].to_pylist(), queries["split"].to_pylist(), strict=True))

    assert split_with(0, 1) == split_with(2, 1) == split_with(1, None)
    assert split_with(0, 1) != split_with(0, None) == split_with(1, 0)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published MedQuAD is not on this machine")
def test_published_medquad_is_split_without_leaks() -> None:
    spec = MedquadSource(path=str(next(PUBLISHED.glob("*.tar.xz"))))
    records = list(open_source(spec).records())
    prepared = prepare_tables(records, PrepareSpec(), 0, "medquad")
    _check_no_leak(prepared)
    summary = prepared.summary
    assert summary["documents"] == 14_809
    assert summary["longest_passage"] <= 1000
    assert all(count > 0 for count in summary["queries"].values())
    total = sum(summary["queries"].values())
    # Common concepts join more than 70% of the queries into one group, which is in train.
    assert abs(summary["queries"]["test"] / total - 0.15) < 0.02
    text_of = {record.id: record.text for record in records if isinstance(record, Document)}
    seen: dict[str, int] = defaultdict(int)
    for row in prepared.passages.to_pylist():
        for parent in row["parents"]:
            text = text_of[parent["document_id"]][parent["start"] : parent["end"]]
            assert normalise(text) == normalise(row["text"])
            seen[parent["document_id"]] += len("".join(text.split()))
    assert seen == {key: len("".join(text.split())) for key, text in text_of.items()}


def _documents(topics: int, each: int, topic: str = "Topic {}") -> list[Record]:
    return [
        Document(f"{t}-{n}", f"Passage {t}-{n} is here. " * 4, topic=topic.format(t))
        for t in range(topics)
        for n in range(each)
    ]


@pytest.mark.parametrize("topic", ["Topic {}", ""])
def test_documents_alone_are_split_by_topic_or_document(topic: str) -> None:
    prepared = prepare_tables(_documents(20, 3, topic), SPEC, 0, "test-run", generates=True)
    assert prepared.queries.num_rows == prepared.qrels.num_rows == 0
    splits: dict[str, set[str]] = defaultdict(set)
    for row in prepared.passages.to_pylist():
        for parent in row["parents"]:
            splits[parent["topic"] or parent["document_id"]].add(row["split"])
    assert len(splits) == (20 if topic else 60)
    assert len({row["group"] for row in prepared.passages.to_pylist()}) == len(splits)
    assert all(len(found) == 1 for found in splits.values())
    counts = prepared.summary["passage_splits"]
    assert sum(counts.values()) == prepared.passages.num_rows
    assert counts["train"] > 2 * counts["val"] > 0
    assert counts["train"] > 2 * counts["test"] > 0


def test_documents_alone_need_generate() -> None:
    with pytest.raises(UserError, match=r"no query has a relevant passage.*set generate"):
        _prepare(_documents(20, 3))


def test_documents_alone_need_three_groups() -> None:
    with pytest.raises(UserError, match="fewer than three groups"):
        prepare_tables(_documents(2, 9), SPEC, 0, "test-run", generates=True)
    records = [*_documents(4, 1), *(Document(f"x{n}", f"Other text number {n}.", topic="Big") for n in range(20))]
    prepared = prepare_tables(records, SPEC, 0, "test-run", generates=True)
    assert "'Big'" in prepared.summary["notes"][0]
    assert all(prepared.summary["passage_splits"].values())


def test_documents_of_boilerplate_alone_are_rejected() -> None:
    passages = [f"Passage number {n} is in many documents." for n in range(6)]
    records = [Document(f"d{n}", "\n\n".join(chosen)) for n, chosen in enumerate(itertools.combinations(passages, 3))]
    with pytest.raises(UserError, match="the 0 passages other than boilerplate form fewer than three groups"):
        prepare_tables(records, SPEC, 0, "test-run", generates=True)
