"""Batches without known false negatives: no passage is relevant to another query of its batch."""

import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sentence_transformers.base.sampler import DefaultBatchSampler


class Row(NamedTuple):
    """An example, as the sampler needs it. ``relevant``: passages relevant to its query. ``group``: see ``order``."""

    query_id: str
    passages: frozenset[str]
    relevant: frozenset[str]
    group: str


def order(rows: Sequence[Row], seed: int) -> list[int]:
    """All positions of ``rows``. Groups are shuffled by ``seed``; the rows of a group stay adjacent."""
    groups: dict[str, list[int]] = {}
    for position, row in enumerate(rows):
        groups.setdefault(row.group, []).append(position)
    shuffled = random.Random(seed).sample(list(groups.values()), len(groups))
    return [position for group in shuffled for position in group]


def pack(rows: Sequence[Row], positions: Sequence[int], batch_size: int) -> list[list[int]]:
    """Pack ``positions`` of ``rows`` into batches of at most ``batch_size`` rows without conflicts.

    Rows conflict if they have the same query, or if a passage of one is relevant to the query of the other. Greedy:
    each row goes into the first batch that is not full and has no conflict with it.
    """
    batches: list[list[int]] = []
    open_batches: list[_Batch] = []
    for position in positions:
        row = rows[position]
        for batch in open_batches:
            if batch.fits(row):
                break
        else:
            batch = _Batch([], set(), set(), set())
            open_batches.append(batch)
            batches.append(batch.positions)
        batch.add(position, row)
        if len(batch.positions) == batch_size:
            open_batches.remove(batch)
    return batches


class _Batch(NamedTuple):
    positions: list[int]
    queries: set[str]
    passages: set[str]
    relevant: set[str]

    def fits(self, row: Row) -> bool:
        return (
            row.query_id not in self.queries
            and self.relevant.isdisjoint(row.passages)
            and self.passages.isdisjoint(row.relevant)
        )

    def add(self, position: int, row: Row) -> None:
        self.positions.append(position)
        self.queries.add(row.query_id)
        self.passages.update(row.passages)
        self.relevant.update(row.relevant)


class ConflictFreeSampler(DefaultBatchSampler):  # type: ignore[misc]  # the library is not typed
    """Yields the batches of ``pack`` in an order that depends only on seed and epoch, so training can be resumed."""

    def __init__(self, dataset: Any, batch_size: int, rows: Sequence[Row], seed: int):
        super().__init__(dataset, batch_size=batch_size, drop_last=False, seed=seed)
        self._batches = pack(rows, order(rows, seed), batch_size)
        self._seed = seed

    def __iter__(self) -> Iterator[list[int]]:
        yield from random.Random(self._seed * 1_000_003 + self.epoch).sample(self._batches, len(self._batches))

    def __len__(self) -> int:
        return len(self._batches)
