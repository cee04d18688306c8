"""The Arrow schemas of the tables that a run writes, and functions to write and read them.

Tables are Parquet files. Open them with ``datasets.load_dataset("parquet", data_files=...)``.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pyrite.errors import PyriteError

#: Texts that need not fit into memory. Each call with a block size yields all texts in order, in blocks.
Texts = Callable[[int], Iterable[Sequence[str]]]


def subset(schema: pa.Schema, *names: str) -> pa.Schema:
    """The schema of the columns ``names`` of ``schema``."""
    return pa.schema([schema.field(name) for name in names])


_parent = pa.struct(
    [
        ("document_id", pa.string()),
        # Character offsets of the passage in the document's text: text[start:end] == passage text.
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("topic", pa.string()),
        ("type", pa.string()),
    ]
)

#: One row per distinct passage. ``parents`` lists all its occurrences in documents. ``near_duplicate`` is the id of a
#: near-duplicate passage on the other side of the boundary between training and held-out data, null if there is none.
#: ``group`` names the group of topics, documents and passages that shares a split; null if prepare assigned no split to
#: it. ``boilerplate``: whether many documents contain the passage in addition to their own text.
PASSAGES = pa.schema(
    [
        ("passage_id", pa.string()),
        ("text", pa.string()),
        ("title", pa.string()),
        # The line before the text wherever a model reads the passage (``in_context``); empty: none.
        ("context", pa.string()),
        ("split", pa.string()),
        ("near_duplicate", pa.string()),
        ("group", pa.string()),
        ("boilerplate", pa.bool_()),
        ("parents", pa.list_(_parent)),
    ]
)

#: The columns of PASSAGES that a search reads into memory.
PASSAGE_IDS = subset(PASSAGES, "passage_id", "split", "near_duplicate")

#: The columns of PASSAGES that the judge of the labels needs.
PASSAGE_PARENTS = subset(PASSAGES, "passage_id", "parents")

#: The columns of PASSAGES and PAIRS with texts.
PASSAGE_TEXTS = subset(PASSAGES, "context", "title", "text")

#: One row per distinct query. ``split`` is train, val or test; ``question_ids`` are the source's questions.
#: ``group`` is as in PASSAGES: null if the data set assigns the splits, or if a query was generated without a passage.
QUERIES = pa.schema(
    [
        ("query_id", pa.string()),
        ("text", pa.string()),
        ("topic", pa.string()),
        ("type", pa.string()),
        ("split", pa.string()),
        ("group", pa.string()),
        ("question_ids", pa.list_(pa.string())),
    ]
)

#: The relevance labels of the data set. ``grade`` is above 0.
QRELS = pa.schema([("query_id", pa.string()), ("passage_id", pa.string()), ("grade", pa.int8())])

#: The best passages of each query in a part of the corpus, by numbers: ``query`` is a row of the split's queries, and
#: ``position`` that of the passage in the corpus (-1 if the part has fewer passages; ``score`` is then -inf).
FOUND = pa.schema([("query", pa.int32()), ("position", pa.int64()), ("score", pa.float32())])

#: What the current model retrieves. ``rank`` starts at 1; ``score`` is the model's similarity (cosine or dot).
CANDIDATES = pa.schema(
    [
        ("query_id", pa.string()),
        ("passage_id", pa.string()),
        ("rank", pa.int32()),
        ("score", pa.float32()),
    ]
)

#: The pairs of a shard's queries with their texts: the candidates, then relevant passages that are no candidates (rank
#: and score are null), because no near-duplicate of them may be a negative. ``known``: the passage is a known answer.
#: ``relevant``: it is one, or an earlier iteration judged it relevant. ``sampled``: a known answer that is judged to
#: check the judge, although mining does not need its grade.
PAIRS = pa.schema(
    [
        ("query_id", pa.string()),
        ("passage_id", pa.string()),
        ("rank", pa.int32()),
        ("score", pa.float32()),
        ("query", pa.string()),
        ("title", pa.string()),
        ("context", pa.string()),
        ("text", pa.string()),
        ("known", pa.bool_()),
        ("relevant", pa.bool_()),
        ("sampled", pa.bool_()),
    ]
)

#: One graded pair. ``p1``..``p4`` is the judge's distribution over the grades (null if it gives none), ``expected`` its
#: mean (1.0 to 4.0; the grade if there is no distribution). In published tables, ``grade`` and ``expected`` are
#: calibrated (``judges.calibration``), and ``judge`` names the calibration. ``context`` is the passage's context as the
#: judge read it. ``latency`` is in seconds; ``attempts`` counts requests.
JUDGMENTS = pa.schema(
    [
        ("query_id", pa.string()),
        ("passage_id", pa.string()),
        ("grade", pa.int8()),
        ("p1", pa.float32()),
        ("p2", pa.float32()),
        ("p3", pa.float32()),
        ("p4", pa.float32()),
        ("expected", pa.float32()),
        ("judge", pa.string()),
        ("context", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("cached_tokens", pa.int32()),
        ("latency", pa.float32()),
        ("attempts", pa.int16()),
        # As a reranker gives it; null with other judges.
        ("score", pa.float32()),
    ]
)

#: A pair that the judge could not grade, and why. It is neither a positive nor a negative.
MISSING = pa.schema(
    [("query_id", pa.string()), ("passage_id", pa.string()), ("reason", pa.string()), ("attempts", pa.int16())]
)

#: Metrics per query, in long form. ``model`` is base, iteration-1, iteration-1@0.3 (a blend), and so on.
PER_QUERY = pa.schema(
    [
        ("model", pa.string()),
        ("split", pa.string()),
        ("query_id", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
    ]
)

#: Metrics per test query of smaller embeddings (``embedding.smaller``), in long form. ``bytes``: size of a passage in
#: the index. ``rescored_bytes``: size of a passage on disk, from which the first ones are scored again; 0: none are.
SMALLER = pa.schema(
    [
        ("model", pa.string()),
        ("embedding", pa.string()),
        ("dims", pa.int32()),
        ("bytes", pa.int32()),
        ("rescored_bytes", pa.int32()),
        ("query_id", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
    ]
)

#: Metrics per query of a retention set. ``set`` is its name, ``model`` as in PER_QUERY.
RETENTION = pa.schema(
    [
        ("model", pa.string()),
        ("set", pa.string()),
        ("query_id", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
    ]
)

#: The top passages by model, for the report. ``rank`` starts at 1.
RANKINGS = pa.schema(
    [
        ("model", pa.string()),
        ("split", pa.string()),
        ("query_id", pa.string()),
        ("passage_id", pa.string()),
        ("rank", pa.int32()),
        ("score", pa.float32()),
    ]
)


def examples(negatives: int) -> pa.Schema:
    """Schema of the training examples, with ``negatives`` negatives each (at least 1).

    The text columns have the names that sentence-transformers uses. ``relevant_ids`` are the passages that must not be
    negatives of this query, including in-batch negatives. Examples of one ``group`` are each other's hard negatives and
    should share a batch. ``label`` holds the judge's expected grades of the positive and of each negative, in that
    order (length ``negatives + 1``); with mine.known_first, a known answer has 4.
    """
    return pa.schema(
        [
            ("query_id", pa.string()),
            ("positive_id", pa.string()),
            ("negative_ids", pa.list_(pa.string())),
            ("relevant_ids", pa.list_(pa.string())),
            ("kind", pa.string()),
            ("iteration", pa.int32()),
            ("group", pa.string()),
            ("anchor", pa.string()),
            ("positive", pa.string()),
            *((f"negative_{i}", pa.string()) for i in range(1, negatives + 1)),
            ("label", pa.list_(pa.float32())),
        ]
    )


def write(path: Path, rows: Iterable[Mapping[str, Any]] | pa.Table, schema: pa.Schema) -> int:
    """Write ``rows`` to ``path`` as Parquet, cast to ``schema``; return their number."""
    table = rows.cast(schema) if isinstance(rows, pa.Table) else pa.Table.from_pylist(list(rows), schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd")
    return int(table.num_rows)


def write_parts(path: Path, parts: Iterable[pa.Table], schema: pa.Schema) -> None:
    """Write each of ``parts`` to ``path`` as one row group, so that only one of them is in memory.

    With one part, the file is the same as by ``write``.
    """
    with writer(path, schema) as output:
        for part in parts:
            output.write_table(part, row_group_size=max(1, part.num_rows))


def writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A context manager that writes tables to ``path`` as row groups, with ``write_table``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return pq.ParquetWriter(path, schema, compression="zstd")


def in_context(passages: pa.Table) -> list[str]:
    """The passages as models read them: context and text, joined by a line break. Needs the columns context and text.

    Every embedding, prompt and training example uses this form. A passage often does not name its subject, but its
    title does. Ids, duplicates and hashes refer to the text alone.
    """
    joined: list[str] = join_context(passages).to_pylist()
    return joined


def join_context(passages: pa.Table) -> pa.ChunkedArray:
    """As ``in_context``, in Arrow."""
    context, text = passages["context"], passages["text"]
    return pc.if_else(pc.equal(context, ""), text, pc.binary_join_element_wise(context, text, "\n"))


def read_in_blocks(path: Path, *, context: bool = True) -> Texts:
    """The passages at ``path``, in context or without it."""

    def read_blocks(rows: int) -> Iterator[list[str]]:
        block: list[str] = []
        with pq.ParquetFile(path) as file:  # not a memory map: its pages would count as this process's memory
            for batch in file.iter_batches(rows, columns=["context", "text"] if context else ["text"]):
                block += in_context(pa.Table.from_batches([batch])) if context else batch["text"].to_pylist()
                while len(block) >= rows:
                    yield block[:rows]
                    block = block[rows:]
        if block:
            yield block

    return read_blocks


def read_parts(path: Path, schema: pa.Schema) -> Iterator[pa.Table]:
    """The columns of ``schema`` from the Parquet file at ``path``, a row group at a time. Raises as ``read`` does."""
    try:
        with pq.ParquetFile(path) as file:
            for number in range(file.num_row_groups):
                yield _checked(path, file.read_row_group(number, _present(schema, file.schema_arrow.names)), schema)
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(path, error) from error


def read(path: Path, schema: pa.Schema) -> pa.Table:
    """Read the columns of ``schema`` from the Parquet file at ``path``.

    Raises:
        PyriteError: the file is not Parquet, or lacks a column of ``schema``.
    """
    try:
        table = pq.read_table(path, columns=_present(schema, pq.read_schema(path).names))
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(path, error) from error
    return _checked(path, table, schema)


def _present(schema: pa.Schema, names: Collection[str]) -> list[str]:
    return [name for name in schema.names if name in names]


def _unreadable(path: Path, error: Exception) -> PyriteError:
    return PyriteError(f"{path}: not a readable Parquet file ({error}). Delete it and run the step again.")


def _checked(path: Path, table: pa.Table, schema: pa.Schema) -> pa.Table:
    if table.schema.names != schema.names:
        raise PyriteError(f"{path}: columns are {table.schema.names}, expected {schema.names}. Run the step again.")
    return table.cast(schema)
