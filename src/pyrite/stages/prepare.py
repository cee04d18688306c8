"""prepare: documents to passages, questions to queries and relevant passages, topics to train, val and test."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pyrite import splitting, tables
from pyrite.errors import UserError
from pyrite.progress import Progress
from pyrite.sources import open_source
from pyrite.sources.base import Record, Split
from pyrite.spec import PrepareSpec
from pyrite.splitting import SPLITS, Groups
from pyrite.stages.context import StepContext
from pyrite.stages.corpus import Corpus, Drops, Query

NOT_DRAWN = "training query beyond prepare.max_train_queries"


@dataclass(frozen=True, slots=True)
class Prepared:
    """The three tables, as in ``tables``, and a summary of plain JSON values for the manifest."""

    passages: pa.Table
    queries: pa.Table
    qrels: pa.Table
    summary: dict[str, Any]


def run(ctx: StepContext) -> dict[str, Any]:
    """Write corpus/passages, queries/queries and queries/qrels (all .parquet); return the summary."""
    source = open_source(ctx.spec.source)
    ctx.progress.begin(None, "records read")
    records = _watched(source.records(), ctx.progress)
    prepared = prepare_tables(
        records, ctx.spec.prepare, ctx.spec.seed, ctx.spec.name, generates=ctx.spec.generate is not None
    )
    tables.write(ctx.output("corpus/passages.parquet"), prepared.passages, tables.PASSAGES)
    tables.write(ctx.output("queries/queries.parquet"), prepared.queries, tables.QUERIES)
    tables.write(ctx.output("queries/qrels.parquet"), prepared.qrels, tables.QRELS)
    summary = prepared.summary
    asked = prepared.queries.num_rows > 0
    what, counts = ("queries", summary["queries"]) if asked else ("no queries; passages", summary["passage_splits"])
    ctx.progress.message(
        f"{summary['documents']:,} documents, {summary['passages']:,} passages; {what}: "
        + ", ".join(f"{count:,} {split}" for split, count in counts.items())
    )
    for note in summary["notes"]:
        ctx.progress.message(note)
    return summary


def _watched(records: Iterable[Record], progress: Progress) -> Iterator[Record]:
    for record in records:
        yield record
        progress.advance(1)


def prepare_tables(
    records: Iterable[Record], spec: PrepareSpec, seed: int, name: str, *, generates: bool = False
) -> Prepared:
    """Make the tables of ``records``; ``name`` says in messages whose they are.

    Where the run ``generates`` questions there need be none: then the passages are split, by topic or document, and
    the tables of queries and qrels are empty. The same input gives the same tables. Passages stand in the order in
    which their text was first seen; queries likewise.

    Raises:
        UserError: an id is there twice, some questions have a split and others not, there is no document, no
            query with a relevant passage, or a split without a query. Says what to do.
    """
    corpus = Corpus(spec)
    for record in records:
        corpus.add(record)
    if not corpus.passages:
        raise UserError(
            f"{name}: the corpus is empty: no document with text was read{corpus.dropped.told()}. "
            "Check source.path and source.collections (or the columns) in the run file."
        )
    notes: list[str] = []
    if generates and not corpus.questions:
        passage_split = _document_splits(corpus, spec, seed, name, notes)
        return Prepared(*_tables(corpus, [], passage_split), _summary(corpus, [], passage_split, notes))
    queries = corpus.queries()
    if not queries:
        raise UserError(
            f"{name}: no query has a relevant passage{corpus.dropped.told()}. Each question must name a "
            "document of the corpus that answers it. Where there are no questions, an LLM can make them: set generate "
            "in the run file."
        )
    if corpus.has_splits:
        passage_split = _given_splits(corpus, queries)
    else:
        passage_split = _topic_splits(corpus, queries, spec, seed, notes)
    queries = _drawn(queries, spec.max_train_queries, seed, corpus.dropped)
    _check_splits(queries, corpus.has_splits, name, notes)
    return Prepared(*_tables(corpus, queries, passage_split), _summary(corpus, queries, passage_split, notes))


def _given_splits(corpus: Corpus, queries: list[Query]) -> dict[str, Split]:
    """Split of each passage where the data set gives them: its queries' earliest, or train if it has none."""
    split: dict[str, Split] = {}
    for query in queries:
        assert query.split is not None
        for key in query.grades:
            split[key] = min(split.get(key, query.split), query.split, key=SPLITS.index)
    return {key: split.get(key, "train") for key in corpus.passages}


def _document_groups(corpus: Corpus) -> Groups:
    """Topics and passages; joined are those of one topic, and of one document, and documents that share a passage."""
    groups = Groups()
    for document, keys in corpus.passages_of.items():
        topic = corpus.topic_of[document]
        groups.join([*([("topic", topic)] if topic else []), *(("passage", key) for key in keys)])
    return groups


def _document_splits(corpus: Corpus, spec: PrepareSpec, seed: int, name: str, notes: list[str]) -> dict[str, Split]:
    """Split of each passage where there is no question: as ``_topic_splits``, shared out by number of passages.

    Raises:
        UserError: there are fewer than three groups.
    """
    groups = _document_groups(corpus)
    members: dict[Hashable, list[str]] = defaultdict(list)
    for key in corpus.passages:
        members[groups.find(("passage", key))].append(key)
    named = {min(keys): keys for keys in members.values()}
    if len(named) < len(SPLITS):
        raise UserError(
            f"{name}: the {len(corpus.passages):,} passages make fewer than three groups that share no topic, "
            "document or passage, and each of train, val and test needs one. Give more documents, or more "
            "topics (source.topic)."
        )
    split_of = splitting.assign({key: len(keys) for key, keys in named.items()}, spec.split, seed)
    largest = max(named, key=lambda key: (len(named[key]), key))
    share = len(named[largest]) / len(corpus.passages)
    if share > min(spec.split.val, spec.split.test):
        parent = corpus.passages[largest].parents[0]
        notes.append(
            f"{len(named[largest]):,} of {len(corpus.passages):,} passages ({share:.0%}) hang together by shared "
            f"passages or topics, such as '{parent['topic'] or parent['document_id']}'; all of them are in "
            f"{split_of[largest]}."
        )
    return {key: split_of[group] for group, keys in named.items() for key in keys}


def _topic_splits(
    corpus: Corpus, queries: list[Query], spec: PrepareSpec, seed: int, notes: list[str]
) -> dict[str, Split]:
    """Give each query a split, and return that of each passage.

    Topics that share a question, a passage or a relevant document are one group, and a group has one split.
    Passages in whose group there is no query go to train: they are material to mine, and every side searches
    all passages.
    """
    groups = _document_groups(corpus)
    for query in queries:
        topics = (("topic", topic) for topic in query.topics if topic)
        groups.join([("query", query.id), *topics, *(("passage", key) for key in query.grades)])
    members: dict[Hashable, list[Query]] = defaultdict(list)
    for query in queries:
        members[groups.find(("query", query.id))].append(query)
    # A group is named by the least of its query ids, so that its draw does not depend on the order of the
    # source.
    named = {min(query.id for query in group): group for group in members.values()}
    split_of = splitting.assign({key: len(group) for key, group in named.items()}, spec.split, seed)
    split_of_root: dict[Hashable, Split] = {}
    for key, group in named.items():
        split_of_root[groups.find(("query", key))] = split_of[key]
        for query in group:
            query.split = split_of[key]
    largest = max(named, key=lambda key: (len(named[key]), key))
    share = len(named[largest]) / len(queries)
    if share > min(spec.split.val, spec.split.test):
        notes.append(
            f"{len(named[largest]):,} of {len(queries):,} queries ({share:.0%}) hang together by shared "
            f"questions, passages or topics, such as '{named[largest][0].first.text[:80]}'; all of them are "
            f"in {split_of[largest]}."
        )
    return {key: split_of_root.get(groups.find(("passage", key)), "train") for key in corpus.passages}


def _drawn(queries: list[Query], most: int | None, seed: int, dropped: Drops) -> list[Query]:
    """``queries`` with at most ``most`` for training, drawn by ``seed``."""
    train = sorted((q.id for q in queries if q.split == "train"), key=lambda key: splitting.draw(seed, key))
    beyond = set(train[most:]) if most is not None else set()
    for query in queries:
        if query.id in beyond:
            dropped.add(query.first.id, NOT_DRAWN)
    return [query for query in queries if query.id not in beyond]


def _check_splits(queries: list[Query], given: bool, name: str, notes: list[str]) -> None:
    present = {query.split for query in queries}
    empty = [split for split in SPLITS if split not in present]
    if empty and given:
        raise UserError(
            f"{name}: no query is in {' or '.join(empty)}, and the data set assigns the splits itself. Add "
            "such queries (BEIR: qrels/train.tsv, dev.tsv and test.tsv), or keep one qrels file alone and "
            "Pyrite splits by topic."
        )
    if empty:
        raise UserError(
            f"{name}: no query is in {' or '.join(empty)}: the {len(queries):,} queries make fewer than "
            f"three groups that share no topic, question or passage{'. ' + notes[0] if notes else ''} Give "
            "more topics (source.topic), or a data set that assigns its own splits."
        )


def _summary(corpus: Corpus, queries: list[Query], passage_split: dict[str, Split], notes: list[str]) -> dict[str, Any]:
    def topics(split: Split) -> int:
        return len({topic or query.id for query in queries if query.split == split for topic in query.topics})

    return {
        "documents": len(corpus.passages_of),
        "characters": corpus.characters,
        "passages": len(corpus.passages),
        "passage_splits": {split: sum(of == split for of in passage_split.values()) for split in SPLITS},
        "merged_passages": corpus.cuts - len(corpus.passages),
        "longest_passage": max(len(passage.text) for passage in corpus.passages.values()),
        "questions": len(corpus.questions),
        "merged_questions": sum(len(query.question_ids) - 1 for query in queries),
        "queries": {split: sum(query.split == split for query in queries) for split in SPLITS},
        "topics": {split: topics(split) for split in SPLITS},
        "types": dict(Counter(query.first.type for query in queries).most_common()),
        "splits_given": corpus.has_splits,
        "dropped": dict(corpus.dropped.counts.most_common()),
        "dropped_examples": {
            reason: corpus.dropped.examples[reason] for reason, _ in corpus.dropped.counts.most_common()
        },
        "notes": notes,
    }


def _tables(
    corpus: Corpus, queries: list[Query], passage_split: dict[str, Split]
) -> tuple[pa.Table, pa.Table, pa.Table]:
    passages = [
        {
            "passage_id": key,
            "text": passage.text,
            "title": passage.title,
            "split": passage_split[key],
            "parents": passage.parents,
        }
        for key, passage in corpus.passages.items()
    ]
    asked = [
        {
            "query_id": query.id,
            "text": query.first.text,
            "topic": query.first.topic,
            "type": query.first.type,
            "split": query.split,
            "question_ids": query.question_ids,
        }
        for query in queries
    ]
    place = {key: number for number, key in enumerate(corpus.passages)}
    qrels = [
        {"query_id": query.id, "passage_id": key, "grade": query.grades[key]}
        for query in queries
        for key in sorted(query.grades, key=place.__getitem__)
    ]
    return (
        pa.Table.from_pylist(passages, tables.PASSAGES),
        pa.Table.from_pylist(asked, tables.QUERIES),
        pa.Table.from_pylist(qrels, tables.QRELS),
    )
