"""The answer key as judge, and how pairs fall into shards."""

import asyncio
from collections import Counter

import pyarrow as pa

from pyrite import tables
from pyrite.judges import Pair, open_judge
from pyrite.spec import RunSpec, SampleSource
from pyrite.stages.judge import shard_of


def place(topic: str, kind: str) -> dict[str, object]:
    return {"document_id": "d", "start": 0, "end": 1, "topic": topic, "type": kind}


def test_grades_follow_the_answer_key() -> None:
    queries = pa.Table.from_pylist(
        [
            {"query_id": "q", "text": "?", "topic": "Gout", "type": "symptoms", "split": "train", "question_ids": []},
            {"query_id": "bare", "text": "?", "topic": "", "type": "", "split": "train", "question_ids": []},
        ],
        tables.QUERIES,
    )
    parents = {
        "own": [place("gout", "symptoms")],
        "elsewhere": [place("asthma", "causes"), place("GOUT", "symptoms")],
        "topic": [place("gout ", "treatment"), place("asthma", "symptoms")],
        "other": [place("asthma", "symptoms")],
        "bare": [place("", "")],
    }
    rows = [{"chunk_id": c, "text": c, "title": "", "split": "train", "parents": p} for c, p in parents.items()]
    chunks = pa.Table.from_pylist(rows, tables.CHUNKS)
    qrels = pa.Table.from_pylist([{"query_id": "q", "chunk_id": "own", "grade": 1}], tables.QRELS)
    judge = open_judge(RunSpec(name="r", source=SampleSource()), queries, chunks, qrels)
    pairs = [Pair("q", chunk) for chunk in parents] + [Pair("bare", "bare")]
    graded = [asyncio.run(judge.grade(pair)) for pair in pairs]
    assert [judgment.grade for judgment in graded] == [4, 3, 2, 1, 1, 1]
    assert [judgment.expected for judgment in graded] == [4, 3, 2, 1, 1, 1]
    assert all(sum(judgment.distribution) == 1 for judgment in graded)


def test_shards_are_even_and_the_same_everywhere() -> None:
    counts = Counter(shard_of(f"query-{i}", 4) for i in range(4000))
    assert min(counts.values()) > 900
    assert shard_of("query-1", 4) == 3
