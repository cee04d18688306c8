"""The examples of each query, mined from the pairs of an iteration: numbers in memory, texts in temporary files."""

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pyrite import tables
from pyrite.errors import PyriteError
from pyrite.identity import IdSet, Keys, keys, passage_ids
from pyrite.judges.base import RELEVANT
from pyrite.ragged import Lists, Mask, Numbers
from pyrite.spec import MineSpec
from pyrite.spill import TextFile
from pyrite.stages.context import StepContext
from pyrite.stages.inputs import judgments_key
from pyrite.stages.pairs import pairs_key
from pyrite.training import mining
from pyrite.training.duplicates import ShingleIndex
from pyrite.training.mining import Candidate, Example, Shingles

_PAIRS = pa.schema([field for field in tables.PAIRS if field.name != "sampled"])
_GRADES = tables.subset(tables.JUDGMENTS, "query_id", "passage_id", "grade", "expected")

#: A candidate of a query with examples, in a temporary file.
_CANDIDATE = np.dtype([("query", np.uint32), ("passage", np.uint64), ("judged", np.bool_)])

#: Candidates that are read from the file together.
_READ = 1 << 20


class Passages:
    """The passages of examples and those relevant to a query: ids in memory, texts and shingles on disk.

    They are numbered in the order of their ids, after the last one was added.
    """

    def __init__(self, folder: Path):
        self._texts = TextFile(folder / "passages", tables.PASSAGE_TEXTS)
        self._index = ShingleIndex(folder / "shingles")
        self._seen = IdSet()
        self._added = array("Q")
        self._keys: Keys = np.empty(0, np.uint64)
        self._order: Numbers = np.empty(0, np.int64)

    def __contains__(self, passage_id: str) -> bool:
        return passage_id in self._seen

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, passages: pa.Table, shingles_of: Callable[[str], Shingles]) -> None:
        """Add those of ``passages`` (columns passage_id and PASSAGE_TEXTS) that are new.

        Args:
            shingles_of: returns the shingles of a passage by its id.
        """
        ids = passages["passage_id"].to_pylist()
        new = [row for row, passage in enumerate(ids) if self._seen.add(passage)]
        added = passages.take(pa.array(new, pa.int64()))
        self._texts.append(added)
        self._added.frombytes(keys(added["passage_id"]).tobytes())
        for row in new:
            self._index.add(shingles_of(ids[row]))

    def finish(self) -> None:
        """Number the passages."""
        added = np.asarray(self._added)
        self._order = np.argsort(added).astype(np.int32)
        self._keys = added[self._order]

    def numbers(self, keys: Keys) -> Numbers:
        """The numbers of the passages whose ids have the digits ``keys``."""
        if not keys.size:
            return np.empty(keys.shape, np.int32)
        found = np.searchsorted(self._keys, keys).clip(max=len(self) - 1).astype(np.int32)
        if (self._keys[found] != keys).any():
            raise PyriteError("Two passages have the same hash. Set another PYTHONHASHSEED and run the step again.")
        return found

    def digits(self, numbers: Numbers) -> Keys:
        """The digits of the ids of passages."""
        return self._keys[numbers]

    def ids(self, numbers: Numbers) -> pa.StringArray:
        """The ids of passages."""
        return passage_ids(self.digits(numbers))

    def texts(self, numbers: Numbers) -> pa.Table:
        """PASSAGE_TEXTS of passages."""
        return self._texts.take(self._order[numbers])

    def near_duplicates(self, relevant: Mask, chosen: Mask) -> Lists:
        """Of each passage in ``relevant``, its near-duplicates in ``chosen``. Can be called once."""
        number_of = np.argsort(self._order)
        pairs = self._index.find_pairs(
            relevant[number_of],
            chosen[number_of],
            lambda added: str(self._texts.take(np.array([added]))["text"][0]),
        )
        owners, duplicates = (number_of[each] for each in pairs)
        return Lists.group(owners, duplicates, len(self))


@dataclass(frozen=True)
class Examples:
    """Examples as numbers, one element for each.

    Attributes:
        queries: the numbers of the queries.
        passages: the ids of the positive, then of the negatives (two-dimensional).
        hard: whether the kind is hard.
        known: whether the positive is a known answer.
        outranking: whether each negative outranks the positive (two-dimensional).
        labels: of the positive, then of the negatives (two-dimensional); NaN for none.
    """

    queries: Numbers
    passages: Keys
    hard: Mask
    known: Mask
    outranking: Mask
    labels: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.queries)

    def take(self, positions: Numbers | Mask) -> "Examples":
        """The examples at ``positions``."""
        return Examples(*(each[positions] for each in vars(self).values()))


class Mined:
    """The examples of all queries of an iteration, and what merging them needs.

    Queries are numbered in the order of their ids.

    Attributes:
        query_keys: of each query, the digits of its id.
        relevant: of each query, the ids of the passages that must never be its negatives, in ascending order.
        examples: by query, before easy ones are dropped.
        reasons: the number of queries without an example by reason.
    """

    def __init__(self, ctx: StepContext, folder: Path, passages: Passages):
        """Mine the pairs of all shards.

        Args:
            folder: for temporary files.
            passages: to add the passages of examples and the relevant passages of all queries to.
        """
        self._spec, self._stratified = ctx.spec.mine, ctx.spec.stratifies_negatives
        self._passages, self._candidates_path = passages, folder / "candidates"
        self._texts = TextFile(folder / "queries", tables.subset(tables.PAIRS, "query"))
        self.reasons: Counter[str] = Counter()
        self._mine(ctx)

    def _mine(self, ctx: StepContext) -> None:
        shards = range(ctx.spec.judge.shards)
        paths = [ctx.input(pairs_key(ctx.iteration, shard)) for shard in shards]
        ctx.progress.begin(sum(pq.read_metadata(path).num_rows for path in paths), "pairs mined")
        query_keys, lengths, relevant, examples = [], [], [], []
        first = 0
        with self._candidates_path.open("wb") as candidates:
            for shard, path in enumerate(paths):
                grades = _Grades(ctx.input(judgments_key(ctx.iteration, shard)))
                for table in tables.read_parts(path, _PAIRS):
                    part = _Part(table, grades)
                    found = self._mine_part(part)
                    examples.append(replace(found, queries=found.queries + first))
                    candidates.write(part.candidates(found.queries, first).tobytes())
                    query_keys.append(part.queries[part.starts[:-1]])
                    lengths.append(np.diff(part.relevant_starts))
                    relevant.append(part.passages[part.relevant_rows])
                    first += len(part)
                    ctx.progress.advance(table.num_rows)
        # In the order of ids, which does not depend on the number of shards.
        unordered = np.concatenate([np.empty(0, np.uint64), *query_keys])
        self._order = np.argsort(unordered)
        self._number_of = np.argsort(self._order)
        self.query_keys = unordered[self._order]
        starts = np.append(0, np.cumsum(np.concatenate([np.empty(0, np.int64), *lengths])))
        values = np.concatenate([np.empty(0, np.uint64), *relevant])
        self.relevant = Lists(starts, values).take(self._order)
        self.examples = self._ordered(examples)

    def _ordered(self, parts: Sequence[Examples]) -> Examples:
        columns = zip(*(vars(part).values() for part in [_no_examples(self._spec), *parts]), strict=True)
        joined = Examples(*map(np.concatenate, columns))
        joined = replace(joined, queries=self._number_of[joined.queries])
        return joined.take(np.argsort(joined.queries, kind="stable"))

    def _mine_part(self, part: "_Part") -> Examples:
        """The examples of the part's queries, which are numbered from 0."""
        table, ids = part.table, part.ids
        shingles_of = mining.shingles_by_id(table)
        is_duplicate = mining.duplicate_check(shingles_of)
        queries: list[int] = []
        examples: list[Example] = []
        for number, (candidates, relevant) in enumerate(part.by_query()):
            found, reason = mining.mine_query(candidates, relevant, self._spec, is_duplicate, self._stratified)
            if reason:
                self.reasons[reason] += 1
            queries += [number] * len(found)
            examples += found
        row_of = {passage: row for row, passage in enumerate(ids)}
        rows = [[row_of[c.passage_id] for c in (each.positive, *each.negatives)] for each in examples]
        used = np.unique(np.append(part.relevant_rows, np.array(rows, np.int64)))
        # A passage may be in several pairs.
        used = used[np.unique(part.passages[used], return_index=True)[1]]
        self._passages.add(table.select(["passage_id", *tables.PASSAGE_TEXTS.names]).take(used), shingles_of)
        self._texts.append(table.select(["query"]).take(part.starts[:-1]))
        if not examples:
            return _no_examples(self._spec)
        return Examples(
            np.array(queries),
            part.passages[np.array(rows)],
            np.array([each.kind == "hard" for each in examples]),
            np.array([each.positive.known for each in examples]),
            np.array([[n.rank < each.positive.rank for n in each.negatives] for each in examples]),
            np.array(
                [[mining.target_grade(c, self._spec) for c in (e.positive, *e.negatives)] for e in examples], np.float32
            ),
        )

    def anchors(self, queries: Numbers) -> pa.ChunkedArray:
        """The texts of queries."""
        return self._texts.take(self._order[queries])["query"]

    def candidates_of_examples(self, passages: Passages, is_positive: Mask, is_chosen: Mask) -> tuple[Lists, Lists]:
        """Of each query with examples, the candidates that are positives, and the chosen ones that were not judged.

        Args:
            passages: numbers the passages.
            is_positive: whether a passage is the positive of an example.
            is_chosen: whether a passage is in an example.
        """
        found: list[tuple[Numbers, Numbers, Mask]] = []
        chosen = np.flatnonzero(is_chosen)
        chosen_keys = passages.digits(chosen)
        with self._candidates_path.open("rb") as file:
            while len(records := np.fromfile(file, _CANDIDATE, _READ)):
                records = records[np.isin(records["passage"], chosen_keys)]
                queries = self._number_of[records["query"]].astype(np.int32)
                numbers = chosen[np.searchsorted(chosen_keys, records["passage"])].astype(np.int32)
                found.append((queries, numbers, records["judged"]))
        none = (np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.bool_))
        queries, numbers, judged = map(np.concatenate, zip(none, *found, strict=True))
        positive = is_positive[numbers]
        count = len(self.query_keys)
        return (
            Lists.group(queries[positive], numbers[positive], count),
            Lists.group(queries[~judged], numbers[~judged], count),
        )


def _no_examples(spec: MineSpec) -> Examples:
    width = spec.num_negatives
    return Examples(
        np.empty(0, np.int64),
        np.empty((0, width + 1), np.uint64),
        np.empty(0, np.bool_),
        np.empty(0, np.bool_),
        np.empty((0, width), np.bool_),
        np.empty((0, width + 1), np.float32),
    )


class _Grades:
    """A shard's grades."""

    def __init__(self, path: Path):
        table = tables.read(path, _GRADES)
        queries = keys(table["query_id"])
        order = np.argsort(queries, kind="stable")
        self._queries, self._passages = queries[order], keys(table["passage_id"])[order]
        self._grades = table["grade"].to_numpy()[order]
        self._expected = table["expected"].to_numpy()[order]

    def join(self, queries: Keys, passages: Keys) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
        """Grade and expected grade of each pair; 0 and NaN if it was not judged. Queries are ascending."""
        # Small numbers instead of keys, so that one number identifies a pair.
        query_keys, passage_keys = np.unique(queries), np.unique(passages)

        def pairs(queries: Keys, passages: Keys) -> Numbers:
            numbers = np.searchsorted(query_keys, queries) * len(passage_keys)
            return numbers + np.searchsorted(passage_keys, passages)

        first, end = (
            np.searchsorted(self._queries, query_keys[0]),
            np.searchsorted(self._queries, query_keys[-1], "right"),
        )
        judged = np.arange(first, end)
        judged = judged[np.isin(self._queries[judged], query_keys) & np.isin(self._passages[judged], passage_keys)]
        own, other = pairs(queries, passages), pairs(self._queries[judged], self._passages[judged])
        order = np.argsort(own)
        rows = order[np.searchsorted(own, other, sorter=order).clip(max=len(own) - 1)]
        matches = own[rows] == other
        grades, expected = np.zeros(len(queries), np.int8), np.full(len(queries), np.nan, np.float32)
        grades[rows[matches]] = self._grades[judged[matches]]
        expected[rows[matches]] = self._expected[judged[matches]]
        return grades, expected


class _Part:
    """A row group of pairs with their grades.

    Attributes:
        starts: the row at which each query starts; the last number is the end.
        relevant_rows: the rows of relevant passages, by query and passage id.
        relevant_starts: as ``starts``, for ``relevant_rows``.
    """

    def __init__(self, table: pa.Table, grades: _Grades):
        self.table = table
        self.queries, self.passages = keys(table["query_id"]), keys(table["passage_id"])
        self.ids: list[str] = table["passage_id"].to_pylist()
        self._grades, self._expected = grades.join(self.queries, self.passages)
        self._known = table["known"].to_numpy()
        self._is_candidate = table["rank"].is_valid().to_numpy()
        self.starts = np.flatnonzero(np.diff(self.queries, prepend=~self.queries[:1], append=~self.queries[-1:]))
        rows = np.flatnonzero(table["relevant"].to_numpy() | (self._grades >= RELEVANT))
        self.relevant_rows = rows[np.lexsort((self.passages[rows], self.queries[rows]))]
        self.relevant_starts = np.searchsorted(rows, self.starts)

    def __len__(self) -> int:
        """The number of queries."""
        return len(self.starts) - 1

    def by_query(self) -> Iterator[tuple[list[Candidate], set[str]]]:
        """Each query's candidates that matter for mining, and the ids of its relevant passages."""
        # The others are neither positives nor negatives.
        rows = np.flatnonzero(self._is_candidate & ((self._grades > 0) | self._known))
        selected = self.table.select(["passage_id", "rank", "score"]).take(rows)
        grades, expected = self._grades[rows].tolist(), self._expected[rows].tolist()
        candidates = list(
            map(
                Candidate,
                *(column.to_pylist() for column in selected.columns),
                (grade or None for grade in grades),
                (value if grade else None for grade, value in zip(grades, expected, strict=True)),
                self._known[rows].tolist(),
            )
        )
        starts = np.searchsorted(rows, self.starts).tolist()
        relevant = [self.ids[row] for row in self.relevant_rows.tolist()]
        relevant_starts = self.relevant_starts.tolist()
        for number in range(len(self)):
            yield (
                candidates[starts[number] : starts[number + 1]],
                set(relevant[relevant_starts[number] : relevant_starts[number + 1]]),
            )

    def candidates(self, queries: Numbers, first: int) -> npt.NDArray[Any]:
        """_CANDIDATE of the candidates of ``queries``, whose numbers are increased by ``first``, best first."""
        numbers = np.repeat(np.arange(len(self)), np.diff(self.starts))
        rows = np.flatnonzero(self._is_candidate & np.isin(numbers, queries))
        records = np.empty(len(rows), _CANDIDATE)
        records["query"], records["passage"] = numbers[rows] + first, self.passages[rows]
        records["judged"] = self._grades[rows] > 0
        return records
