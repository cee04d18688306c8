"""The pairs of an iteration, joined with their texts once, so that judging and mining need no other table.

There is a file per shard of judging (``tables.PAIRS``). It has all pairs of the shard's queries, by query id, in row
groups of complete queries.
"""

import hashlib
import heapq

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pyrite import tables
from pyrite.embedding.search import Floats, Integers
from pyrite.ragged import Numbers, ragged
from pyrite.spill import TextFile
from pyrite.splitting import draw

#: Candidates of a part, which are in memory together: with their texts, and without.
PART, PART_WITHOUT_TEXTS = 1 << 13, 1 << 18

#: Known answers that are judged per iteration, although mining does not need their grades. They check the judge.
KNOWN_SAMPLE = 100


def pairs_key(iteration: int, shard: int) -> str:
    """The key of the file with a shard's pairs."""
    return f"iterations/{iteration}/pairs/shard-{shard:05d}.parquet"


def shard_of(query_id: str, shards: int) -> int:
    """The shard of a query's pairs: 0 to ``shards - 1``, evenly distributed and the same on every machine."""
    return int.from_bytes(hashlib.sha256(query_id.encode()).digest()[:8]) % shards


def find_pairs(table: pa.Table, queries: pa.Table, passage_ids: pa.Array) -> Integers:
    """The keys, as in ``Pairs``, of the pairs in ``table`` whose query and passage exist, in ascending order."""
    rows = pc.index_in(table["query_id"], queries["query_id"].combine_chunks())
    positions = pc.index_in(table["passage_id"], passage_ids)
    found = pa.table({"row": rows, "position": positions}).drop_null()
    return np.unique(found["row"].to_numpy().astype(np.int64) * len(passage_ids) + found["position"].to_numpy())


class Pairs:
    """The pairs of the training queries as numbers, from which tables are created for some of the queries at a time.

    A pair's key is its query's row times the number of passages, plus its passage's position in the corpus.
    """

    def __init__(
        self,
        queries: pa.Table,
        passage_ids: pa.Array,
        top: tuple[Floats, Integers],
        below: tuple[Floats, Integers],
        known: Integers,
        judged_relevant: Integers,
    ):
        """Join what was found with what is known.

        Args:
            queries: QUERIES.
            passage_ids: of all passages.
            top: scores and positions of each query's top passages, shape (queries, k).
            below: scores and keys of other candidates. Their rank is k + 1.
            known: keys of the known answers, also of those that are no candidates.
            judged_relevant: keys of the passages that an earlier iteration judged relevant.
        """
        self._queries, self._passage_ids, self._top = queries.combine_chunks(), passage_ids, top
        order = np.argsort(below[1])
        self._below = below[0][order], below[1][order]
        self._known, self._relevant = np.unique(known), np.union1d(known, judged_relevant)
        self._sampled = self._sample_known_answers()

    @property
    def num_candidates(self) -> int:
        """The number of candidates of all queries."""
        return int(self._top[1].size + len(self._below[1]))

    @property
    def num_below(self) -> int:
        """The number of candidates with the rank k + 1."""
        return len(self._below[1])

    def rows_by_id(self) -> Integers:
        """The rows of all queries, in the order of their ids."""
        rows: Integers = pc.sort_indices(self._queries["query_id"]).to_numpy().astype(np.int64)
        return rows

    def parts(self, rows: Integers, candidates: int) -> list[Integers]:
        """``rows`` of queries in parts with about as many ``candidates``."""
        step = max(1, candidates // max(1, self._top[1].shape[1]))
        return [rows[start : start + step] for start in range(0, len(rows), step)]

    def candidates(self, rows: Integers) -> pa.Table:
        """CANDIDATES of the queries at ``rows``, by query id, rank, score and passage id."""
        return self._table(self._candidates(rows)).select(tables.CANDIDATES.names)

    def pairs(self, rows: Integers, texts: TextFile) -> pa.Table:
        """PAIRS of the queries at ``rows``: of each query the candidates, then other relevant passages by id."""
        keys, ranks, scores = self._candidates(rows)
        others = np.setdiff1d(_of_rows(self._relevant, rows, len(self._passage_ids)), keys)
        none = np.zeros(len(others), np.int32)
        table = self._table((np.append(keys, others), np.append(ranks, none), np.append(scores, none)))
        joined = texts.take(table["key"].to_numpy() % len(self._passage_ids))
        for name in tables.PASSAGE_TEXTS.names:
            table = table.append_column(name, joined[name])
        return table.select(tables.PAIRS.names).cast(tables.PAIRS)

    def _candidates(self, rows: Integers) -> tuple[Integers, npt.NDArray[np.int32], Floats]:
        """Keys, ranks and scores of the candidates of the queries at ``rows``."""
        scores, found = (each[rows] for each in self._top)
        k = found.shape[1]
        below = _positions_of_rows(self._below[1], rows, len(self._passage_ids))
        keys = (rows[:, None] * len(self._passage_ids) + found).ravel()
        ranks = np.tile(np.arange(1, k + 1, dtype=np.int32), len(rows))
        return (
            np.append(keys, self._below[1][below]),
            np.append(ranks, np.full(len(below), k + 1, np.int32)),
            np.append(scores.ravel(), self._below[0][below]),
        )

    def _table(self, pairs: tuple[Integers, npt.NDArray[np.int32], Floats]) -> pa.Table:
        """The pairs with the given keys, ranks (0: not a candidate) and scores, sorted. Without texts of passages."""
        keys, ranks, scores = pairs
        query_rows, positions = (pa.array(each) for each in np.divmod(keys, len(self._passage_ids)))
        no_candidate = ranks == 0
        table = pa.table(
            {
                "query_id": self._queries["query_id"].take(query_rows),
                "passage_id": self._passage_ids.take(positions),
                "rank": pa.array(ranks, mask=no_candidate),
                "score": pa.array(scores, pa.float32(), mask=no_candidate),
                "query": self._queries["text"].take(query_rows),
                "known": np.isin(keys, self._known),
                "relevant": np.isin(keys, self._relevant),
                "sampled": np.isin(keys, self._sampled),
                "key": keys,
            }
        )
        return table.sort_by(  # nulls are last
            [("query_id", "ascending"), ("rank", "ascending"), ("score", "descending"), ("passage_id", "ascending")]
        )

    def _sample_known_answers(self) -> Integers:
        """The keys of at most ``KNOWN_SAMPLE`` known answers among the candidates: always the same ones."""
        rows = np.arange(self._queries.num_rows)
        in_top = [
            np.intersect1d(self._known, self._candidates(part)[0]) for part in self.parts(rows, PART_WITHOUT_TEXTS)
        ]
        keys = np.concatenate([np.empty(0, np.int64), *in_top])

        def ids(key: int) -> str:
            row, position = divmod(key, len(self._passage_ids))
            return f"{self._queries['query_id'][row]} {self._passage_ids[position]}"

        return np.array(heapq.nsmallest(KNOWN_SAMPLE, keys.tolist(), key=lambda key: draw(0, ids(key))), np.int64)


def _of_rows(keys: Integers, rows: Integers, size: int) -> Integers:
    """Those of the ascending ``keys`` that belong to ``rows`` of queries, with ``size`` keys a row."""
    return keys[_positions_of_rows(keys, rows, size)]


def _positions_of_rows(keys: Integers, rows: Integers, size: int) -> Numbers:
    """The positions in ``keys`` of what ``_of_rows`` returns."""
    starts, ends = np.searchsorted(keys, rows * size), np.searchsorted(keys, (rows + 1) * size)
    return ragged(starts, ends - starts)
