"""prepare: divides documents into passages, merges equal questions into queries, and splits both by topic.

The first pass reads the source, with texts on disk and numbers in memory (``stages.corpus``). The second one writes the
tables in parts. So memory grows by tens of bytes for each passage, and not with its text.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pyrite import splitting, tables
from pyrite.errors import UserError
from pyrite.identity import passage_ids, query_ids
from pyrite.progress import Progress
from pyrite.ragged import Mask, Numbers
from pyrite.sources import open_source
from pyrite.sources.base import Record
from pyrite.spec import PrepareSpec
from pyrite.splitting import SPLITS, Edges, Groups
from pyrite.stages.context import StepContext
from pyrite.stages.corpus import Corpus, Queries, Reader, merge_questions

OVER_LIMIT = "training query beyond prepare.max_train_queries"
ONLY_NEAR_DUPLICATES = "training query whose relevant passages are all near-duplicates of held-out passages"

PASSAGES = "corpus/passages.parquet"
QUERIES = "queries/queries.parquet"
QRELS = "queries/qrels.parquet"

#: Rows of a row group, which are in memory together. A smaller table has one row group.
PART = 1 << 15

#: Kinds of nodes in the graph whose connected components are the groups that share a split.
_DOCUMENT, _TOPIC, _CONCEPT, _PASSAGE, _QUERY = range(5)

_TRAIN = SPLITS.index("train")


def run(ctx: StepContext) -> dict[str, Any]:
    """Write corpus/passages, queries/queries and queries/qrels (all .parquet); return the summary."""
    source = open_source(ctx.spec.source)
    ctx.progress.begin(None, "records read")
    records = _count_records(source.records(), ctx.progress)
    spec, generates = ctx.spec.prepare, ctx.spec.generate is not None
    with ctx.temporary_folder("texts") as folder:
        summary = write_tables(
            records, spec, ctx.spec.data_seed, ctx.spec.name, ctx.output, folder, generates=generates
        )
    unit, counts = "queries", summary["queries"]
    if not any(counts.values()):
        unit, counts = "no queries; passages", summary["passage_splits"]
    ctx.progress.message(
        f"{summary['documents']:,} documents, {summary['passages']:,} passages; {unit}: "
        + ", ".join(f"{count:,} {split}" for split, count in counts.items())
    )
    for reason, count in summary["dropped"].items():
        ctx.progress.message(f"left out {count:,}: {reason} (for example {summary['dropped_examples'][reason][0]})")
    for note in summary["notes"]:
        ctx.progress.message(note)
    return summary


def _count_records(records: Iterable[Record], progress: Progress) -> Iterator[Record]:
    for record in records:
        yield record
        progress.advance(1)


def write_tables(
    records: Iterable[Record],
    spec: PrepareSpec,
    seed: int,
    name: str,
    output: Callable[[str], Path],
    folder: Path,
    *,
    generates: bool = False,
) -> dict[str, Any]:
    """Write the tables PASSAGES, QUERIES and QRELS of ``records``; return the step's summary.

    If the run ``generates`` questions, the source may have none: then passages are split by topic or document, and the
    tables of queries and qrels are empty. Passages and queries are in order of first occurrence.

    Args:
        name: the run's name, for messages.
        output: returns the path of a table by its key.
        folder: created, for temporary files of about 2.5 times the size of the texts.

    Raises:
        UserError: an id is not unique, only some questions have a split, no document has text, no query has a
            relevant passage, or a split has no query.
    """
    corpus = _read(records, spec, folder)
    if not corpus.occurrences.num_rows:
        raise UserError(
            f"{name}: the corpus is empty: no document with text was read{corpus.dropped.describe()}. "
            "Check source.path and source.collections (or the columns) in the run file."
        )
    notes = list(corpus.notes)
    queries = merge_questions(corpus)
    if generates and not corpus.questions.num_rows:
        division = _split_documents(corpus, spec, seed, name, notes)
    else:
        if not queries.used.any():
            raise UserError(
                f"{name}: no query has a relevant passage{corpus.dropped.describe()}. Each question must name a "
                "document of the corpus that answers it. If the data has no questions, set generate in the run file: "
                "an LLM then writes them."
            )
        if corpus.has_splits:
            division = _follow_given_splits(corpus, queries)
        else:
            division = _split_topics(corpus, queries, spec, seed, notes)
    near_duplicates = _near_duplicates(corpus, division.passage_splits)
    if corpus.questions.num_rows:
        excluded = (near_duplicates >= 0) & (division.passage_splits == _TRAIN)
        queries = _drop_queries_without_positive(queries, division.query_splits, excluded, corpus)
        queries = _limit_training_queries(queries, division.query_splits, spec.max_train_queries, seed, corpus)
        _check_splits(_count(division.query_splits[queries.used]), corpus.has_splits, name, notes)
    tables.write_parts(output(PASSAGES), _passages(corpus, division, near_duplicates), tables.PASSAGES)
    tables.write_parts(output(QUERIES), _queries(corpus, queries, division), tables.QUERIES)
    tables.write_parts(output(QRELS), _qrels(corpus, queries), tables.QRELS)
    summary = _summary(corpus, queries, division, notes)
    summary["near_duplicates"] = _describe_near_duplicates(corpus, queries, division, near_duplicates, notes)
    return summary


def _read(records: Iterable[Record], spec: PrepareSpec, folder: Path) -> Corpus:
    reader = Reader(spec, folder)
    for record in records:
        reader.add(record)
    return reader.finish()


# --- splitting --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Division:
    """The splits of passages and queries, as positions in ``SPLITS``, and the groups that share a split, -1 for none.

    ``group_names``: by number of the group.
    """

    passage_splits: Numbers
    query_splits: Numbers
    passage_groups: Numbers
    query_groups: Numbers
    group_names: pa.StringArray


def _follow_given_splits(corpus: Corpus, queries: Queries) -> Division:
    """The splits if the data set assigns them. A passage has the first split of its queries, or train."""
    passage_splits = np.full(len(corpus.passages.keys), len(SPLITS), np.int8)
    np.minimum.at(passage_splits, queries.passage_of, queries.splits[queries.query_of])
    passage_splits[passage_splits == len(SPLITS)] = _TRAIN
    passage_groups, query_groups = (np.full(len(each), -1) for each in (passage_splits, queries.splits))
    return Division(passage_splits, queries.splits, passage_groups, query_groups, pa.array([], pa.string()))


def _split_documents(corpus: Corpus, spec: PrepareSpec, seed: int, name: str, notes: list[str]) -> Division:
    """The splits if there are no questions: by topic or document.

    Raises:
        UserError: there are fewer than three groups.
    """
    topics = np.unique(corpus.topics)
    sizes = (corpus.num_documents, len(topics), len(corpus.concepts), len(corpus.passages.keys))
    components = splitting.connect(sizes, _document_edges(corpus, topics, notes))[_PASSAGE]
    content = np.flatnonzero(corpus.boilerplate == 0)

    def label(number: int) -> str:
        row = int(corpus.passages.first[content[number]])
        return str(corpus.occurrences.value(row, "topic") or corpus.occurrences.value(row, "document_id"))

    if len(np.unique(components[content])) < len(SPLITS):
        raise UserError(
            f"{name}: the {len(content):,} passages other than boilerplate form fewer than three groups that share no "
            "topic, document or passage, and each of train, val and test needs one. Add documents, or set source.topic."
        )
    keys = corpus.passages.keys[content]
    groups = splitting.divide(components[content], keys, passage_ids, label, "passages", spec.split, seed, notes)
    none = np.empty(0, np.int8)
    return _divide_passages(groups, components, none, none)


def _split_topics(corpus: Corpus, queries: Queries, spec: PrepareSpec, seed: int, notes: list[str]) -> Division:
    """Assign each query and its passages a split.

    Topics that share a question, a passage or a relevant document form one group, and a group has one split.
    Passages of groups without a query go to train, where they can be mined; search always covers all passages.
    """
    asked, asked_topics = queries.topics
    topics = np.unique(np.concatenate([corpus.topics, asked_topics]))
    edges = _document_edges(corpus, topics, notes)
    named = queries.used[asked] & (asked_topics != 0)
    edges.append((_QUERY, asked[named], _TOPIC, np.searchsorted(topics, asked_topics[named])))
    edges.append((_QUERY, queries.query_of, _PASSAGE, queries.passage_of))
    sizes = (corpus.num_documents, len(topics), len(corpus.concepts), len(corpus.passages.keys), len(queries.used))
    components = splitting.connect(sizes, edges)
    used = np.flatnonzero(queries.used)

    def label(number: int) -> str:
        return str(corpus.questions.value(int(queries.first[used[number]]), "text"))[:80]

    keys, of_queries = queries.questions.keys[used], components[_QUERY]
    groups = splitting.divide(of_queries[used], keys, query_ids, label, "queries", spec.split, seed, notes)
    query_groups = groups.find(of_queries)
    return _divide_passages(groups, components[_PASSAGE], groups.splits[query_groups], query_groups)


def _document_edges(corpus: Corpus, topics: Numbers, notes: list[str]) -> list[Edges]:
    """The edges of documents to their passages, topics (positions in ``topics``) and concepts.

    Concepts of too many topics are left out, and ``notes`` receives a note about them.
    """
    named = np.flatnonzero(corpus.topics)
    topic_of = np.searchsorted(topics, corpus.topics)
    edges: list[Edges] = [
        (_DOCUMENT, corpus.document_of, _PASSAGE, corpus.passage_of),
        (_DOCUMENT, named, _TOPIC, topic_of[named]),
    ]
    documents, concepts = corpus.concept_pairs
    if len(concepts):
        own = np.where(corpus.topics == 0, len(topics) + np.arange(len(topic_of)), topic_of)
        counts = splitting.general_concepts(documents, concepts, own)
        general = np.flatnonzero(counts).tolist()
        if general:
            most = min(general, key=lambda concept: (-counts[concept], corpus.concepts[concept]))
            name, number = corpus.concepts[most], len(np.unique(own))
            notes.append(splitting.describe_general_concepts(len(general), name, int(counts[most]), number))
        joins = counts[concepts] == 0
        edges.append((_DOCUMENT, documents[joins], _CONCEPT, concepts[joins]))
    return edges


def _divide_passages(groups: Groups, components: Numbers, query_splits: Numbers, query_groups: Numbers) -> Division:
    """The splits of queries, and of passages by their ``components``: that of their group, or train."""
    found = groups.find(components)
    passage_splits = np.where(found >= 0, groups.splits[found], np.int8(_TRAIN))
    return Division(passage_splits, query_splits, found.astype(np.int32), query_groups, groups.names)


def _near_duplicates(corpus: Corpus, passage_splits: Numbers) -> Numbers:
    """For each passage, a near-duplicate across the boundary of training and held-out data, or -1."""
    first = corpus.passages.first
    sides = np.full(corpus.occurrences.num_rows, -1, np.int8)
    sides[first] = passage_splits != _TRAIN
    found = corpus.shingles.find_across(sides, lambda row: corpus.occurrences.value(row, "text"))[first]
    return np.where(found >= 0, corpus.passages.group_of[found], np.int32(-1))


def _drop_queries_without_positive(
    queries: Queries, splits: Numbers, excluded_passages: Mask, corpus: Corpus
) -> Queries:
    """``queries`` without the training queries all of whose relevant passages are excluded."""
    usable = queries.query_of[~excluded_passages[queries.passage_of]]
    without = np.bincount(usable, minlength=len(queries.used)) == 0
    return _drop(queries, queries.used & (splits == _TRAIN) & without, ONLY_NEAR_DUPLICATES, corpus)


def _limit_training_queries(queries: Queries, splits: Numbers, limit: int | None, seed: int, corpus: Corpus) -> Queries:
    """``queries`` with at most ``limit`` training queries, drawn by ``seed``."""
    excluded = np.zeros(len(queries.used), bool)
    if limit is not None:
        train = np.flatnonzero(queries.used & (splits == _TRAIN))
        ids = query_ids(queries.questions.keys[train]).to_pylist()
        order = sorted(range(len(train)), key=lambda position: splitting.draw(seed, ids[position]))
        excluded[train[order[limit:]]] = True
    return _drop(queries, excluded, OVER_LIMIT, corpus)


def _drop(queries: Queries, excluded: Mask, reason: str, corpus: Corpus) -> Queries:
    first = queries.first[excluded]
    corpus.dropped.add_all(reason, len(first), corpus.question_ids(first))
    return queries.without(excluded)


def _check_splits(counts: dict[str, int], given: bool, name: str, notes: list[str]) -> None:
    """Raise UserError if a split has no query. ``given``: whether the data set assigns the splits."""
    empty = " or ".join(split for split, count in counts.items() if not count)
    if empty and given:
        raise UserError(
            f"{name}: no query is in {empty}, and the data set assigns the splits. Add such queries (BEIR: "
            "qrels/train.tsv, dev.tsv and test.tsv). Or put all lines into one qrels file, and Pyrite splits by topic."
            f"{''.join(f' {note}' for note in notes)}"
        )
    if empty:
        raise UserError(
            f"{name}: no query is in {empty}: the {sum(counts.values()):,} queries form fewer than three groups that "
            f"share no topic, question or passage. {''.join(f'{note} ' for note in notes)}Use data with more topics "
            "(source.topic), or with splits of its own."
        )


# --- tables and summary -----------------------------------------------------------------------------------------------


def _parts(rows: Numbers) -> Iterator[Numbers]:
    """Parts of ``rows`` with at most ``PART`` elements; one empty part if there are none."""
    for start in range(0, max(1, len(rows)), PART):
        yield rows[start : start + PART]


def _passages(corpus: Corpus, division: Division, near_duplicates: Numbers) -> Iterator[pa.Table]:
    parent = tables.PASSAGES.field("parents").type.value_type
    for part in _parts(np.arange(len(corpus.passages.keys))):
        texts = corpus.occurrences.select(corpus.passages.first[part], "text", "title", "context")
        occurrences = corpus.passages.items.take(part)
        parents = corpus.occurrences.take(occurrences.values, *parent.names)
        other = near_duplicates[part]
        columns = {
            "passage_id": passage_ids(corpus.passages.keys[part]),
            **{name: texts[name] for name in texts.column_names},
            "split": _split_names(division.passage_splits[part]),
            "near_duplicate": _optional(passage_ids(corpus.passages.keys[other]), other >= 0),
            "group": _group_names(division, division.passage_groups[part]),
            "boilerplate": corpus.boilerplate[part] > 0,
            "parents": pa.ListArray.from_arrays(
                pa.array(occurrences.starts, pa.int32()), pa.StructArray.from_arrays(parents, fields=list(parent))
            ),
        }
        yield pa.table(columns, tables.PASSAGES)


def _queries(corpus: Corpus, queries: Queries, division: Division) -> Iterator[pa.Table]:
    for part in _parts(np.flatnonzero(queries.used)):
        texts = corpus.questions.select(queries.first[part], "text", "topic", "type")
        positions = queries.questions.items.take(part)
        (ids,) = corpus.questions.take(queries.numbers[positions.values], "id")
        columns = {
            "query_id": query_ids(queries.questions.keys[part]),
            **{name: texts[name] for name in texts.column_names},
            "split": _split_names(division.query_splits[part]),
            "group": _group_names(division, division.query_groups[part]),
            "question_ids": pa.ListArray.from_arrays(pa.array(positions.starts, pa.int32()), ids),
        }
        yield pa.table(columns, tables.QUERIES)


def _qrels(corpus: Corpus, queries: Queries) -> Iterator[pa.Table]:
    for part in _parts(np.flatnonzero(queries.used[queries.query_of])):
        columns = {
            "query_id": query_ids(queries.questions.keys[queries.query_of[part]]),
            "passage_id": passage_ids(corpus.passages.keys[queries.passage_of[part]]),
            "grade": queries.grades[part],
        }
        yield pa.table(columns, tables.QRELS)


def _split_names(splits: Numbers) -> pa.StringArray:
    return pa.array(SPLITS, pa.string()).take(pa.array(splits))


def _group_names(division: Division, groups: Numbers) -> pa.StringArray:
    return division.group_names.take(pa.array(groups, mask=groups < 0))


def _optional(values: pa.StringArray, present: Mask) -> pa.StringArray:
    """``values``, null if not ``present``."""
    return pc.if_else(pa.array(present), values, pa.scalar(None, pa.string()))


def _count(splits: Numbers) -> dict[str, int]:
    """The number of ``splits`` (positions in ``SPLITS``) by name."""
    return dict(zip(SPLITS, np.bincount(splits, minlength=len(SPLITS)).tolist(), strict=True))


def _summary(corpus: Corpus, queries: Queries, division: Division, notes: list[str]) -> dict[str, Any]:
    used = np.flatnonzero(queries.used)
    asked, topics = queries.topics

    def count_topics(split: int) -> int:
        found = topics[queries.used[asked] & (division.query_splits[asked] == split)]
        # A query without a topic is its own topic.
        return len(np.unique(found[found != 0])) + int(np.count_nonzero(found == 0))

    types = corpus.questions.select(queries.first[used], "type")["type"]
    return {
        "documents": corpus.num_documents,
        "characters": corpus.characters,
        "passages": len(corpus.passages.keys),
        "passage_splits": _count(division.passage_splits),
        "merged_passages": corpus.occurrences.num_rows - len(corpus.passages.keys),
        "longest_passage": corpus.longest_passage,
        "questions": corpus.questions.num_rows,
        "merged_questions": int(queries.questions.items.lengths[used].sum()) - len(used),
        "queries": _count(division.query_splits[used]),
        "topics": {name: count_topics(split) for split, name in enumerate(SPLITS)},
        "types": dict(
            Counter({each["values"]: each["counts"] for each in types.value_counts().to_pylist()}).most_common()
        ),
        "splits_given": corpus.has_splits,
        "dropped": dict(corpus.dropped.counts.most_common()),
        "dropped_examples": {
            reason: corpus.dropped.examples[reason] for reason, _ in corpus.dropped.counts.most_common()
        },
        "notes": notes,
    }


def _describe_near_duplicates(
    corpus: Corpus, queries: Queries, division: Division, near_duplicates: Numbers, notes: list[str]
) -> dict[str, Any]:
    """Counts of near-duplicates between training and held-out data, and up to three pairs. Adds notes if any exist."""
    is_train = division.passage_splits == _TRAIN
    train = np.flatnonzero((near_duplicates >= 0) & is_train)
    held_out = int(np.count_nonzero((near_duplicates >= 0) & ~is_train))
    seen = (near_duplicates >= 0) | is_train
    affected = np.bincount(queries.query_of[seen[queries.passage_of]], minlength=len(queries.used)) > 0
    counts = _count(division.query_splits[queries.used & affected])

    def beginning(passage: int) -> str:
        return str(corpus.occurrences.value(int(corpus.passages.first[passage]), "text"))[:120]

    examples = [
        {"train": beginning(passage), "held_out": beginning(near_duplicates[passage])} for passage in train[:3].tolist()
    ]
    affected_counts = {name: counts[name] for name in ("val", "test")}
    return splitting.describe_near_duplicates(len(train), held_out, affected_counts, examples, notes)
