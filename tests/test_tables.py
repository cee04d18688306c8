"""Passages in context: the form that every model reads, from prepare to search."""

import json
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrite import tables
from pyrite.config import load
from pyrite.executors.step import open_run, run_step
from pyrite.plan import Step
from pyrite.progress import NullProgress
from pyrite.store import open_store
from small_data import KINDS, TOPICS
from stub_judge import MODEL, Stub

Pyrite = Callable[..., subprocess.CompletedProcess[str]]
_TEXT = st.text(st.characters(codec="utf-8"), max_size=5)


@given(st.lists(st.tuples(_TEXT, _TEXT), max_size=9), st.integers(1, 4), st.integers(1, 11))
def test_blocks_of_any_size_are_the_passages_in_context(
    tmp_path_factory: pytest.TempPathFactory, passages: list[tuple[str, str]], group: int, block: int
) -> None:
    rows = [{"passage_id": str(i), "context": context, "text": text} for i, (context, text) in enumerate(passages)]
    table = pa.Table.from_pylist(rows, tables.PASSAGES)
    path = tmp_path_factory.mktemp("blocks") / "passages.parquet"
    pq.write_table(table, path, row_group_size=group)
    blocks = list(tables.read_in_blocks(path)(block))
    assert all(len(each) == block for each in blocks[:-1])
    assert [text for each in blocks for text in each] == tables.in_context(table)
    assert tables.in_context(table) == [f"{context}\n{text}" if context else text for context, text in passages]
    bare = tables.read_in_blocks(path, context=False)(block)
    assert [text for each in bare for text in each] == [text for _, text in passages]


@pytest.mark.parametrize("context", ["title", "none"])
def test_models_and_search_read_each_title_once(context: str, pyrite: Pyrite, tiny_model: Path, tmp_path: Path) -> None:
    """The passages do not name their subject: without its title, each fits every topic."""
    rows = [
        {
            "question": question.format(topic),
            "answer": answer.format("it", f"{topic[:4]}{number}", f"{topic[-3:]}{kind[:3]}"),
            "topic": topic,
            "title": f"Notes  on\n{topic}",
        }
        for number, topic in enumerate(TOPICS)
        for kind, (question, answer) in KINDS.items()
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line_of = {row["answer"]: f"Notes on {row['topic']}" for row in rows}
    path = tmp_path / "small.yaml"
    path.write_text(
        f"""\
source: {{kind: jsonl, path: rows.jsonl, topic: topic, title: title}}
model: {{base: {tiny_model}}}
iterations: 1
prepare: {{min_chars: 40, max_chars: 400, context: {context}}}
retrieve: {{range_max: 10}}
judge: {{kind: llm, model: {MODEL}, shards: 1}}
mine: {{num_negatives: 2, relative_margin: null}}
"""
    )

    def expected(answer: str) -> str:
        return f"{line_of[answer]}\n{answer}" if context == "title" else answer

    with Stub() as stub:
        run = open_run(load(path, [f"resources.judge_urls=[{stub.url}]"]), open_store(str(tmp_path / "store")))
        run.save_spec()
        for step in (Step("prepare"), Step("embed", 0, 0), Step("retrieve", 1), Step("judge", 1, 0), Step("mine", 1)):
            run_step(run, step, NullProgress())
        judged = {passage for _, passage in stub.graded}
    in_context = {expected(answer) for answer in line_of}
    assert judged
    assert judged <= in_context

    examples = pq.read_table(tmp_path / "store/runs/small/iterations/1/examples.parquet").to_pylist()
    trained = {row[name] for row in examples for name in ("positive", "negative_1", "negative_2")}
    assert trained
    assert trained <= in_context

    from sentence_transformers import SentenceTransformer

    passages = pq.read_table(tmp_path / "store/runs/small/corpus/passages.parquet")
    (block,) = (tmp_path / "store/embeddings").rglob("*.npy")
    model = SentenceTransformer(str(tiny_model), device="cpu")
    texts = [expected(text) for text in passages["text"].to_pylist()]
    similarity = np.load(block) @ model.encode(texts, normalize_embeddings=True).T
    assert np.diag(similarity) == pytest.approx(1, abs=0.001)

    answer = rows[4]["answer"]
    found = pyrite("search", tiny_model, expected(answer), "--run", "small", "--top", 1, COLUMNS="1000")
    assert found.returncode == 0, found.stderr
    assert found.stdout.count(answer) == 2, "once for each model"
    assert found.stdout.count(line_of[answer]) == (2 if context == "title" else 0)


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 5))
def test_parts_are_row_groups_of_the_same_table(grades: list[int], rows: int) -> None:
    ids = [f"{n}" for n in range(len(grades))]
    table = pa.table({"query_id": ids, "passage_id": ids, "grade": grades}, tables.QRELS)
    with tempfile.TemporaryDirectory() as folder:
        together, one, parts = (Path(folder) / name for name in ("together", "one", "parts"))
        tables.write(together, table, tables.QRELS)
        tables.write_parts(one, [table], tables.QRELS)
        assert one.read_bytes() == together.read_bytes()
        starts = range(0, len(grades), rows)
        tables.write_parts(parts, (table.slice(start, rows) for start in starts), tables.QRELS)
        assert tables.read(parts, tables.QRELS) == table
        assert pq.read_metadata(parts).num_row_groups == len(starts)


def test_a_part_is_one_row_group(tmp_path: Path) -> None:
    """Regression: Parquet's default is at most 1,048,576 rows, and readers of parts take a row group for a part."""
    part = pa.table({"score": pa.array(np.zeros(1_100_000, np.float32))})
    tables.write_parts(tmp_path / "parts.parquet", [part, part[:3]], part.schema)
    assert [each.num_rows for each in tables.read_parts(tmp_path / "parts.parquet", part.schema)] == [1_100_000, 3]
