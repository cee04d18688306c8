"""From the examples' file to batches: what mining found out is what training goes by."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from pyrite import tables
from pyrite.plan import Step
from pyrite.progress import NullProgress
from pyrite.spec import RunSpec
from pyrite.stages import mine
from pyrite.stages.context import StepContext
from pyrite.stages.finetune import read_examples
from pyrite.stages.mine import protect_near_duplicates
from pyrite.store import FolderStore, checksum_file
from pyrite.training.batching import ConflictFreeSampler
from pyrite.training.mining import shingles

ANSWER = "Rest the ankle, keep it raised, and put ice on it for ten minutes every few hours of the first day."
TEXTS = {"a": ANSWER, "b": f"{ANSWER} Then walk.", "x": "Wear a hat in the sun.", "y": "Drink water on hot days."}


def row(query: str, positive: str, negative: str, group: str) -> dict[str, Any]:
    return {
        **{"query_id": query, "positive_id": positive, "negative_ids": [negative], "relevant_ids": [positive]},
        **{
            "kind": "hard",
            "anchor": query,
            "positive": TEXTS.get(positive, positive),
            "negative_1": TEXTS.get(negative, negative),
        },
        **{"label": [4.0, 1.0], "iteration": 1, "group": group},
    }


def batches(rows: list[dict[str, Any]], folder: Path, size: int) -> list[list[str]]:
    """The queries of each batch, as training reads them from a file."""
    path = folder / "examples.parquet"
    tables.write(path, rows, tables.examples(1))
    dataset, read = read_examples(path, False, 1, folder / "cache")
    return [[read[i].query_id for i in batch] for batch in ConflictFreeSampler(dataset, size, read, seed=0)]


def test_the_groups_of_mining_stand_together_in_training(tmp_path: Path) -> None:
    rows = [row(f"q{i}", f"p{i}", f"n{i}", f"1-{i % 8}") for i in range(16)]
    assert sorted(tuple(sorted(batch)) for batch in batches(rows, tmp_path, 2)) == sorted(
        tuple(sorted((f"q{i}", f"q{i + 8}"))) for i in range(8)
    )


def test_a_near_duplicate_of_an_answer_is_no_negative_of_its_batch(tmp_path: Path) -> None:
    """The bug: the same answer, worded with a sentence more, pushed away from the question that it answers."""
    rows = [row("q0", "a", "x", "1-0"), row("q1", "b", "y", "1-0"), row("q2", "y", "x", "1-1")]
    found = protect_near_duplicates(rows, lambda passage: shingles(TEXTS[passage]))
    assert [r["relevant_ids"] for r in found] == [["a", "b"], ["a", "b"], ["y"]]
    for batch in batches(found, tmp_path, 3):
        assert not {"q0", "q1"} <= set(batch)


def mined(folder: Path, earlier: list[dict[str, Any]], *graded: list[tuple[str, str, int]]) -> list[dict[str, Any]]:
    """The examples of iteration 2, from those of iteration 1 and (query, passage, grade), best first, of both."""
    store, made = FolderStore(folder / "store"), list[dict[str, Any]]()

    def put(key: str, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
        path = store.local_path(f"runs/r/{key}")
        tables.write(path, rows, schema)
        checksum = checksum_file(path)
        made.append({"key": key, "bytes": checksum.size, "sha256": checksum.sha256})

    splits = {"q0": "train", "q1": "train", "v": "val", "t": "test"}
    put("queries/queries.parquet", [{"query_id": q, "text": q, "split": s} for q, s in splits.items()], tables.QUERIES)
    put("queries/qrels.parquet", [], tables.QRELS)
    passages = sorted({passage for each in graded for _, passage, _ in each})
    put("corpus/passages.parquet", [{"passage_id": c, "text": TEXTS.get(c, c)} for c in passages], tables.PASSAGES)
    put("iterations/1/examples.parquet", earlier, tables.examples(1))
    for iteration, each in enumerate(graded, 1):
        rows = [
            {"query_id": q, "passage_id": c, "grade": g, "expected": g, "rank": rank, "score": 1 / rank}
            for rank, (q, c, g) in enumerate(each, 1)
        ]
        put(f"iterations/{iteration}/candidates.parquet", rows, tables.CANDIDATES)
        put(f"iterations/{iteration}/judgments/shard-00000.parquet", rows, tables.JUDGMENTS)
    settings = {"judge": {"shards": 1}, "mine": {"relative_margin": None, "accumulate": True}}
    spec = RunSpec.model_validate({"name": "r", "source": {"kind": "sample"}, **settings})
    ctx = StepContext(spec, Step("mine", 2), store, "runs/r", {"all": {"outputs": made}}, "scratch", NullProgress())
    summary = mine.run(ctx)
    written = tables.read(ctx.output("iterations/2/examples.parquet"), tables.examples(1))
    found: list[dict[str, Any]] = written.to_pylist()
    assert summary["examples"] == len(found)
    assert summary["accumulated"] == sum(each["iteration"] == 1 for each in found)
    return found


def test_what_was_ever_graded_relevant_is_no_negative_of_a_later_batch_nor_of_an_earlier_row(tmp_path: Path) -> None:
    """The bug: a passage that the model has lost sight of is pushed away from a question that it was graded to answer,
    since only this iteration's candidates were looked at; and what is learnt now does not reach rows of before."""
    found = mined(
        tmp_path,
        [row("q0", "p", "x", "1-0"), row("q0", "p", "b", "1-0"), row("q1", "r", "y", "1-1")],
        [("q0", "p", 4), ("q0", "seen once", 3), ("q0", "x", 1), ("q0", "b", 1), ("q1", "r", 4), ("q1", "y", 1)],
        # a is nearly b, so b was no negative of q0 after all; x is one of q1's answers
        [("q0", "y", 1), ("q0", "p", 4), ("q0", "a", 3), ("q1", "seen once", 1), ("q1", "r", 4), ("q1", "x", 3)],
    )
    assert {(each["query_id"], each["negative_ids"][0]): each["relevant_ids"] for each in found} == {
        ("q0", "x"): ["a", "b", "p", "seen once"],
        ("q0", "y"): ["a", "b", "p", "seen once"],
        ("q1", "y"): ["r", "x"],
        ("q1", "seen once"): ["r", "x"],
    }
