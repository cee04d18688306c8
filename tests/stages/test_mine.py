"""From mined examples to training batches."""

import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrite import tables
from pyrite.errors import UserError
from pyrite.identity import passage_id
from pyrite.plan import Step
from pyrite.progress import NullProgress
from pyrite.spec import RunSpec
from pyrite.stages import mine
from pyrite.stages.context import StepContext
from pyrite.stages.finetune import read_examples
from pyrite.stages.inputs import judgments_key
from pyrite.stages.pairs import pairs_key, shard_of
from pyrite.store import FolderStore, checksum_file
from pyrite.training.batching import ConflictFreeSampler

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
    ranked = [("q0", "a", 4), ("q0", "x", 1), ("q1", "b", 4), ("q1", "y", 1), ("q2", "y", 4), ("q2", "x", 1)]
    examples, _ = mine_iteration_2(tmp_path, [], ranked, ranked)
    assert [each["relevant_ids"] for each in examples] == [["a", "b"], ["a", "b"], ["y"]]
    for batch in batches([{**each, "group": "1"} for each in examples], tmp_path, 3):
        assert not {"q0", "q1"} <= set(batch)


def id_of(name: str) -> str:
    """An id of 16 hexadecimal digits from a name of at most 8 characters, in the same order. Ids are returned."""
    assert len(name) in (*range(9), 16)
    return name if len(name) == 16 else name.encode().ljust(8, b"\0").hex()


def query_id_of(name: str) -> str:
    return f"q{id_of(name)[:15]}"


def name_of(id: str) -> str:
    """The name that an id is made of; other ids are returned as they are."""
    octets = bytes.fromhex(f"{id[1:]}0" if id.startswith("q") else id).rstrip(b"\0")
    return octets.decode() if octets.isascii() and octets else id


def with_ids(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """``rows`` with ids in place of names."""

    def convert(column: str, value: Any) -> Any:
        if column == "query_id":
            return query_id_of(value)
        if column in ("positive_id", "passage_id"):
            return id_of(value)
        return [*map(id_of, value)] if column in ("negative_ids", "relevant_ids") else value

    return [{column: convert(column, value) for column, value in row.items()} for row in rows]


def with_names(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The reverse of ``with_ids``."""

    def convert(column: str, value: Any) -> Any:
        if column in ("query_id", "positive_id", "passage_id"):
            return name_of(value)
        return [*map(name_of, value)] if column in ("negative_ids", "relevant_ids") else value

    return [{column: convert(column, value) for column, value in row.items()} for row in rows]


Graded = list[tuple[str, str, int | None]]


def pairs_of(
    ranked: Graded, earlier: Graded, known: Collection[tuple[str, str]], title_of: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The rows of PAIRS, by query id."""
    rank_of = {(query, passage): rank for rank, (query, passage, _) in enumerate(ranked, 1)}
    relevant = {*known, *((query, passage) for query, passage, grade in earlier if (grade or 0) >= 3)}
    pairs = sorted({*rank_of, *relevant}, key=lambda pair: (pair[0], rank_of.get(pair, len(ranked) + 1), pair[1]))
    return [
        {
            "query_id": query,
            "passage_id": passage,
            "rank": rank_of.get((query, passage)),
            "score": 1 / rank_of[query, passage] if (query, passage) in rank_of else None,
            "query": query,
            "title": title_of.get(passage, ""),
            "context": title_of.get(passage, ""),
            "text": TEXTS.get(passage, passage),
            "known": (query, passage) in known,
            "relevant": (query, passage) in relevant,
            "sampled": False,
        }
        for query, passage in pairs
    ]


def mine_iteration_2(
    folder: Path,
    earlier: list[dict[str, Any]],
    *graded: Graded,
    known: Sequence[tuple[str, str]] = (),
    title_of: Mapping[str, str] | None = None,
    loss: str = "multiple-negatives",
    shards: int = 1,
    group: int = 100,
    **settings: Any,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The examples and the summary of iteration 2.

    Args:
        earlier: the examples of iteration 1.
        graded: for both iterations, (query, passage, grade) by rank.
        known: (query, passage) of the known answers.
        title_of: titles of passages.
        loss: finetune.loss.
        shards: of judging.
        group: queries of a row group of pairs, and examples of a row group of iteration 1.
        settings: of mine.
    """
    title_of, schema = title_of or {}, tables.examples(settings.get("num_negatives", 1))
    store, outputs = FolderStore(folder / "store"), list[dict[str, Any]]()

    def put(key: str, parts: Iterable[Iterable[Mapping[str, Any]]], schema: pa.Schema) -> None:
        path = store.local_path(f"runs/r/{key}")
        tables.write_parts(path, (pa.Table.from_pylist(with_ids(rows), schema) for rows in parts), schema)
        checksum = checksum_file(path)
        outputs.append({"key": key, "bytes": checksum.size, "sha256": checksum.sha256})

    splits = {"q0": "train", "q1": "train", "v": "val", "t": "test"}
    queries = [{"query_id": q, "text": q, "split": s} for q, s in splits.items()]
    put("queries/queries.parquet", [queries], tables.QUERIES)
    put("queries/qrels.parquet", [], tables.QRELS)
    texts = [
        {"passage_id": c, "text": TEXTS.get(c, c), "title": title_of.get(c, ""), "context": title_of.get(c, "")}
        for c in sorted({*title_of, *(passage for each in graded for _, passage, _ in each)})
    ]
    put("corpus/passages.parquet", [[row] for row in texts], tables.PASSAGES)
    put(
        "iterations/1/examples.parquet", [earlier[n : n + group] for n in range(0, max(1, len(earlier)), group)], schema
    )
    pairs = pairs_of(graded[1], graded[0], known, title_of)
    judgments = [{"query_id": q, "passage_id": c, "grade": g, "expected": g} for q, c, g in graded[1] if g]
    for shard in range(shards):

        def is_in(row: Mapping[str, Any], shard: int = shard) -> bool:
            return shard_of(query_id_of(row["query_id"]), shards) == shard

        of_queries = [list(rows) for _, rows in groupby(filter(is_in, pairs), key=itemgetter("query_id"))]
        parts = (chain(*of_queries[start : start + group]) for start in range(0, len(of_queries), group))
        put(pairs_key(2, shard), parts, tables.PAIRS)
        put(judgments_key(2, shard), [filter(is_in, judgments)], tables.JUDGMENTS)
    mining = {"relative_margin": None, "accumulate": True, **settings}
    run = {
        "name": "r",
        "source": {"kind": "sample"},
        "judge": {"shards": shards},
        "mine": mining,
        "finetune": {"loss": loss},
    }
    spec = RunSpec.model_validate(run)
    ctx = StepContext(spec, Step("mine", 2), store, "runs/r", {"all": {"outputs": outputs}}, "scratch", NullProgress())
    summary = mine.run(ctx)
    examples = with_names(tables.read(ctx.output("iterations/2/examples.parquet"), schema).to_pylist())
    assert summary["examples"] == len(examples)
    assert summary["accumulated"] == sum(each["iteration"] == 1 for each in examples)
    assert summary.get("title_pairs", 0) == sum(each["kind"] == "title" for each in examples)
    return examples, summary


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_shards_and_row_groups_do_not_change_the_examples(data: st.DataObject) -> None:
    queries, passages = st.sampled_from([f"q{n}" for n in range(9)]), st.sampled_from("abcdexyz")
    pairs = st.lists(st.tuples(queries, passages), min_size=20, max_size=60, unique=True)
    grades = st.sampled_from([1, 1, 2, 3, 4, 4, None])
    graded: list[Graded] = [[(*pair, data.draw(grades)) for pair in data.draw(pairs)] for _ in range(2)]
    mined = {query for query, *_ in graded[1]}
    earlier = [row(query, "c", passage, "1-0") for query in sorted(mined) for passage in "xyz"]
    known = data.draw(st.lists(st.tuples(st.sampled_from(sorted(mined)), passages), max_size=5, unique=True))
    options = {"known": known, "num_positives": 2, "easy_per_hard": data.draw(st.sampled_from([None, 1.0]))}
    results = []
    for shards, group in ((1, 100), (3, 1)):
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            patch.setattr(mine, "PART", 100 if group > 1 else 2)
            try:
                results.append(mine_iteration_2(Path(folder), earlier, *graded, shards=shards, group=group, **options))
            except UserError:  # the error has no example, in both cases
                results.append(([], {}))
    assert results[0] == results[1]
    for each in results[0][0]:
        assert set(each["negative_ids"]).isdisjoint(each["relevant_ids"])


def test_grades_of_all_iterations_protect_all_examples(tmp_path: Path) -> None:
    """Grades of earlier iterations apply to new examples, and new grades to earlier examples.

    Regression: a passage became a negative although an earlier iteration had graded it as relevant, and examples of
    earlier iterations ignored new grades.
    """
    examples, _ = mine_iteration_2(
        tmp_path,
        [row("q0", "p", "x", "1-0"), row("q0", "p", "b", "1-0"), row("q1", "r", "y", "1-1")],
        [("q0", "p", 4), ("q0", "seen", 3), ("q0", "x", 1), ("q0", "b", 1), ("q1", "r", 4), ("q1", "y", 1)],
        # a is a near-duplicate of b, so b was a false negative of q0; x turns out to answer q1
        [("q0", "y", 1), ("q0", "p", 4), ("q0", "a", 3), ("q1", "seen", 1), ("q1", "r", 4), ("q1", "x", 3)],
    )
    assert {(each["query_id"], each["negative_ids"][0]): each["relevant_ids"] for each in examples} == {
        ("q0", "x"): ["a", "b", "p", "seen"],
        ("q0", "y"): ["a", "b", "p", "seen"],
        ("q1", "y"): ["r", "x"],
        ("q1", "seen"): ["r", "x"],
    }


def test_near_duplicates_of_earlier_passages_ignore_the_context(tmp_path: Path) -> None:
    """Examples have passages in context. The context here is longer than the text, of which ``b`` has all words."""
    text = "Then walk on soft ground."
    earlier = row("q0", "a", passage_id(text), "1-0") | {"negative_1": f"{' '.join('abcdefghijkl')}\n{text}"}
    ranked = [("q0", "a", 4), ("q0", "b", 4), ("q0", "x", 1)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TEXTS, "b", f"{ANSWER} {text} Put your shoes on.")
        examples, _ = mine_iteration_2(tmp_path, [earlier, row("q0", "a", "y", "1-1")], ranked, ranked)
    assert [each["negative_ids"] for each in examples] == [["y"], ["x"]]


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
    assert not list(tmp_path.rglob("mined")), "with other settings, nothing would delete it"


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
