"""From the examples' file to batches: what mining found out is what training goes by."""

from pathlib import Path
from typing import Any

from pyrite import tables
from pyrite.stages.finetune import read_examples
from pyrite.stages.mine import shielded
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
    dataset, read = read_examples(path, "multiple-negatives", 1, folder / "cache")
    return [[read[i].query_id for i in batch] for batch in ConflictFreeSampler(dataset, size, read, seed=0)]


def test_the_groups_of_mining_stand_together_in_training(tmp_path: Path) -> None:
    rows = [row(f"q{i}", f"p{i}", f"n{i}", f"1-{i % 8}") for i in range(16)]
    assert sorted(tuple(sorted(batch)) for batch in batches(rows, tmp_path, 2)) == sorted(
        tuple(sorted((f"q{i}", f"q{i + 8}"))) for i in range(8)
    )


def test_a_near_duplicate_of_an_answer_is_no_negative_of_its_batch(tmp_path: Path) -> None:
    """The bug: the same answer, worded with a sentence more, pushed away from the question that it answers."""
    rows = [row("q0", "a", "x", "1-0"), row("q1", "b", "y", "1-0"), row("q2", "y", "x", "1-1")]
    found = shielded(rows, lambda chunk: shingles(TEXTS[chunk]))
    assert [r["relevant_ids"] for r in found] == [["a", "b"], ["a", "b"], ["y"]]
    for batch in batches(found, tmp_path, 3):
        assert not {"q0", "q1"} <= set(batch)
