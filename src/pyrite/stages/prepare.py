"""prepare: documents to chunks, questions to queries and relevant chunks, topics to train, val and test."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pyrite import splitting, tables
from pyrite.chunking import chunk
from pyrite.errors import UserError
from pyrite.identity import chunk_id, normalise, query_id
from pyrite.progress import Progress
from pyrite.sources import open_source
from pyrite.sources.base import Document, Dropped, Question, Record, Split
from pyrite.spec import PrepareSpec
from pyrite.splitting import SPLITS, Groups
from pyrite.stages.context import StepContext

EMPTY_DOCUMENT = "document without text"
EMPTY_QUESTION = "empty question"
NO_RELEVANT = "query without a relevant chunk"
UNKNOWN_DOCUMENT = "question names an unknown document"
EARLIER_SPLIT = "the same question is in an earlier split"
NOT_DRAWN = "training query beyond prepare.max_train_queries"

_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Prepared:
    """The three tables, as in ``tables``, and a summary of plain JSON values for the manifest."""

    chunks: pa.Table
    queries: pa.Table
    qrels: pa.Table
    summary: dict[str, Any]


def run(ctx: StepContext) -> dict[str, Any]:
    """Write corpus/chunks, queries/queries and queries/qrels (all .parquet); return the summary."""
    source = open_source(ctx.spec.source)
    ctx.progress.begin(None, "records read")
    records = _watched(source.records(), ctx.progress)
    prepared = prepare_tables(
        records, ctx.spec.prepare, ctx.spec.seed, ctx.spec.name, generates=ctx.spec.generate is not None
    )
    tables.write(ctx.output("corpus/chunks.parquet"), prepared.chunks, tables.CHUNKS)
    tables.write(ctx.output("queries/queries.parquet"), prepared.queries, tables.QUERIES)
    tables.write(ctx.output("queries/qrels.parquet"), prepared.qrels, tables.QRELS)
    summary = prepared.summary
    asked = prepared.queries.num_rows > 0
    what, counts = ("queries", summary["queries"]) if asked else ("no queries; chunks", summary["chunk_splits"])
    ctx.progress.say(
        f"{summary['documents']:,} documents, {summary['chunks']:,} chunks; {what}: "
        + ", ".join(f"{count:,} {split}" for split, count in counts.items())
    )
    for note in summary["notes"]:
        ctx.progress.say(note)
    return summary


def _watched(records: Iterable[Record], progress: Progress) -> Iterator[Record]:
    for record in records:
        yield record
        progress.advance(1)


def prepare_tables(
    records: Iterable[Record], spec: PrepareSpec, seed: int, name: str, *, generates: bool = False
) -> Prepared:
    """Make the tables of ``records``; ``name`` says in messages whose they are.

    Where the run ``generates`` questions there need be none: then the chunks are split, by topic or document, and
    the tables of queries and qrels are empty. The same input gives the same tables. Chunks stand in the order in
    which their text was first seen; queries likewise.

    Raises:
        UserError: an id is there twice, some questions have a split and others not, there is no document, no
            query with a relevant chunk, or a split without a query. Says what to do.
    """
    corpus = _Corpus(spec)
    for record in records:
        corpus.add(record)
    if not corpus.chunks:
        raise UserError(
            f"{name}: the corpus is empty: no document with text was read{corpus.dropped.told()}. "
            "Check source.path and source.collections (or the columns) in the run file."
        )
    notes: list[str] = []
    if generates and not corpus.questions:
        chunk_split = _document_splits(corpus, spec, seed, name, notes)
        return Prepared(*_tables(corpus, [], chunk_split), _summary(corpus, [], chunk_split, notes))
    queries = corpus.queries()
    if not queries:
        raise UserError(
            f"{name}: no query has a relevant chunk{corpus.dropped.told()}. Each question must name a "
            "document of the corpus that answers it. Where there are no questions, an LLM can make them: set generate "
            "in the run file."
        )
    if corpus.has_splits:
        chunk_split = _given_splits(corpus, queries)
    else:
        chunk_split = _topic_splits(corpus, queries, spec, seed, notes)
    queries = _drawn(queries, spec.max_train_queries, seed, corpus.dropped)
    _check_splits(queries, corpus.has_splits, name, notes)
    return Prepared(*_tables(corpus, queries, chunk_split), _summary(corpus, queries, chunk_split, notes))


@dataclass(slots=True)
class _Chunk:
    text: str
    title: str
    parents: list[dict[str, Any]] = field(default_factory=list)


@dataclass(slots=True)
class _Query:
    id: str
    first: Question
    split: Split | None
    question_ids: list[str] = field(default_factory=list)
    topics: dict[str, str] = field(default_factory=dict)
    grades: dict[str, int] = field(default_factory=dict)


class _Drops:
    """What was left out: how often for each reason, and the first few places."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = defaultdict(list)

    def add(self, where: str, reason: str) -> None:
        self.counts[reason] += 1
        if len(self.examples[reason]) < _EXAMPLES:
            self.examples[reason].append(where)

    def told(self) -> str:
        """For a message: what was left out, with an example each."""
        told = [f"{reason}: {count:,}, such as {self.examples[reason][0]}" for reason, count in self.counts.items()]
        return f" (left out: {'; '.join(told)})" if told else ""


class _Corpus:
    """All that was read: distinct chunks by id, which chunks each document has, and the questions."""

    def __init__(self, spec: PrepareSpec) -> None:
        self._spec = spec
        self.chunks: dict[str, _Chunk] = {}
        self.chunks_of: dict[str, list[str]] = {}
        self.topic_of: dict[str, str] = {}
        self.characters = self.cuts = 0
        self.questions: list[Question] = []
        self.dropped = _Drops()
        self._question_ids: set[str] = set()

    def add(self, record: Record) -> None:
        if isinstance(record, Dropped):
            self.dropped.add(record.where, record.reason)
        elif isinstance(record, Question):
            if record.id in self._question_ids:
                raise UserError(f"question id '{record.id}' is there twice. Ids must be unique in a source.")
            self._question_ids.add(record.id)
            self.questions.append(record)
        else:
            self._cut(record)

    def _cut(self, document: Document) -> None:
        if document.id in self.chunks_of:
            raise UserError(f"document id '{document.id}' is there twice. Ids must be unique in a source.")
        own: dict[str, None] = {}
        for start, end in chunk(document.text, self._spec.min_chars, self._spec.max_chars):
            text = document.text[start:end]
            key = chunk_id(text)
            own[key] = None
            self.cuts += 1
            parent = {"document_id": document.id, "start": start, "end": end}
            parent |= {"topic": document.topic, "type": document.type}
            self.chunks.setdefault(key, _Chunk(text, document.title)).parents.append(parent)
        self.chunks_of[document.id] = list(own)
        self.topic_of[document.id] = normalise(document.topic)
        self.characters += len(document.text)
        if not own:
            self.dropped.add(document.id, EMPTY_DOCUMENT)

    @property
    def has_splits(self) -> bool:
        """Whether the data set assigns the splits itself."""
        given = [question.split is not None for question in self.questions]
        if any(given) and not all(given):
            lacking = self.questions[given.index(False)].id
            raise UserError(f"question '{lacking}' has no split, and others have. Give all questions a split, or none.")
        return any(given)

    def queries(self) -> list[_Query]:
        """The distinct questions that have a relevant chunk, in the order in which they were first seen."""
        found: dict[str, _Query] = {}
        rank = SPLITS.index
        # Of equal questions in several splits the earliest split stays, wherever it stands in the source.
        best: dict[str, Split] = {}
        texts = {question.id: normalise(question.text) for question in self.questions}
        for question in self.questions:
            if question.split is not None:
                text = texts[question.id]
                best[text] = min(best.get(text, question.split), question.split, key=rank)
        for question in self.questions:
            text = texts[question.id]
            if not text:
                self.dropped.add(question.id, EMPTY_QUESTION)
                continue
            if question.split != best.get(text):
                self.dropped.add(question.id, EARLIER_SPLIT)
                continue
            key = query_id(text)
            query = found.setdefault(key, _Query(key, question, question.split))
            query.question_ids.append(question.id)
            query.topics[normalise(question.topic)] = question.topic
            self._grade(question, query.grades)
        for query in found.values():
            if not query.grades:
                self.dropped.add(query.first.id, NO_RELEVANT)
        return [query for query in found.values() if query.grades]

    def _grade(self, question: Question, grades: dict[str, int]) -> None:
        for document, grade in question.relevant.items():
            if document not in self.chunks_of:
                self.dropped.add(f"{question.id}: {document}", UNKNOWN_DOCUMENT)
            elif not 0 < grade < 128:
                raise UserError(f"question '{question.id}': grade {grade} of '{document}'. Use grades from 1 to 127.")
            else:
                for key in self.chunks_of[document]:
                    grades[key] = max(grade, grades.get(key, 0))


def _given_splits(corpus: _Corpus, queries: list[_Query]) -> dict[str, Split]:
    """Split of each chunk where the data set gives them: its queries' earliest, or train if it has none."""
    split: dict[str, Split] = {}
    for query in queries:
        assert query.split is not None
        for key in query.grades:
            split[key] = min(split.get(key, query.split), query.split, key=SPLITS.index)
    return {key: split.get(key, "train") for key in corpus.chunks}


def _document_groups(corpus: _Corpus) -> Groups:
    """Topics and chunks; joined are those of one topic, and of one document, and documents that share a chunk."""
    groups = Groups()
    for document, keys in corpus.chunks_of.items():
        topic = corpus.topic_of[document]
        groups.join([*([("topic", topic)] if topic else []), *(("chunk", key) for key in keys)])
    return groups


def _document_splits(corpus: _Corpus, spec: PrepareSpec, seed: int, name: str, notes: list[str]) -> dict[str, Split]:
    """Split of each chunk where there is no question: as ``_topic_splits``, shared out by number of chunks.

    Raises:
        UserError: there are fewer than three groups.
    """
    groups = _document_groups(corpus)
    members: dict[Hashable, list[str]] = defaultdict(list)
    for key in corpus.chunks:
        members[groups.find(("chunk", key))].append(key)
    named = {min(keys): keys for keys in members.values()}
    if len(named) < len(SPLITS):
        raise UserError(
            f"{name}: the {len(corpus.chunks):,} chunks make fewer than three groups that share no topic, document or "
            "passage, and each of train, val and test needs one. Give more documents, or more topics (source.topic)."
        )
    split_of = splitting.assign({key: len(keys) for key, keys in named.items()}, spec.split, seed)
    largest = max(named, key=lambda key: (len(named[key]), key))
    share = len(named[largest]) / len(corpus.chunks)
    if share > min(spec.split.val, spec.split.test):
        parent = corpus.chunks[largest].parents[0]
        notes.append(
            f"{len(named[largest]):,} of {len(corpus.chunks):,} chunks ({share:.0%}) hang together by shared passages "
            f"or topics, such as '{parent['topic'] or parent['document_id']}'; all of them are in {split_of[largest]}."
        )
    return {key: split_of[group] for group, keys in named.items() for key in keys}


def _topic_splits(
    corpus: _Corpus, queries: list[_Query], spec: PrepareSpec, seed: int, notes: list[str]
) -> dict[str, Split]:
    """Give each query a split, and return that of each chunk.

    Topics that share a question, a chunk or a relevant document are one group, and a group has one split.
    Chunks in whose group there is no query go to train: they are material to mine, and every side searches
    all chunks.
    """
    groups = _document_groups(corpus)
    for query in queries:
        topics = (("topic", topic) for topic in query.topics if topic)
        groups.join([("query", query.id), *topics, *(("chunk", key) for key in query.grades)])
    members: dict[Hashable, list[_Query]] = defaultdict(list)
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
    return {key: split_of_root.get(groups.find(("chunk", key)), "train") for key in corpus.chunks}


def _drawn(queries: list[_Query], most: int | None, seed: int, dropped: _Drops) -> list[_Query]:
    """``queries`` with at most ``most`` for training, drawn by ``seed``."""
    train = sorted((q.id for q in queries if q.split == "train"), key=lambda key: splitting.draw(seed, key))
    beyond = set(train[most:]) if most is not None else set()
    for query in queries:
        if query.id in beyond:
            dropped.add(query.first.id, NOT_DRAWN)
    return [query for query in queries if query.id not in beyond]


def _check_splits(queries: list[_Query], given: bool, name: str, notes: list[str]) -> None:
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


def _summary(corpus: _Corpus, queries: list[_Query], chunk_split: dict[str, Split], notes: list[str]) -> dict[str, Any]:
    def topics(split: Split) -> int:
        return len({topic or query.id for query in queries if query.split == split for topic in query.topics})

    return {
        "documents": len(corpus.chunks_of),
        "characters": corpus.characters,
        "chunks": len(corpus.chunks),
        "chunk_splits": {split: sum(of == split for of in chunk_split.values()) for split in SPLITS},
        "merged_chunks": corpus.cuts - len(corpus.chunks),
        "longest_chunk": max(len(chunk.text) for chunk in corpus.chunks.values()),
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
    corpus: _Corpus, queries: list[_Query], chunk_split: dict[str, Split]
) -> tuple[pa.Table, pa.Table, pa.Table]:
    chunks = [
        {
            "chunk_id": key,
            "text": chunk.text,
            "title": chunk.title,
            "split": chunk_split[key],
            "parents": chunk.parents,
        }
        for key, chunk in corpus.chunks.items()
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
    place = {key: number for number, key in enumerate(corpus.chunks)}
    qrels = [
        {"query_id": query.id, "chunk_id": key, "grade": query.grades[key]}
        for query in queries
        for key in sorted(query.grades, key=place.__getitem__)
    ]
    return (
        pa.Table.from_pylist(chunks, tables.CHUNKS),
        pa.Table.from_pylist(asked, tables.QUERIES),
        pa.Table.from_pylist(qrels, tables.QRELS),
    )
