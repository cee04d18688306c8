"""Reads a shard's pairs in blocks of complete queries, so that only some of them are in memory."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pyrite import tables
from pyrite.embedding.search import Integers
from pyrite.judges.session import QueryPassages
from pyrite.spec import RunSpec
from pyrite.spill import GroupedSpill

#: Minimum pairs of a block. A row group has nearly as many, so a block has about twice as many.
BLOCK_PAIRS = 1 << 13

_SELECTION = tables.subset(tables.PAIRS, "query_id", "rank", "known", "sampled")


class Selection(NamedTuple):
    """Decides which candidates are judged. ``known_answers``: whether all known answers are, or only a sample."""

    rank_window: int | None
    known_answers: bool

    @classmethod
    def of(cls, spec: RunSpec) -> Self:
        """The selection by the settings of a run."""
        return cls(spec.judge.rank_window, spec.judges_known_answers)

    def mask(self, pairs: pa.Table) -> npt.NDArray[np.bool_]:
        """Whether each of the PAIRS is judged."""
        ranks = pairs["rank"].fill_null(0).to_numpy()
        within = (ranks > 0) if self.rank_window is None else (ranks > 0) & (ranks <= self.rank_window)
        judged_known = (ranks > 0) & (self.known_answers | _flags(pairs, "sampled"))
        mask: npt.NDArray[np.bool_] = np.where(_flags(pairs, "known"), judged_known, within)
        return mask

    def queries(self, pairs: pa.Table, *, with_known: bool = True) -> list[QueryPassages]:
        """The queries of PAIRS with the passages to judge: known answers, then the others by rank.

        Known answers are judged at any rank: they are few, and most hard positives are among them.

        Args:
            with_known: False leaves known answers out.
        """
        selected, known = self.mask(pairs), _flags(pairs, "known")
        if not with_known:
            selected &= ~known
        queries = pairs["query_id"].combine_chunks().dictionary_encode()
        numbers = queries.indices.to_numpy()
        order = np.lexsort((~known, numbers))
        order = order[selected[order]]
        passages = pairs["passage_id"].take(pa.array(order)).to_pylist()
        ends = np.cumsum(np.bincount(numbers[order], minlength=len(queries.dictionary))).tolist()
        ranges = zip([0, *ends], ends, strict=False)
        return [
            (query, passages[start:end])
            for query, (start, end) in zip(queries.dictionary.to_pylist(), ranges, strict=True)
        ]


class PairBlocks:
    """The pairs of a shard, from a file with row groups of complete queries. Memory holds the ids of the queries.

    Attributes:
        query_ids: of all queries, in the order of the file.
        candidates: number of candidates.
        selected: number of candidates to judge.
        selected_unknown: number of those that are not known answers.
    """

    def __init__(self, path: Path, selection: Selection, min_queries: int):
        """``min_queries``: minimum queries of a block. Fewer than a judge's requests in flight would not occupy it."""
        self.selection, self._path = selection, path
        self.candidates = self.selected = self.selected_unknown = 0
        ids = [pa.array([], pa.string())]
        blocks: list[tuple[int, int]] = []
        row_groups = rows = queries = 0
        for part in tables.read_parts(path, _SELECTION):
            selected = selection.mask(part)
            self.candidates += part.num_rows - part["rank"].null_count
            self.selected += int(selected.sum())
            self.selected_unknown += int((selected & ~_flags(part, "known")).sum())
            ids.append(part["query_id"].combine_chunks().unique())
            row_groups, rows, queries = row_groups + 1, rows + part.num_rows, queries + len(ids[-1])
            if rows >= BLOCK_PAIRS and queries >= min_queries:
                blocks.append((row_groups, queries))
                row_groups = rows = queries = 0
        if row_groups:
            blocks.append((row_groups, queries))
        self.query_ids = pa.concat_arrays(ids)
        self._row_groups = [row_groups for row_groups, _ in blocks]
        #: The position of each block's first query.
        self._starts = np.cumsum([0, *(queries for _, queries in blocks)])

    def read(self) -> Iterator[pa.Table]:
        """PAIRS of each block."""
        parts = tables.read_parts(self._path, tables.PAIRS)
        for row_groups in self._row_groups:
            yield pa.concat_tables(islice(parts, row_groups))

    def read_queries(self, query_ids: pa.Array) -> Iterator[pa.Table]:
        """PAIRS of these queries. They may be few in each block, so several blocks are combined."""
        parts = []
        for pairs in self.read():
            parts.append(of_queries(pairs, query_ids))
            if sum(part.num_rows for part in parts) >= BLOCK_PAIRS:
                yield pa.concat_tables(parts)
                parts = []
        if parts:
            yield pa.concat_tables(parts)

    def block_of(self, query_ids: pa.ChunkedArray) -> Integers:
        """The number of the block of each query; negative for a query of another shard."""
        positions = pc.index_in(query_ids, self.query_ids).fill_null(-1).to_numpy()
        blocks: Integers = np.searchsorted(self._starts, positions, side="right") - 1
        return blocks

    def rows_of(self, spill: GroupedSpill, query_ids: pa.ChunkedArray) -> pa.Table:
        """The rows of the queries in a ``spill`` whose groups are blocks."""
        return of_queries(spill.read(*np.unique(self.block_of(query_ids)).tolist()), query_ids)


def of_queries(table: pa.Table, query_ids: pa.Array | pa.ChunkedArray, *, invert: bool = False) -> pa.Table:
    """The rows of the queries; with ``invert``, those of all others."""
    own = pc.is_in(table["query_id"], query_ids.unique())
    return table.filter(pc.invert(own) if invert else own)


def texts(pairs: pa.Table, selected: npt.NDArray[np.bool_]) -> tuple[pa.Table, pa.Table]:
    """The texts of the ``selected`` of PAIRS, as ``Judge.load`` takes them, with all queries."""
    ids = pairs["query_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    queries = pairs.select(["query_id", "query"]).take(pa.array(np.unique(ids, return_index=True)[1]))
    passages = pairs.select(["passage_id", "context", "text"]).filter(selected)
    return queries.rename_columns(["query_id", "text"]), passages


def _flags(pairs: pa.Table, name: str) -> npt.NDArray[np.bool_]:
    flags: npt.NDArray[np.bool_] = pairs[name].to_numpy()
    return flags
