"""mine: turns judged candidates into training examples, and with mine.accumulate adds those of earlier iterations.

It reads the pairs with their grades, a row group at a time, and mines each query (``stages.mined``). Then it merges the
examples of all queries. Memory holds numbers of the examples, and their texts are in temporary files.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pyrite import tables
from pyrite.errors import PyriteError, UserError
from pyrite.generation.filters import content_words
from pyrite.identity import Keys, keys, passage_id, passage_ids, query_id, query_ids
from pyrite.judges.base import GRADES
from pyrite.plan import Step
from pyrite.ragged import Lists, Mask, Numbers
from pyrite.splitting import draw
from pyrite.stages.context import StepContext
from pyrite.stages.inputs import read_passage_parts, read_queries
from pyrite.stages.mined import Examples, Mined, Passages
from pyrite.training.merging import group_neighbours, mix
from pyrite.training.mining import shingles_by_id
from pyrite.training.title_pairs import MAX_PASSAGES, TITLE, title_pairs

#: Passages of the examples that are written as one row group. Their texts are in memory.
PART = 1 << 14

_TITLES = tables.subset(tables.PASSAGES, "passage_id", "title", "context", "parents")
_TEXTS = tables.subset(tables.PASSAGES, "passage_id", *tables.PASSAGE_TEXTS.names)


def run(ctx: StepContext) -> dict[str, Any]:
    """Write iterations/<i>/examples.parquet; return the counts of examples, and of queries without any by reason."""
    with ctx.temporary_folder("mined") as folder:
        return _mine(ctx, folder)


def _mine(ctx: StepContext, folder: Path) -> dict[str, Any]:
    spec = ctx.spec.mine
    passages = Passages(folder)
    mined = Mined(ctx, folder, passages)
    examples = mined.examples.take(_select(mined, ctx))
    titles, about_titles = _title_pairs(ctx, passages)
    earlier = _earlier(ctx, mined, examples, passages)
    passages.finish()

    relevant = _relevant(mined, titles, passages)
    groups = _groups(mined, passages.numbers(examples.passages), examples.queries, relevant, passages, spec.neighbours)
    owners = np.concatenate([earlier.owners, examples.queries, len(mined.query_keys) + np.arange(len(titles.keys))])
    chosen = passages.numbers(np.concatenate([earlier.passages, examples.passages, titles.passages]))
    relevant, used = protect_near_duplicates(owners, chosen, relevant, passages)
    counts = [len(earlier.owners), len(examples), len(titles.keys)]
    parts = np.split(used, np.cumsum(counts)[:-1])
    accumulated, new, of_titles = (int(part.sum()) for part in parts)
    if not accumulated + new:
        why = ", ".join(f"{reason}: {count}" for reason, count in mined.reasons.most_common())
        raise UserError(
            f"mining found no example in {len(mined.query_keys)} queries ({why}). "
            "Lower mine.positive_grade, use another mine.rule, or raise retrieve.range_max."
        )
    writer = _Writer(ctx, passages, relevant)
    written = chain(
        writer.earlier(earlier, parts[0]),
        writer.mined(mined, examples, groups, np.flatnonzero(parts[1])),
        writer.titles(titles, len(mined.query_keys), np.flatnonzero(parts[2])),
    )
    path = ctx.output(f"iterations/{ctx.iteration}/examples.parquet")
    tables.write_parts(path, written, tables.examples(spec.num_negatives))
    hard, known = int(examples.hard.sum()), int(examples.known.sum())
    if hard == len(examples):
        ctx.progress.message(
            "warning: there is no easy example; training on hard examples alone can invert the model's ranking"
        )
    return {
        "queries": len(mined.query_keys),
        "hard": hard,
        "easy": len(examples) - hard,
        # Of hard examples, some negative outranks the positive; of outranked ones, a negative that was chosen.
        "outranked": int(examples.outranking.any(axis=1).sum()),
        "known_positives": known,
        "judged_positives": len(examples) - known,
        "accumulated": accumulated,
        **_hard_pairs(examples),
        "examples": accumulated + new + of_titles,
        **({"title_pairs": of_titles, **about_titles} if spec.title_pairs else {}),
        "queries_without_examples": dict(mined.reasons.most_common()),
    }


def _select(mined: Mined, ctx: StepContext) -> Mask:
    """Which examples to use (mine.easy_per_hard)."""
    examples = mined.examples

    def sort_key(position: int) -> bytes:
        (query,) = query_ids(mined.query_keys[examples.queries[[position]]]).to_pylist()
        (positive,) = passage_ids(examples.passages[[position], 0]).to_pylist()
        return hashlib.sha256(f"{ctx.spec.seed} {query} {positive}".encode()).digest()

    return mix(examples.hard, ctx.spec.mine.easy_per_hard, sort_key)


def _hard_pairs(examples: Examples) -> dict[str, int]:
    """The numbers of distinct positives and negatives of hard examples, where the negatives outrank the positive."""

    def count(negatives: bool) -> int:
        passages = examples.passages[:, 1:] if negatives else examples.passages[:, :1]
        selected = examples.hard[:, None] & (examples.outranking if negatives else True)
        rows, columns = np.nonzero(np.broadcast_to(selected, passages.shape))
        pairs = np.column_stack([examples.queries[rows].astype(np.uint64), passages[rows, columns]])
        return len(np.unique(pairs, axis=0))

    return {"hard_positives": count(False), "hard_negatives": count(True)}


def _relevant(mined: Mined, titles: "_Titles", passages: Passages) -> Lists:
    """The relevant passages of each query, then of each title pair."""
    queries, count = mined.relevant, len(mined.query_keys)
    # A title may be the text of a query.
    is_query = np.isin(titles.keys, mined.query_keys)
    of_queries = queries.take(np.searchsorted(mined.query_keys, titles.keys[is_query]))
    owners = np.concatenate(
        [
            queries.owners(),
            count + titles.relevant.owners(),
            count + np.flatnonzero(is_query)[of_queries.owners()],
        ]
    )
    values = np.concatenate([queries.values, titles.relevant.values, of_queries.values])
    return Lists.group(owners, passages.numbers(values), count + len(titles.keys))


def _groups(mined: Mined, chosen: Numbers, queries: Numbers, relevant: Lists, passages: Passages, size: int) -> Numbers:
    """The groups of the examples (``group_neighbours``)."""
    is_positive, is_chosen = np.zeros((2, len(passages)), np.bool_)
    is_positive[chosen[:, 0]], is_chosen[chosen] = True, True
    candidates, unjudged = mined.candidates_of_examples(passages, is_positive, is_chosen)
    count = len(mined.query_keys)
    protected = relevant.take(np.arange(count))
    in_examples = is_chosen[protected.values]
    barred = Lists.group(
        np.concatenate([unjudged.owners(), protected.owners()[in_examples]]),
        np.concatenate([unjudged.values, protected.values[in_examples]]),
        count,
    )
    return group_neighbours(queries, chosen, candidates, barred, size)


def protect_near_duplicates(
    owners: Numbers, chosen: Numbers, relevant: Lists, passages: Passages
) -> tuple[Lists, Mask]:
    """Add near-duplicates of relevant passages to ``relevant``, so that examples with them do not share a batch.

    In a batch, the passages of the other examples are negatives. An example whose own negative turns out to be relevant
    is not used.

    Args:
        owners: of each example, the number of its list in ``relevant``.
        chosen: of each example, the positive, then the negatives (two-dimensional).

    Returns:
        The new lists, and which examples to use.
    """
    is_relevant, is_chosen = np.zeros((2, len(passages)), np.bool_)
    is_relevant[relevant.take(np.unique(owners)).values], is_chosen[chosen] = True, True
    duplicates = passages.near_duplicates(is_relevant, is_chosen)
    size, owner_of = max(1, len(passages)), relevant.owners()
    added = np.repeat(owner_of, duplicates.lengths[relevant.values]), duplicates.take(relevant.values).values
    pairs = np.unique(np.append(owner_of * size + relevant.values, added[0] * size + added[1]))
    is_wrong = np.isin(owners[:, None] * size + chosen[:, 1:], pairs)
    return Lists.group(*np.divmod(pairs, size), len(relevant)), np.asarray(~is_wrong.any(axis=1))


# --- examples of earlier iterations -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Earlier:
    """The examples of earlier iterations that are not mined again, in the file ``path``.

    Attributes:
        owners: the numbers of the queries.
        passages: of each example, the ids of the positive, then of the negatives (two-dimensional).
        selected: whether each row of the file is such an example.
    """

    path: Path | None
    owners: Numbers
    passages: Keys
    selected: Mask


def _earlier(ctx: StepContext, mined: Mined, examples: Examples, passages: Passages) -> _Earlier:
    """The examples of earlier iterations that are not in ``examples``.

    Without title pairs, which are drawn in each iteration.
    """
    width = ctx.spec.mine.num_negatives + 1
    if ctx.iteration == 1 or not ctx.spec.mine.accumulate:
        return _Earlier(None, np.empty(0, np.int64), np.empty((0, width), np.uint64), np.empty(0, np.bool_))
    path = ctx.input(f"iterations/{ctx.iteration - 1}/examples.parquet")
    mined_again = set(_identities(mined.query_keys[examples.queries], examples.passages))
    parts = []
    for table in tables.read_parts(path, tables.examples(width - 1)):
        query_keys = keys(table["query_id"])
        negatives = keys(pa.chunked_array([pc.list_flatten(table["negative_ids"].combine_chunks())]))
        chosen = np.column_stack([keys(table["positive_id"]), negatives.reshape(len(table), width - 1)])
        repeated = [identity in mined_again for identity in _identities(query_keys, chosen)]
        selected = ~(np.array(repeated, np.bool_) | pc.equal(table["kind"], TITLE).to_numpy())
        _add_passages(table.filter(pa.array(selected)), passages)
        parts.append((query_keys[selected], chosen[selected], selected))
    query_keys, chosen, selected = map(np.concatenate, zip(*parts, strict=True))
    if not np.isin(query_keys, mined.query_keys).all():
        raise PyriteError(f"{path}: has queries without candidates. Run {Step('mine', ctx.iteration - 1).name} again.")
    return _Earlier(path, np.searchsorted(mined.query_keys, query_keys), chosen, selected)


def _identities(query_keys: Keys, passages: Keys) -> Iterator[bytes]:
    return (row.tobytes() for row in np.column_stack([query_keys, passages]))


def _add_passages(examples: pa.Table, passages: Passages) -> None:
    """Add the passages of ``examples`` that are new."""
    new = {}
    for number in range(len(examples["negative_ids"][0]) + 1 if len(examples) else 0):
        name = f"negative_{number}" if number else "positive"
        ids = pc.list_element(examples["negative_ids"], number - 1) if number else examples["positive_id"]
        for id, text in zip(ids.to_pylist(), examples[name].to_pylist(), strict=True):
            if id not in passages:
                new[id] = _without_context(id, text)
    table = pa.Table.from_pylist([{"passage_id": id, "text": text} for id, text in new.items()], _TEXTS)
    passages.add(table, shingles_by_id(table))


def _without_context(id: str, passage: str) -> str:
    """The text of a passage in context. Its id, which depends on the text alone, decides whether there is a context."""
    _, _, text = passage.partition("\n")
    return text if text and passage_id(text) == id else passage


# --- title pairs ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Titles:
    """Title pairs.

    Attributes:
        keys: of each pair, the digits of the id of the query.
        passages: of each pair, the ids of the positive, then of the negatives (two-dimensional).
        relevant: of each pair, the ids of all passages with its title.
    """

    keys: Keys
    passages: Keys
    relevant: Lists


def _title_pairs(ctx: StepContext, passages: Passages) -> tuple[_Titles, dict[str, int]]:
    """The pairs of mine.title_pairs, from passages of all splits, and how many a held-out query excludes.

    Raises:
        UserError: mine.title_pairs is set, but no pair can be created.
    """
    spec = ctx.spec.mine
    none = np.empty(0, np.uint64)
    if not spec.title_pairs:
        return _Titles(none, np.empty((0, spec.num_negatives + 1), np.uint64), Lists(np.zeros(1, np.int64), none)), {}
    queries = read_queries(ctx)
    is_train = pc.equal(queries["split"], "train")
    held_out = {content_words(text) for text in queries.filter(pc.invert(is_train))["text"].to_pylist()}
    # Passages with the same title follow each other.
    key_of = lru_cache(lambda title: int(query_id(title)[1:], 16))
    is_held_out = lru_cache(lambda title: content_words(title) in held_out)
    columns: list[list[npt.NDArray[Any]]] = [[], [], [], []]
    for part in read_passage_parts(ctx, _TITLES):
        titles = pc.fill_null(part["title"], "").to_pylist()
        one_parent = pc.less_equal(pc.fill_null(pc.list_value_length(part["parents"]), 0), 1)
        names_subject = pc.and_(pc.fill_null(pc.not_equal(part["context"], ""), False), one_parent).to_numpy()
        held = (named and is_held_out(title) for title, named in zip(titles, names_subject.tolist(), strict=True))
        new = (
            keys(part["passage_id"]),
            np.fromiter(map(key_of, titles), np.uint64, len(titles)),
            names_subject,
            np.fromiter(held, np.bool_, len(titles)),
        )
        for column, values in zip(columns, new, strict=True):
            column.append(values)
    ids, title_keys, usable, excluded = map(np.concatenate, columns)

    def sort_keys(rows: Numbers) -> Keys:
        digests = (draw(ctx.spec.seed, f"{ctx.iteration} {id}")[:8] for id in passage_ids(ids[rows]).to_pylist())
        return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)

    pairs, dropped = title_pairs(title_keys, usable, excluded, spec.title_pairs, spec.num_negatives, sort_keys)
    if not len(pairs.titles):
        raise UserError(
            f"mine.title_pairs is {spec.title_pairs}, but there is no pair: {usable.sum()} of {len(ids)} passages have "
            f"one title that they do not start with, and the titles of {dropped} of these are held-out questions. At "
            f"least {spec.num_negatives + 1} titles with at most {MAX_PASSAGES} passages each are needed. Set "
            "mine.title_pairs to 0, or add titles to the source."
        )
    found = _Titles(pairs.titles, ids[pairs.passages], Lists(pairs.relevant.starts, ids[pairs.relevant.values]))
    needed = np.union1d(found.passages, found.relevant.values)
    for part in read_passage_parts(ctx, _TEXTS):
        own = part.filter(pa.array(np.isin(keys(part["passage_id"]), needed)))
        passages.add(own, shingles_by_id(own))
    return found, {"title_pairs_of_held_out_queries": dropped}


# --- writing ----------------------------------------------------------------------------------------------------------


class _Writer:
    """Creates the table of examples in parts."""

    def __init__(self, ctx: StepContext, passages: Passages, relevant: Lists):
        """``relevant``: of each query and title pair, the numbers of the relevant passages."""
        self._iteration, self._passages, self._relevant = ctx.iteration, passages, relevant
        self._schema = tables.examples(ctx.spec.mine.num_negatives)
        self._rows = max(1, PART // (ctx.spec.mine.num_negatives + 1))

    def earlier(self, earlier: _Earlier, used: Mask) -> Iterator[pa.Table]:
        """The ``used`` ones of the examples of earlier iterations."""
        if earlier.path is None:
            return
        in_file = np.zeros(len(earlier.selected), np.bool_)
        in_file[earlier.selected] = used
        owners, row = earlier.owners[used], 0
        for table in tables.read_parts(earlier.path, self._schema):
            part = table.filter(pa.array(in_file[row : row + len(table)]))
            row += len(table)
            if len(part):
                relevant = pa.chunked_array([self._relevant_ids(owners[: len(part)])])
                owners = owners[len(part) :]
                yield part.set_column(self._schema.get_field_index("relevant_ids"), "relevant_ids", relevant)

    def mined(self, mined: Mined, examples: Examples, groups: Numbers, used: Numbers) -> Iterator[pa.Table]:
        """The ``used`` positions of the examples of this iteration."""
        for positions in self._parts(used):
            own = examples.take(positions)
            yield self._table(
                query_ids(mined.query_keys[own.queries]),
                self._passages.numbers(own.passages),
                own.queries,
                pa.array(np.where(own.hard, "hard", "easy")),
                [f"{self._iteration}-{group}" for group in groups[positions].tolist()],
                mined.anchors(own.queries),
                tables.in_context,
                own.labels,
            )

    def titles(self, titles: _Titles, first_owner: int, used: Numbers) -> Iterator[pa.Table]:
        """The ``used`` positions of title pairs, whose lists of relevant passages start at ``first_owner``."""
        for positions in self._parts(used):
            chosen = self._passages.numbers(titles.passages[positions])
            labels = np.full(chosen.shape, min(GRADES), np.float32)
            labels[:, 0] = max(GRADES)
            yield self._table(
                query_ids(titles.keys[positions]),
                chosen,
                first_owner + positions,
                pa.array([TITLE] * len(positions)),
                [f"{self._iteration}-{TITLE}-{number}" for number in positions.tolist()],
                pa.array(" ".join(title.split()) for title in self._passages.texts(chosen[:, 0])["title"].to_pylist()),
                lambda texts: texts["text"].to_pylist(),
                labels,
            )

    def _parts(self, positions: Numbers) -> Iterator[Numbers]:
        return (positions[start : start + self._rows] for start in range(0, len(positions), self._rows))

    def _table(
        self,
        queries: pa.Array,
        chosen: Numbers,
        owners: Numbers,
        kinds: pa.Array,
        groups: list[str],
        anchors: pa.Array,
        texts_of: Callable[[pa.Table], list[str]],
        labels: npt.NDArray[np.float32],
    ) -> pa.Table:
        width = chosen.shape[1]
        texts = texts_of(self._passages.texts(chosen.ravel()))
        columns = {
            "query_id": queries,
            "positive_id": self._passages.ids(chosen[:, 0]),
            "negative_ids": _lists(self._passages.ids(chosen[:, 1:].ravel()), width - 1),
            "relevant_ids": self._relevant_ids(owners),
            "kind": kinds,
            "iteration": pa.repeat(self._iteration, len(chosen)),
            "group": pa.array(groups),
            "anchor": anchors,
            "positive": pa.array(texts[::width]),
            **{f"negative_{number}": pa.array(texts[number::width]) for number in range(1, width)},
            "label": _lists(pa.array(labels.ravel(), from_pandas=True), width),
        }
        return pa.table(columns).select(self._schema.names).cast(self._schema)

    def _relevant_ids(self, owners: Numbers) -> pa.Array:
        own = self._relevant.take(owners)
        return pa.ListArray.from_arrays(pa.array(own.starts, pa.int32()), self._passages.ids(own.values))


def _lists(values: pa.Array, length: int) -> pa.Array:
    """``values`` in lists of one length."""
    return pa.ListArray.from_arrays(pa.array(range(0, len(values) + 1, length), pa.int32()), values)
