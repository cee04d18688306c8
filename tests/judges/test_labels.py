"""The labels judge, and the assignment of queries to shards."""

import asyncio
from collections import Counter

import pyarrow as pa

from pyrite import tables
from pyrite.identity import query_id
from pyrite.judges import Pair, open_judge
from pyrite.sources.base import Document, Question
from pyrite.spec import MineSpec, PrepareSpec, RunSpec, SampleSource
from pyrite.stages.judge import shard_of
from pyrite.stages.prepare import prepare_tables


def parent(topic: str, kind: str) -> dict[str, object]:
    return {"document_id": "d", "start": 0, "end": 1, "topic": topic, "type": kind}


def test_grades_follow_labels_topics_and_types() -> None:
    queries = pa.Table.from_pylist(
        [
            {"query_id": "q", "text": "?", "topic": "Gout", "type": "symptoms", "split": "train", "question_ids": []},
            {"query_id": "bare", "text": "?", "topic": "", "type": "", "split": "train", "question_ids": []},
        ],
        tables.QUERIES,
    )
    parents = {
        "own": [parent("gout", "symptoms")],
        "elsewhere": [parent("asthma", "causes"), parent("GOUT", "symptoms")],
        "topic": [parent("gout ", "treatment"), parent("asthma", "symptoms")],
        "other": [parent("asthma", "symptoms")],
        "bare": [parent("", "")],
    }
    defaults = {"title": "", "context": "", "split": "train"}
    rows = [{"passage_id": c, "text": c, "parents": p, **defaults} for c, p in parents.items()]
    passages = pa.Table.from_pylist(rows, tables.PASSAGES)
    qrels = pa.Table.from_pylist([{"query_id": "q", "passage_id": "own", "grade": 1}], tables.QRELS)
    judge = open_judge(RunSpec(name="r", source=SampleSource()), queries, passages, qrels)
    pairs = [Pair("q", passage) for passage in parents] + [Pair("bare", "bare"), Pair("bare", "own")]
    graded = [asyncio.run(judge.grade(pair)) for pair in pairs]
    assert [judgment.grade for judgment in graded] == [4, 3, 2, 1, 1, 1, 1]
    expected = [judgment.expected for judgment in graded]
    assert expected[:4] == [4, 3, 2, 1]
    assert all(MineSpec().violating_grade < each < 2 for each in expected[4:]), "unknown topics: it may be relevant"
    assert all(sum(judgment.distribution) == 1 for judgment in graded)


def test_a_query_matches_all_its_topics_and_types() -> None:
    def row(key: str, topic: str, kind: str) -> Document:
        return Document(key, f"{topic}, {kind}: {key}", topic=topic, type=kind)

    documents = [row("0", "gout", "causes"), row("1", "gout", "symptoms"), row("2", "asthma", "causes")]
    questions = [Question(d.id, "What is it?", topic=d.topic, type=d.type, relevant={d.id: 1}) for d in documents]
    others = [row(f"other {label}", *label.split()) for label in ("gout symptoms", "asthma causes", "asthma symptoms")]
    filling = [Question(f"f{n}", f"And {n}?", topic=f"t{n}", relevant={f"d{n}": 1}) for n in range(3)]
    answers = [row(f"d{n}", f"t{n}", "causes") for n in range(3)]
    prepared = prepare_tables([*documents, *questions, *others, *filling, *answers], PrepareSpec(), 0, "r")
    judge = open_judge(RunSpec(name="r", source=SampleSource()), prepared.queries, prepared.passages, prepared.qrels)
    query = query_id("What is it?")
    graded = {
        passage["parents"][0]["document_id"]: asyncio.run(judge.grade(Pair(query, passage["passage_id"]))).grade
        for passage in prepared.passages.to_pylist()
    }
    assert graded == {
        **{"0": 4, "1": 4, "2": 4},
        **{"other gout symptoms": 3, "other asthma causes": 3, "other asthma symptoms": 2},
        **{"d0": 1, "d1": 1, "d2": 1},
    }


def test_shards_are_even_and_deterministic() -> None:
    counts = Counter(shard_of(f"query-{i}", 4) for i in range(4000))
    assert min(counts.values()) > 900
    assert shard_of("query-1", 4) == 3
