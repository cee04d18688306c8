"""From mined examples to training batches."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pyrite import tables
from pyrite.errors import UserError
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
        "query_id": query,
        "positive_id": positive,
        "negative_ids": [negative],
        "relevant_ids": [positive],
        "kind": "hard",
        "anchor": query,
        "positive": TEXTS.get(positive, positive),
        "negative_1": TEXTS.get(negative, negative),
        "label": [4.0, 1.0],
        "iteration": 1,
        "group": group,
    }


def batches(rows: list[dict[str, Any]], folder: Path, size: int) -> list[list[str]]:
    """The queries of each batch, as training reads them from a file."""
    path = folder / "examples.parquet"
    tables.write(path, rows, tables.examples(1))
    dataset, read = read_examples(path, False, 1, folder / "cache")
    return [[read[i].query_id for i in batch] for batch in ConflictFreeSampler(dataset, size, read, seed=0)]


def test_a_mined_group_shares_a_training_batch(tmp_path: Path) -> None:
    rows = [row(f"q{i}", f"p{i}", f"n{i}", f"1-{i % 8}") for i in range(16)]
    assert sorted(tuple(sorted(batch)) for batch in batches(rows, tmp_path, 2)) == sorted(
        tuple(sorted((f"q{i}", f"q{i + 8}"))) for i in range(8)
    )


def test_near_duplicates_of_a_positive_are_not_in_its_batch(tmp_path: Path) -> None:
    """Regression: an answer with one more sentence was an in-batch negative of the question that it answers."""
    rows = [row("q0", "a", "x", "1-0"), row("q1", "b", "y", "1-0"), row("q2", "y", "x", "1-1")]
    protected = protect_near_duplicates(rows, lambda passage: shingles(TEXTS[passage]))
    assert [r["relevant_ids"] for r in protected] == [["a", "b"], ["a", "b"], ["y"]]
    for batch in batches(protected, tmp_path, 3):
        assert not {"q0", "q1"} <= set(batch)


def mine_iteration_2(
    folder: Path,
    earlier: list[dict[str, Any]],
    *graded: list[tuple[str, str, int]],
    known: Sequence[tuple[str, str]] = (),
    title_of: Mapping[str, str] | None = None,
    loss: str = "multiple-negatives",
    **settings: Any,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The examples and the summary of iteration 2.

    Args:
        earlier: the examples of iteration 1.
        graded: for both iterations, (query, passage, grade) by rank.
        known: (query, passage) of the known answers.
        title_of: titles of passages. Those of iteration 2 without a grade are passages of the test split.
        loss: finetune.loss.
        settings: of mine.
    """
    title_of, schema = title_of or {}, tables.examples(settings.get("num_negatives", 1))
    store, outputs = FolderStore(folder / "store"), list[dict[str, Any]]()

    def put(key: str, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
        path = store.local_path(f"runs/r/{key}")
        tables.write(path, rows, schema)
        checksum = checksum_file(path)
        outputs.append({"key": key, "bytes": checksum.size, "sha256": checksum.sha256})

    splits = {"q0": "train", "q1": "train", "v": "val", "t": "test"}
    put("queries/queries.parquet", [{"query_id": q, "text": q, "split": s} for q, s in splits.items()], tables.QUERIES)
    qrels = [{"query_id": query, "passage_id": passage, "grade": 1} for query, passage in known]
    put("queries/qrels.parquet", qrels, tables.QRELS)
    trained = {passage for each in graded for _, passage, _ in each}
    texts = [
        {
            "passage_id": c,
            "text": TEXTS.get(c, c),
            "title": title_of.get(c, ""),
            "context": title_of.get(c, ""),
            "split": "train" if c in trained else "test",
        }
        for c in sorted({*trained, *title_of})
    ]
    put("corpus/passages.parquet", texts, tables.PASSAGES)
    put("iterations/1/examples.parquet", earlier, schema)
    for iteration, each in enumerate(graded, 1):
        rows = [
            {"query_id": q, "passage_id": c, "grade": g, "expected": g, "rank": rank, "score": 1 / rank}
            for rank, (q, c, g) in enumerate(each, 1)
        ]
        put(f"iterations/{iteration}/candidates.parquet", rows, tables.CANDIDATES)
        put(f"iterations/{iteration}/judgments/shard-00000.parquet", rows, tables.JUDGMENTS)
    mining = {"relative_margin": None, "accumulate": True, **settings}
    run = {
        "name": "r",
        "source": {"kind": "sample"},
        "judge": {"shards": 1},
        "mine": mining,
        "finetune": {"loss": loss},
    }
    spec = RunSpec.model_validate(run)
    ctx = StepContext(spec, Step("mine", 2), store, "runs/r", {"all": {"outputs": outputs}}, "scratch", NullProgress())
    summary = mine.run(ctx)
    written = tables.read(ctx.output("iterations/2/examples.parquet"), schema)
    examples: list[dict[str, Any]] = written.to_pylist()
    assert summary["examples"] == len(examples)
    assert summary["accumulated"] == sum(each["iteration"] == 1 for each in examples)
    assert summary.get("title_pairs", 0) == sum(each["kind"] == "title" for each in examples)
    return examples, summary


def test_grades_of_all_iterations_protect_all_examples(tmp_path: Path) -> None:
    """Grades of earlier iterations apply to new examples, and new grades to earlier examples.

    Regression: a passage became a negative although an earlier iteration had graded it as relevant, and examples of
    earlier iterations ignored new grades.
    """
    examples, _ = mine_iteration_2(
        tmp_path,
        [row("q0", "p", "x", "1-0"), row("q0", "p", "b", "1-0"), row("q1", "r", "y", "1-1")],
        [("q0", "p", 4), ("q0", "seen once", 3), ("q0", "x", 1), ("q0", "b", 1), ("q1", "r", 4), ("q1", "y", 1)],
        # a is a near-duplicate of b, so b was a false negative of q0; x turns out to answer q1
        [("q0", "y", 1), ("q0", "p", 4), ("q0", "a", 3), ("q1", "seen once", 1), ("q1", "r", 4), ("q1", "x", 3)],
    )
    assert {(each["query_id"], each["negative_ids"][0]): each["relevant_ids"] for each in examples} == {
        ("q0", "x"): ["a", "b", "p", "seen once"],
        ("q0", "y"): ["a", "b", "p", "seen once"],
        ("q1", "y"): ["r", "x"],
        ("q1", "seen once"): ["r", "x"],
    }


def test_known_answers_of_qrels_are_the_positives(tmp_path: Path) -> None:
    """They count as grade 4, and an accepted question is not lost because the judge grades its own passage 3."""
    ranked = [("q0", "judged", 4), ("q0", "x", 1), ("q0", "own", 3), ("q1", "y", 1), ("q1", "r", 4)]
    examples, summary = mine_iteration_2(tmp_path, [], ranked, ranked, known=[("q0", "own")])
    assert [(each["query_id"], each["positive_id"], each["label"]) for each in examples] == [
        ("q0", "own", [4.0, 1.0]),
        ("q1", "r", [4.0, 1.0]),
    ]
    assert examples[0]["relevant_ids"] == ["judged", "own"]
    counts = ("hard", "easy", "outranked", "known_positives", "judged_positives")
    assert [summary[name] for name in counts] == [2, 0, 2, 1, 1]


RANKED = [("q0", "a", 4), ("q0", "x", 1), ("q1", "y", 4), ("q1", "x", 1)]
TITLES = {"a": "Ankles", "near a": "Ankles", "x": "Hats", "y": "Water", "held out": "Wrists", "t": "T", "u": "t?"}


def test_title_pairs_cover_the_corpus_but_no_held_out_query(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The title is the query, and passages of test topics without their title are positives."""
    monkeypatch.setitem(TEXTS, "near a", f"{ANSWER} Then run.")
    earlier = [row("title", "x", "a", "1-0") | {"kind": "title"}]
    examples, summary = mine_iteration_2(tmp_path, earlier, RANKED, RANKED, title_of=TITLES, title_pairs=9)
    titles = {each["positive_id"]: each for each in examples if each["kind"] == "title"}
    assert {(each["anchor"], each["positive"]) for each in titles.values()} == {
        (title, TEXTS.get(passage, passage)) for passage, title in TITLES.items() if title.casefold().strip("?") != "t"
    }
    assert titles["a"]["relevant_ids"] == ["a", "near a"]
    assert all(each["iteration"] == 2 for each in titles.values()), "those of earlier iterations are not repeated"
    assert len({each["group"] for each in examples}) == len(examples)
    assert (summary["title_pairs"], summary["title_pairs_of_held_out_queries"]) == (5, 2)
    of_query = next(each for each in examples if each["query_id"] == "q0")
    assert of_query["relevant_ids"] == ["a", "near a"], "a near-duplicate that only a title brings into training"
    for batch in batches(examples, tmp_path, 9):
        assert not {"q0", titles["a"]["query_id"]} <= set(batch)


@pytest.mark.parametrize("title_of", [{}, {"a": "Ankles"}, {"a": "T", "x": "t"}])
def test_title_pairs_need_titles(tmp_path: Path, title_of: dict[str, str]) -> None:
    with pytest.raises(UserError, match="title_pairs is 9, but there is no pair"):
        mine_iteration_2(tmp_path, [], RANKED, RANKED, title_of=title_of, title_pairs=9)


def test_title_pairs_do_not_hide_that_mining_found_nothing(tmp_path: Path) -> None:
    ranked = [(query, passage, 1) for query, passage, _ in RANKED]
    with pytest.raises(UserError, match="mining found no example in 2 queries"):
        mine_iteration_2(tmp_path, [], ranked, ranked, title_of=TITLES, title_pairs=9)


@pytest.mark.parametrize(
    ("loss", "rule", "negatives"),
    [
        ("multiple-negatives", "nearest", ["b", "c"]),
        ("graded", "nearest", ["b", "d"]),
        ("distill", "nearest", ["b", "d"]),
        ("graded", "rank", ["b", "c"]),
    ],
)
def test_a_loss_on_grades_gets_negatives_of_all_ranks(
    tmp_path: Path, loss: str, rule: str, negatives: list[str]
) -> None:
    ranked = [("q0", "p", 4), *(("q0", passage, 1) for passage in "bcde")]
    settings = {"num_negatives": 2, "rule": rule, "negative_rank": 1}
    examples, _ = mine_iteration_2(tmp_path, [], ranked, ranked, loss=loss, **settings)
    assert [each["negative_ids"] for each in examples] == [negatives]
