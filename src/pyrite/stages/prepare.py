"""prepare: divides documents into passages, merges equal questions into queries, and splits both by topic."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pyrite import boilerplate, splitting, tables
from pyrite.chunking import split_into_passages
from pyrite.errors import UserError
from pyrite.identity import normalise, passage_id, query_id
from pyrite.progress import Progress
from pyrite.sources import open_source
from pyrite.sources.base import NO_QUESTION, NO_TEXT, Document, Dropped, DroppedRecords, Note, Question, Record, Split
from pyrite.spec import PrepareSpec
from pyrite.splitting import SPLITS, Group
from pyrite.stages.context import StepContext
from pyrite.training import duplicates
from pyrite.words import words

NO_RELEVANT = "query without a relevant passage"
UNKNOWN_DOCUMENT = "question names an unknown document"
EARLIER_SPLIT = "the same question is in an earlier split"
OVER_LIMIT = "training query beyond prepare.max_train_queries"
ONLY_NEAR_DUPLICATES = "training query whose relevant passages are all near-duplicates of held-out passages"


@dataclass(frozen=True, slots=True)
class Prepared:
    """The three tables, as in ``tables``, and the step's summary."""

    passages: pa.Table
    queries: pa.Table
    qrels: pa.Table
    summary: dict[str, Any]


def run(ctx: StepContext) -> dict[str, Any]:
    """Write corpus/passages, queries/queries and queries/qrels (all .parquet); return the summary."""
    source = open_source(ctx.spec.source)
    ctx.progress.begin(None, "records read")
    records = _count_records(source.records(), ctx.progress)
    spec = ctx.spec.prepare
    prepared = prepare_tables(records, spec, ctx.spec.data_seed, ctx.spec.name, generates=ctx.spec.generate is not None)
    tables.write(ctx.output("corpus/passages.parquet"), prepared.passages, tables.PASSAGES)
    tables.write(ctx.output("queries/queries.parquet"), prepared.queries, tables.QUERIES)
    tables.write(ctx.output("queries/qrels.parquet"), prepared.qrels, tables.QRELS)
    summary = prepared.summary
    unit, counts = "queries", summary["queries"]
    if prepared.queries.num_rows == 0:
        unit, counts = "no queries; passages", summary["passage_splits"]
    ctx.progress.message(
        f"{summary['documents']:,} documents, {summary['passages']:,} passages; {unit}: "
        + ", ".join(f"{count:,} {split}" for split, count in counts.items())
    )
    for note in summary["notes"]:
        ctx.progress.message(note)
    return summary


def _count_records(records: Iterable[Record], progress: Progress) -> Iterator[Record]:
    for record in records:
        yield record
        progress.advance(1)


def prepare_tables(
    records: Iterable[Record], spec: PrepareSpec, seed: int, name: str, *, generates: bool = False
) -> Prepared:
    """Build the tables from ``records``. ``name``: the run's name, for messages.

    If the run ``generates`` questions, the source may have none: then passages are split by topic or document, and the
    tables of queries and qrels are empty. Passages and queries are in order of first occurrence.

    Raises:
        UserError: an id is not unique, only some questions have a split, no document has text, no query has a
            relevant passage, or a split has no query.
    """
    corpus = Corpus(spec)
    for record in records:
        corpus.add(record)
    if not corpus.passages:
        raise UserError(
            f"{name}: the corpus is empty: no document with text was read{corpus.dropped.describe()}. "
            "Check source.path and source.collections (or the columns) in the run file."
        )
    notes = corpus.finish()
    queries: list[Query] = []
    if generates and not corpus.questions:
        passage_split = _split_documents(corpus, spec, seed, name, notes)
    else:
        queries = corpus.queries()
        if not queries:
            raise UserError(
                f"{name}: no query has a relevant passage{corpus.dropped.describe()}. Each question must name a "
                "document of the corpus that answers it. If the data has no questions, set generate in the run file: "
                "an LLM then writes them."
            )
        if corpus.has_splits:
            passage_split = _follow_given_splits(corpus, queries)
        else:
            passage_split = _split_topics(corpus, queries, spec, seed, notes)
    near_duplicates = _near_duplicates(corpus, passage_split)
    if queries:
        excluded = {key for key in near_duplicates if passage_split[key] == "train"}
        queries = _drop_queries_without_positive(queries, excluded, corpus.dropped)
        queries = _limit_training_queries(queries, spec.max_train_queries, seed, corpus.dropped)
        _check_splits(queries, corpus.has_splits, name, notes)
    tables_ = _tables(corpus, queries, passage_split, near_duplicates)
    summary = _summary(corpus, queries, passage_split, notes)
    summary["near_duplicates"] = splitting.describe_near_duplicates(*tables_, notes)
    return Prepared(*tables_, summary)


# --- reading the source -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Passage:
    """A distinct passage, and the documents (``parents``) that contain it."""

    text: str
    title: str
    context: str
    parents: list[dict[str, Any]] = field(default_factory=list)


@dataclass(slots=True)
class Query:
    """A distinct query: the questions that were merged into it, and the grades of its relevant passages."""

    id: str
    first: Question
    split: Split | None
    question_ids: list[str] = field(default_factory=list)
    group: str | None = None
    topics: set[str] = field(default_factory=set)
    grades: dict[str, int] = field(default_factory=dict)


def context_of(title: str, text: str) -> str:
    """The context of a passage: the title as one line; empty if the text starts with these words."""
    line, start = " ".join(title.split()), normalise(text)
    # The second form is without the mark of a Markdown heading.
    repeated = any(_starts_with(each, normalise(line)) for each in (start, start.lstrip("# ")))
    return "" if repeated else line


def _starts_with(text: str, title: str) -> bool:
    """Whether ``text`` starts with the words of ``title``: "goutweed" does not start with "gout"."""
    beginning = words(text[: len(title) + 1], punctuation=False)
    title_words = words(title, punctuation=False)
    return text.startswith(title) and beginning[: len(title_words)] == title_words


class Corpus:
    """The records of a source: distinct passages by id, the passages and topic of each document, and the questions.

    ``group_of``: the name of the group of each passage to which ``prepare`` assigns a split.
    """

    def __init__(self, spec: PrepareSpec) -> None:
        self._spec = spec
        self.passages: dict[str, Passage] = {}
        self.passages_of: dict[str, list[str]] = {}
        self.topic_of: dict[str, str] = {}
        self.concepts_of: dict[str, tuple[str, ...]] = {}
        self.characters = self.occurrences = 0
        self.questions: list[Question] = []
        self.notes: list[str] = []
        self.group_of: dict[str, str] = {}
        self.boilerplate: dict[str, int] = {}
        self.dropped = DroppedRecords()
        self._question_ids: set[str] = set()

    def add(self, record: Record) -> None:
        if isinstance(record, Dropped):
            self.dropped.add(record.where, record.reason)
        elif isinstance(record, Note):
            self.notes.append(record.text)
        elif isinstance(record, Question):
            if record.id in self._question_ids:
                raise UserError(f"question id '{record.id}' occurs twice. Ids must be unique in a source.")
            self._question_ids.add(record.id)
            self.questions.append(record)
        else:
            self._add_document(record)

    def _add_document(self, document: Document) -> None:
        if document.id in self.passages_of:
            raise UserError(f"document id '{document.id}' occurs twice. Ids must be unique in a source.")
        keys: dict[str, None] = {}
        for start, end in split_into_passages(document.text, self._spec.min_chars, self._spec.max_chars):
            text = document.text[start:end]
            key = passage_id(text)
            keys[key] = None
            self.occurrences += 1
            parent = {"document_id": document.id, "start": start, "end": end}
            parent |= {"topic": document.topic, "type": document.type}
            title = document.title_at(start)
            context = context_of(title, text) if self._spec.context == "title" else ""
            self.passages.setdefault(key, Passage(text, title, context)).parents.append(parent)
        self.passages_of[document.id] = list(keys)
        self.topic_of[document.id] = normalise(document.topic)
        self.concepts_of[document.id] = document.concepts
        self.characters += len(document.text)
        if not keys:
            self.dropped.add(document.id, NO_TEXT)

    def finish(self) -> list[str]:
        """Remove boilerplate from ``passages_of``, after the last record; return the notes about the records."""
        self.boilerplate = boilerplate.find(self.passages_of)
        for document, keys in self.passages_of.items():
            self.passages_of[document] = [key for key in keys if key not in self.boilerplate]
        texts = {key: self.passages[key].text for key in self.boilerplate}
        topics = [question.topic for question in self.questions] or list(self.topic_of.values())
        missing = sum(not normalise(topic) for topic in topics)
        if 0 < missing < len(topics):
            unit = "questions" if self.questions else "documents"
            self.notes.append(f"{missing:,} of {len(topics):,} {unit} have no topic. Each of them is its own topic.")
        return self.notes + boilerplate.describe(self.boilerplate, texts, len(self.passages_of))

    @property
    def has_splits(self) -> bool:
        """Whether the data set assigns the splits."""
        given = [question.split is not None for question in self.questions]
        if any(given) and not all(given):
            first = self.questions[given.index(False)].id
            raise UserError(f"question '{first}' has no split, but others do. Give all questions a split, or none.")
        return any(given)

    def queries(self) -> list[Query]:
        """The distinct questions that have a relevant passage, in order of first occurrence.

        A question that occurs in several splits is only in the first of them, in the order train, val, test.
        """
        texts = {question.id: normalise(question.text) for question in self.questions}
        earliest: dict[str, Split] = {}
        for question in self.questions:
            if question.split is not None:
                text = texts[question.id]
                earliest[text] = min(earliest.get(text, question.split), question.split, key=SPLITS.index)
        queries: dict[str, Query] = {}
        for question in self.questions:
            text = texts[question.id]
            if not text:
                self.dropped.add(question.id, NO_QUESTION)
                continue
            if question.split != earliest.get(text):
                self.dropped.add(question.id, EARLIER_SPLIT)
                continue
            key = query_id(text)
            query = queries.setdefault(key, Query(key, question, question.split))
            query.question_ids.append(question.id)
            query.topics.add(normalise(question.topic))
            self._add_grades(question, query.grades)
        for query in queries.values():
            if not query.grades:
                self.dropped.add(query.first.id, NO_RELEVANT)
        return [query for query in queries.values() if query.grades]

    def _add_grades(self, question: Question, grades: dict[str, int]) -> None:
        for document, grade in question.relevant.items():
            if document not in self.passages_of:
                self.dropped.add(f"{question.id}: {document}", UNKNOWN_DOCUMENT)
            elif not 0 < grade < 128:
                raise UserError(f"question '{question.id}': grade {grade} of '{document}'. Use grades from 1 to 127.")
            else:
                for key in self.passages_of[document]:
                    grades[key] = max(grade, grades.get(key, 0))


# --- splitting --------------------------------------------------------------------------------------------------------


def _follow_given_splits(corpus: Corpus, queries: list[Query]) -> dict[str, Split]:
    """Split of each passage if the data set assigns splits: the first split of its queries, or train if it has none."""
    split_of: dict[str, Split] = {}
    for query in queries:
        assert query.split is not None
        for key in query.grades:
            split_of[key] = min(split_of.get(key, query.split), query.split, key=SPLITS.index)
    return {key: split_of.get(key, "train") for key in corpus.passages}


def _split_documents(corpus: Corpus, spec: PrepareSpec, seed: int, name: str, notes: list[str]) -> dict[str, Split]:
    """Split of each passage if there are no questions: by topic or document.

    Raises:
        UserError: there are fewer than three groups.
    """
    groups = splitting.group_documents(corpus.passages_of, corpus.topic_of, corpus.concepts_of, notes)
    passages = {key: passage for key, passage in corpus.passages.items() if key not in corpus.boilerplate}
    nodes = {("passage", key): _label(passage) for key, passage in passages.items()}
    found = splitting.divide(groups, nodes, spec.split, seed, notes)
    if len({group.split for group in found.values()}) < len(SPLITS):
        raise UserError(
            f"{name}: the {len(nodes):,} passages form fewer than three groups that share no topic, document or "
            "passage, and each of train, val and test needs one. Add documents, or set source.topic."
        )
    return _passage_splits(corpus, {key: found[groups["passage", key]] for key in passages})


def _passage_splits(corpus: Corpus, group_of: dict[str, Group]) -> dict[str, Split]:
    """Split of each passage: that of its group, or train. Stores the groups' names in ``corpus``."""
    corpus.group_of = {key: group.name for key, group in group_of.items()}
    return {key: group_of[key].split if key in group_of else "train" for key in corpus.passages}


def _label(passage: Passage) -> str:
    return str(passage.parents[0]["topic"] or passage.parents[0]["document_id"])


def _split_topics(
    corpus: Corpus, queries: list[Query], spec: PrepareSpec, seed: int, notes: list[str]
) -> dict[str, Split]:
    """Assign each query a split, and return the split of each passage.

    Topics that share a question, a passage or a relevant document form one group, and a group has one split.
    Passages of groups without a query go to train, where they can be mined; search always covers all passages.
    """
    groups = splitting.group_documents(corpus.passages_of, corpus.topic_of, corpus.concepts_of, notes)
    for key in corpus.boilerplate:
        groups.add(("passage", key))
    for query in queries:
        topics = [("topic", topic) for topic in query.topics if topic]
        splitting.connect(groups, [("query", query.id), *topics, *(("passage", key) for key in query.grades)])
    nodes = {("query", query.id): query.first.text[:80] for query in queries}
    found = splitting.divide(groups, nodes, spec.split, seed, notes)
    for query in queries:
        query.group, query.split = found[groups["query", query.id]]
    roots = {key: groups["passage", key] for key in corpus.passages}
    return _passage_splits(corpus, {key: found[root] for key, root in roots.items() if root in found})


def _near_duplicates(corpus: Corpus, passage_split: dict[str, Split]) -> dict[str, str]:
    """For each passage with a near-duplicate across the boundary of training and held-out data, one of them."""
    ids = list(corpus.passages)
    texts = [passage.text for passage in corpus.passages.values()]
    found = duplicates.find_across(texts, [passage_split[key] != "train" for key in ids])
    return {ids[position]: ids[other] for position, other in found.items()}


def _drop_queries_without_positive(queries: list[Query], excluded: set[str], dropped: DroppedRecords) -> list[Query]:
    """``queries`` without the training queries that have no relevant passage outside ``excluded``."""
    used = []
    for query in queries:
        if query.split == "train" and excluded.issuperset(query.grades):
            dropped.add(query.first.id, ONLY_NEAR_DUPLICATES)
        else:
            used.append(query)
    return used


def _limit_training_queries(queries: list[Query], limit: int | None, seed: int, dropped: DroppedRecords) -> list[Query]:
    """``queries`` with at most ``limit`` training queries, drawn by ``seed``."""
    train = sorted((q.id for q in queries if q.split == "train"), key=lambda key: splitting.draw(seed, key))
    excluded = set(train[limit:]) if limit is not None else set()
    for query in queries:
        if query.id in excluded:
            dropped.add(query.first.id, OVER_LIMIT)
    return [query for query in queries if query.id not in excluded]


def _check_splits(queries: list[Query], given: bool, name: str, notes: list[str]) -> None:
    present = {query.split for query in queries}
    empty = " or ".join(split for split in SPLITS if split not in present)
    if empty and given:
        raise UserError(
            f"{name}: no query is in {empty}, and the data set assigns the splits. Add such queries (BEIR: "
            "qrels/train.tsv, dev.tsv and test.tsv). Or put all lines into one qrels file, and Pyrite splits by topic."
            f"{''.join(f' {note}' for note in notes)}"
        )
    if empty:
        raise UserError(
            f"{name}: no query is in {empty}: the {len(queries):,} queries form fewer than three groups that share no "
            f"topic, question or passage. {''.join(f'{note} ' for note in notes)}Use data with more topics "
            "(source.topic), or with splits of its own."
        )


# --- tables and summary -----------------------------------------------------------------------------------------------


def _summary(corpus: Corpus, queries: list[Query], passage_split: dict[str, Split], notes: list[str]) -> dict[str, Any]:
    def topics(split: Split) -> int:
        return len({topic or query.id for query in queries if query.split == split for topic in query.topics})

    return {
        "documents": len(corpus.passages_of),
        "characters": corpus.characters,
        "passages": len(corpus.passages),
        "passage_splits": {split: sum(of == split for of in passage_split.values()) for split in SPLITS},
        "merged_passages": corpus.occurrences - len(corpus.passages),
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
    corpus: Corpus, queries: list[Query], passage_split: dict[str, Split], near_duplicates: dict[str, str]
) -> tuple[pa.Table, pa.Table, pa.Table]:
    passages = [
        {
            "passage_id": key,
            "text": each.text,
            "title": each.title,
            "context": each.context,
            "split": passage_split[key],
            "near_duplicate": near_duplicates.get(key),
            "group": corpus.group_of.get(key),
            "boilerplate": key in corpus.boilerplate,
            "parents": each.parents,
        }
        for key, each in corpus.passages.items()
    ]
    query_rows: list[dict[str, Any]] = [
        {"query_id": query.id, "text": query.first.text, "topic": query.first.topic, "type": query.first.type}
        | {"split": query.split, "group": query.group, "question_ids": query.question_ids}
        for query in queries
    ]
    position = {key: number for number, key in enumerate(corpus.passages)}
    qrels = [
        {"query_id": query.id, "passage_id": key, "grade": query.grades[key]}
        for query in queries
        for key in sorted(query.grades, key=position.__getitem__)
    ]
    return (
        pa.Table.from_pylist(passages, tables.PASSAGES),
        pa.Table.from_pylist(query_rows, tables.QUERIES),
        pa.Table.from_pylist(qrels, tables.QRELS),
    )
