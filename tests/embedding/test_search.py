"""Exact search: the same result as in memory, for every block size."""

from pathlib import Path

import numpy as np
import pytest

from pyrite.embedding.search import read_blocks, take, top_k


@pytest.fixture
def stored(tmp_path: Path) -> tuple[list[Path], np.ndarray]:
    rng = np.random.default_rng(0)
    corpus = rng.normal(size=(1000, 16)).astype(np.float32)
    files = []
    for i, part in enumerate(np.array_split(corpus, 3)):
        files.append(tmp_path / f"{i}.npy")
        np.save(files[-1], part)
    return files, corpus


@pytest.mark.parametrize("rows", [7, 333, 5000])
def test_blocks_and_masks_give_the_result_of_brute_force(stored: tuple[list[Path], np.ndarray], rows: int) -> None:
    files, corpus = stored
    queries = np.random.default_rng(1).normal(size=(20, 16)).astype(np.float32)
    keep = np.arange(1000) % 3 != 0
    scores, found = top_k(queries, read_blocks(files, rows, keep), 10)
    all_scores = queries @ corpus[keep].T
    expected = np.argsort(-all_scores, axis=1)[:, :10]
    assert (found == expected).all()
    assert np.allclose(scores, np.take_along_axis(all_scores, expected, axis=1), atol=1e-5)
    assert (take(files, found[0]) == corpus[found[0]]).all()


@pytest.mark.parametrize(("rows", "lengths"), [(700, [667, 333]), (10**12, [1000]), (300, [300, 34, 300, 33, 300, 33])])
def test_files_are_joined_up_to_the_block_size(
    stored: tuple[list[Path], np.ndarray], rows: int, lengths: list[int]
) -> None:
    files, corpus = stored
    blocks = [block.copy() for block in read_blocks(files, rows)]
    assert [len(block) for block in blocks] == lengths
    assert (np.concatenate(blocks) == corpus).all()


def test_results_of_a_corpus_smaller_than_k_are_padded() -> None:
    corpus = np.eye(3, dtype=np.float32)
    scores, found = top_k(corpus[:1], iter([corpus]), 5)
    assert found[0].tolist()[:3] == [0, 1, 2]
    assert found[0].tolist()[3:] == [-1, -1]
    assert np.isneginf(scores[0, 3:]).all()
