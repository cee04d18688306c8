"""Exact search: the same result as in memory, however the corpus is divided."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pyrite.embedding import search
from pyrite.embedding.search import Floats, Integers, Search, VectorBlock, best_of, read_blocks, top_k

CORPUS = 1000


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles, blocks and parts of the queries in small tests."""
    monkeypatch.setattr(search, "TILE", 50)
    monkeypatch.setattr(search, "_BLOCK", 400)
    monkeypatch.setattr(search, "_QUERIES", 7)


@pytest.fixture
def stored(tmp_path: Path) -> tuple[list[Path], Floats]:
    """Embeddings in files of complete tiles, some of which are equal."""
    corpus = np.random.default_rng(0).normal(size=(CORPUS, 16)).astype(np.float32)
    corpus[700:720] = corpus[30]
    files = []
    for start in range(0, CORPUS, 150):
        files.append(tmp_path / f"{start}.npy")
        np.save(files[-1], corpus[start : start + 150])
    return files, corpus


def find(files: Sequence[Path], queries: Floats, start: int = 0, keep: object = None) -> tuple[Floats, Integers]:
    found = Search(queries, 10, keep=keep)  # type: ignore[arg-type]
    for block in read_blocks(files, start):
        found.add(block)
    return found.results()


def test_a_masked_search_gives_the_result_of_brute_force(stored: tuple[list[Path], Floats]) -> None:
    files, corpus = stored
    queries = np.random.default_rng(1).normal(size=(20, 16)).astype(np.float32)
    keep = np.arange(CORPUS) % 3 != 0
    scores, found = find(files, queries, keep=keep)
    all_scores = np.where(keep, queries @ corpus.T, -np.inf)
    expected = np.argsort(-all_scores, axis=1, kind="stable")[:, :10]
    assert (found == expected).all()
    assert np.allclose(scores, np.take_along_axis(all_scores, expected, axis=1), atol=1e-5)


def test_parts_of_complete_tiles_give_the_same_scores_and_order(stored: tuple[list[Path], Floats]) -> None:
    """Bit for bit: otherwise, another number of shards could train another model."""
    files, corpus = stored
    queries = np.concatenate([np.random.default_rng(1).normal(size=(20, 16)).astype(np.float32), corpus[30:31]])
    at_once = find(files, queries)
    parts = [find(files[first : first + 2], queries, 150 * first) for first in range(0, len(files), 2)]
    scores, found = best_of(parts, 10)
    assert (scores == at_once[0]).all()
    assert (found == at_once[1]).all()
    assert at_once[1][20].tolist() == [30, *range(700, 709)], "equal scores are in the order of their positions"


def test_files_are_joined_up_to_the_block_size(stored: tuple[list[Path], Floats]) -> None:
    files, corpus = stored
    rows: list[int] = []
    blocks = list(read_blocks(files, 5, rows.append))
    assert [block.start for block in blocks] == [5, 305, 605]
    assert rows == [len(block.vectors) for block in blocks]
    assert (np.concatenate([block.vectors for block in blocks]) == corpus).all()


def test_results_of_a_corpus_smaller_than_k_are_padded() -> None:
    corpus = np.eye(3, dtype=np.float32)
    scores, found = top_k(corpus[:1], iter([VectorBlock(0, corpus)]), 5)
    assert found[0].tolist() == [0, 1, 2, -1, -1]
    assert np.isneginf(scores[0, 3:]).all()
