"""The judge stage in blocks: the same output as in one block, with the texts of two blocks at most."""

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pyrite import tables
from pyrite.config import load
from pyrite.errors import PyriteError
from pyrite.executors.step import open_run, run_step
from pyrite.judges.server import ServerJudge
from pyrite.judges.session import Block
from pyrite.plan import Step
from pyrite.progress import NullProgress
from pyrite.stages.blocks import PairBlocks, Selection
from pyrite.stages.judging import Judging
from pyrite.store import open_store
from stub_judge import MODEL, Stub

NOISY = "first: {kind: labels, noise: {kappa: 0.5, seed: 1}}, second: {kind: labels, noise: {kappa: 0.8, seed: 2}}"
CASCADE = f"kind: cascade, {NOISY}, pilot: 12, tolerance: 0.3, audit: 0.3, max_drift: 1"
LLM = f"kind: llm, model: {MODEL}, rank_window: null"
LLMS = f"first: {{kind: llm, model: {MODEL}, prompt: legal}}, second: {{kind: llm, model: {MODEL}}}"


@pytest.fixture(scope="module")
def retrieved(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, questions: Path) -> Path:
    """A folder with small.yaml and a store with pairs in row groups of two queries."""
    folder = tmp_path_factory.mktemp("retrieved")
    (folder / "small.yaml").write_text(
        f"source: {{kind: jsonl, path: {questions}, topic: topic, type: type}}\nmodel: {{base: {tiny_model}}}\n"
        "prepare: {min_chars: 40, max_chars: 400}\nretrieve: {range_max: 20}\njudge: {shards: 1}\n"
    )
    run = open_run(load(folder / "small.yaml"), open_store(str(folder / "store")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyrite.stages.retrieve.PART", 40)
        for step in (Step("prepare"), Step("embed", 0, 0), Step("retrieve", 1)):
            run_step(run, step, NullProgress())
    return folder


@pytest.fixture
def stub() -> Iterator[Stub]:
    with Stub() as server:
        yield server


class Folder:
    """A copy of ``retrieved``, in which the judge stage runs with blocks of a given size."""

    def __init__(self, retrieved: Path, folder: Path, stub: Stub):
        shutil.copytree(retrieved, folder)
        self.folder, self._stub = folder / "store/runs/small/iterations/1", stub
        self._file, self._store = folder / "small.yaml", open_store(str(folder / "store"))

    def judge(self, judge: str, block_pairs: int) -> dict[str, Any]:
        """Judge; return the summary without times."""
        urls = [f"resources.{name}judge_urls=[{self._stub.url}]" for name in ("", "first_")]
        spec = load(self._file, [f"judge={{{judge}, shards: 1}}", *urls, "resources.judge_concurrency=2"])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pyrite.stages.blocks.BLOCK_PAIRS", block_pairs)
            found = run_step(open_run(spec, self._store), Step("judge", 1, 0), NullProgress())["summary"]
        return {name: value for name, value in found.items() if name != "timeline"}

    def output(self, name: str) -> list[dict[str, Any]]:
        """The rows of a file of judgments without latencies."""
        rows = pq.read_table(self.folder / f"judgments/{name}.parquet").to_pylist()
        return [{key: value for key, value in row.items() if key != "latency"} for row in rows]

    @property
    def row_groups(self) -> int:
        return int(pq.read_metadata(self.folder / "judgments/shard-00000.parquet").num_row_groups)

    @property
    def pairs(self) -> pa.Table:
        return pq.read_table(self.folder / "pairs/shard-00000.parquet")


@pytest.fixture
def small(retrieved: Path, tmp_path: Path, stub: Stub) -> Folder:
    return Folder(retrieved, tmp_path / "small", stub)


@pytest.mark.parametrize(
    "judge",
    [
        "kind: labels",
        "kind: labels, noise: {kappa: 0.6, similarity: 0.3}, stop: example, rank_window: 15",
        CASCADE,
        f"{CASCADE}, stop: example",
        LLM,
        f"{LLM}, patience: 2",
        f"kind: cascade, {LLMS}, pilot: 8, tolerance: 0.3, audit: 0.5, max_drift: 1",
    ],
)
def test_the_size_of_blocks_does_not_change_the_output(
    small: Folder, retrieved: Path, tmp_path: Path, stub: Stub, judge: str
) -> None:
    # A reply that is no grade: some pairs are missing.
    stub.fault = lambda _number, pair: "banana" if sum(map(ord, "".join(pair))) % 97 == 0 else None
    one = Folder(retrieved, tmp_path / "one", stub)
    summaries = [one.judge(judge, 1 << 20), small.judge(judge, 1)]
    assert (one.row_groups, small.row_groups > 10) == (1, True)
    assert summaries[0] == summaries[1]
    for name in ("shard-00000", "missing-00000"):
        first, second = one.output(name), small.output(name)
        assert (first if "shard" in name else sorted(first, key=str)) == (
            second if "shard" in name else sorted(second, key=str)
        )
    assert summaries[0]["judged"] > 0
    assert bool(summaries[0]["missing"]) == ("llm" in judge)


def test_a_resumed_shard_pays_for_no_pair_twice(small: Folder, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    finish, finished = Judging._finish, list[int]()

    def stopping(judging: Judging, block: Block) -> None:
        if len(finished) == 3:
            raise PyriteError("killed")
        finished.append(len(block.new))
        finish(judging, block)

    monkeypatch.setattr(Judging, "_finish", stopping)
    with pytest.raises(PyriteError, match="killed"):
        small.judge(LLM, 1)
    before = stub.settled().graded.total()
    assert before >= sum(finished) > 0
    assert not (small.folder / "judgments").exists(), "no part of the output is published"
    monkeypatch.undo()
    summary = small.judge(LLM, 1)
    assert summary["judged"] == summary["pairs"] == len(small.output("shard-00000"))
    # Requests in flight were lost with the process.
    assert before - 2 <= summary["cached"] <= before
    assert stub.graded.total() - summary["pairs"] == before - summary["cached"]


@pytest.mark.parametrize("judge", [LLM, f"kind: cascade, {LLMS}, pilot: 8, tolerance: 0.3, audit: 0.5, max_drift: 1"])
def test_the_texts_of_two_blocks_are_in_memory(small: Folder, monkeypatch: pytest.MonkeyPatch, judge: str) -> None:
    largest, blocks = 0, dict[int, dict[str, int]]()  # by judge: the block of each loaded query
    load, unload = ServerJudge.load, ServerJudge.unload

    def recording_load(self: ServerJudge, queries: pa.Table, passages: pa.Table) -> None:
        nonlocal largest
        largest = max(largest, passages.num_rows)
        loaded = blocks.setdefault(id(self), {})
        loaded |= dict.fromkeys(queries["query_id"].to_pylist(), len(loaded))
        assert len(set(loaded.values())) <= 2
        load(self, queries, passages)

    def recording_unload(self: ServerJudge, query_ids: Iterable[str]) -> None:
        own = list(query_ids)
        for query in own:
            del blocks[id(self)][query]
        unload(self, own)

    monkeypatch.setattr(ServerJudge, "load", recording_load)
    monkeypatch.setattr(ServerJudge, "unload", recording_unload)
    summary = small.judge(judge, 100)
    assert summary["pairs"] > 800
    assert 100 <= largest < 200
    assert blocks
    assert not any(blocks.values())


def test_only_texts_of_selected_pairs_are_loaded(small: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, load = list[int](), ServerJudge.load

    def recording_load(self: ServerJudge, queries: pa.Table, passages: pa.Table) -> None:
        loaded.append(passages.num_rows)
        load(self, queries, passages)

    monkeypatch.setattr(ServerJudge, "load", recording_load)
    summary = small.judge(f"kind: llm, model: {MODEL}, rank_window: 5", 100)
    assert sum(loaded) == summary["judged"] == summary["pairs"] - summary["not_selected"] < small.pairs.num_rows / 2


def test_a_block_occupies_the_judge(small: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrite.stages.blocks.BLOCK_PAIRS", 1)
    path = small.folder / "pairs/shard-00000.parquet"
    pairs = PairBlocks(path, Selection(None, known_answers=True), 7)
    sizes = [len(block["query_id"].unique()) for block in pairs.read()]
    assert len(sizes) > 3
    assert all(7 <= size <= 8 for size in sizes[:-1])
    assert pa.concat_tables(pairs.read()).equals(tables.read(path, tables.PAIRS))
    numbers = [set(pairs.block_of(block["query_id"]).tolist()) for block in pairs.read()]
    assert numbers == [{number} for number in range(len(sizes))]
    assert pairs.block_of(pa.chunked_array([["of another shard"]])).tolist() == [-1]


def selected(rank_window: int | None, known_answers: bool, with_known: bool = True) -> list[tuple[str, str]]:
    """Of two queries with 50 candidates each, the pairs to judge; c2 and c50 are known answers of q1."""
    ranks = [*range(1, 51), None]
    rows = [
        {"query_id": query, "passage_id": f"c{rank}", "rank": rank, "known": known, "sampled": known and rank == 50}
        for query in ("q1", "q2")
        for rank in ranks
        for known in [query == "q1" and rank in (2, 50, None)]
    ]
    pairs = pa.Table.from_pylist(rows, tables.PAIRS)
    queries = Selection(rank_window, known_answers).queries(pairs, with_known=with_known)
    assert [query for query, _ in queries] == ["q1", "q2"]
    return [(query, id) for query, ids in queries for id in ids]


@pytest.mark.parametrize(
    ("settings", "first", "others"),
    [
        ((None, True), ["c2", "c50"], range(1, 51)),
        ((3, True), ["c2", "c50"], range(1, 4)),
        ((3, False), ["c50"], range(1, 4)),
        ((3, False, False), [], range(1, 4)),
    ],
)
def test_known_answers_are_selected_first_at_any_rank(settings: Any, first: list[str], others: range) -> None:
    unknown = [f"c{rank}" for rank in others if rank not in (2, 50)]
    assert selected(*settings) == [
        *(("q1", id) for id in [*first, *unknown]),
        *(("q2", f"c{rank}") for rank in others),
    ]
