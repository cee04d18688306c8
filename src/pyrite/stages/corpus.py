"""The records of a source as prepare reads them: numbers in memory, and texts on disk.

Documents, occurrences of passages, distinct passages and questions are numbered from 0 in the order of the source.
Arrays contain these numbers and 64-bit hashes, so that a passage takes tens of bytes whatever its length.
"""

from array import array
from dataclasses import dataclass, replace
from functools import cached_property
from operator import itemgetter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pyrite import boilerplate
from pyrite.chunking import split_into_passages
from pyrite.errors import UserError
from pyrite.identity import IdSet, Keys, normalise, passage_id, query_id
from pyrite.ragged import Lists, Mask, Numbers, ragged
from pyrite.sources.base import NO_QUESTION, NO_TEXT, Document, Dropped, DroppedRecords, Note, Question, Record
from pyrite.spec import PrepareSpec
from pyrite.spill import Spill
from pyrite.splitting import SPLITS, unique_pairs
from pyrite.training.duplicates import ShingleIndex
from pyrite.training.mining import shingles
from pyrite.words import words

NO_RELEVANT = "query without a relevant passage"
UNKNOWN_DOCUMENT = "question names an unknown document"
EARLIER_SPLIT = "the same question is in an earlier split"

_OCCURRENCES = pa.schema(
    [
        ("text", pa.string()),
        ("title", pa.string()),
        ("context", pa.string()),
        ("document_id", pa.string()),
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("topic", pa.string()),
        ("type", pa.string()),
    ]
)
_QUESTIONS = pa.schema([("id", pa.string()), ("text", pa.string()), ("topic", pa.string()), ("type", pa.string())])
_RELEVANT = pa.schema([("document_id", pa.string()), ("grade", pa.string())])

#: The key of an empty question. Keys of queries have 60 bits.
_EMPTY = 1 << 60

#: A question without a split of its own. Otherwise, splits are positions in ``SPLITS``.
NO_SPLIT = -1


# --- distinct passages and queries ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Distinct:
    """Items that were merged by their keys.

    Attributes:
        keys: the distinct keys, in order of first occurrence.
        first: the number of the first item with each key, ascending.
        group_of: for each item, the position of its key in ``keys``.
    """

    keys: Keys
    first: Numbers
    group_of: npt.NDArray[np.int32]

    @cached_property
    def items(self) -> Lists:
        """The items of each group, in order."""
        return Lists.group(self.group_of, np.arange(len(self.group_of), dtype=np.int32), len(self.keys))


def distinct(keys: Keys) -> Distinct:
    """Merge the items with the same key."""
    found, first, group_of = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first)
    position = np.empty(len(order), np.int32)
    position[order] = np.arange(len(order))
    return Distinct(found[order], first[order].astype(np.int32), position[group_of])


# --- reading the source -----------------------------------------------------------------------------------------------


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


class Reader:
    """Reads records: texts go to files in ``folder``, and the rest becomes a ``Corpus``."""

    def __init__(self, spec: PrepareSpec, folder: Path) -> None:
        self._spec = spec
        folder.mkdir(parents=True, exist_ok=True)
        self._document_ids, self._question_ids = IdSet(), IdSet()
        self._occurrences = Spill(folder / "occurrences.arrow", _OCCURRENCES)
        self._questions = Spill(folder / "questions.arrow", _QUESTIONS)
        self._relevant = Spill(folder / "relevant.arrow", _RELEVANT)
        self._shingles = ShingleIndex(folder / "shingles")
        self._concepts: dict[str, int] = {}
        self._characters = 0
        self._notes: list[str] = []
        self._dropped = DroppedRecords()
        # One element for each occurrence; document; pair of a document and its concept; question; relevant document.
        self._passage_keys, self._passage_characters = array("Q"), array("i")
        self._ids, self._topics, self._contents, self._lengths = array("q"), array("q"), array("q"), array("i")
        self._concept_documents, self._document_concepts = array("i"), array("i")
        self._query_keys, self._question_topics, self._splits = array("Q"), array("q"), array("b")
        self._relevant_questions, self._relevant_ids, self._grades = array("i"), array("q"), array("b")

    def add(self, record: Record) -> None:
        """Add the next record.

        Raises:
            UserError: its id is not unique.
        """
        if isinstance(record, Dropped):
            self._dropped.add(record.where, record.reason)
        elif isinstance(record, Note):
            self._notes.append(record.text)
        elif isinstance(record, Question):
            self._add_question(record)
        else:
            self._add_document(record)

    def _add_question(self, question: Question) -> None:
        if not self._question_ids.add(question.id):
            raise UserError(f"question id '{question.id}' occurs twice. Ids must be unique in a source.")
        text = normalise(question.text)
        self._query_keys.append(int(query_id(text)[1:], 16) if text else _EMPTY)
        self._question_topics.append(hash(normalise(question.topic)))
        self._splits.append(NO_SPLIT if question.split is None else SPLITS.index(question.split))
        for document, grade in question.relevant.items():
            self._relevant.append(document, str(grade))
            self._relevant_questions.append(self._questions.num_rows)
            self._relevant_ids.append(hash(document))
            self._grades.append(grade if 0 < grade < 128 else 0)
        self._questions.append(question.id, question.text, question.topic, question.type)

    def _add_document(self, document: Document) -> None:
        if not self._document_ids.add(document.id):
            raise UserError(f"document id '{document.id}' occurs twice. Ids must be unique in a source.")
        number = len(self._ids)
        spans = split_into_passages(document.text, self._spec.min_chars, self._spec.max_chars)
        passages: dict[str, None] = {}
        for start, end in spans:
            text, title = document.text[start:end], document.title_at(start)
            context = context_of(title, text) if self._spec.context == "title" else ""
            self._occurrences.append(text, title, context, document.id, start, end, document.topic, document.type)
            self._shingles.add(shingles(text))
            key = passage_id(text)
            passages[key] = None
            self._passage_keys.append(int(key, 16))
            self._passage_characters.append(end - start)
        self._ids.append(hash(document.id))
        self._topics.append(hash(normalise(document.topic)))
        self._contents.append(hash(tuple(passages)))
        self._lengths.append(len(spans))
        for concept in document.concepts:
            self._concept_documents.append(number)
            self._document_concepts.append(self._concepts.setdefault(concept, len(self._concepts)))
        self._characters += len(document.text)
        if not spans:
            self._dropped.add(document.id, NO_TEXT)

    def finish(self) -> "Corpus":
        """The corpus, after the last record."""
        for spill in (self._occurrences, self._questions, self._relevant):
            spill.finish()
        passages = distinct(np.asarray(self._passage_keys))
        # A passage may occur several times in a document.
        documents = np.repeat(np.arange(len(self._ids), dtype=np.int32), np.asarray(self._lengths))
        document, passage = unique_pairs(documents, passages.group_of)
        contents = np.asarray(self._contents)
        counts = boilerplate.count(document, passage, contents, len(passages.keys))
        content = counts[passage] == 0
        return Corpus(
            occurrences=self._occurrences,
            questions=self._questions,
            relevant=self._relevant,
            shingles=self._shingles,
            concepts=list(self._concepts),
            characters=self._characters,
            dropped=self._dropped,
            source_notes=self._notes,
            passages=passages,
            longest_passage=int(np.asarray(self._passage_characters)[passages.first].max(initial=0)),
            boilerplate=counts.astype(np.int32),
            document_of=document[content],
            passage_of=passage[content],
            document_ids=np.asarray(self._ids),
            topics=np.asarray(self._topics),
            concept_pairs=(np.asarray(self._concept_documents), np.asarray(self._document_concepts)),
            query_keys=np.asarray(self._query_keys),
            question_topics=np.asarray(self._question_topics),
            splits=np.asarray(self._splits),
            relevant_questions=np.asarray(self._relevant_questions),
            relevant_ids=np.asarray(self._relevant_ids),
            grades=np.asarray(self._grades),
        )


@dataclass(frozen=True)
class Corpus:
    """The records of a source.

    Attributes:
        occurrences: the passages of all documents in order, with their texts.
        questions: their ids, texts, topics and types.
        relevant: the ids of the documents that questions name, and the grades, for messages.
        shingles: the index of the occurrences.
        concepts: the id of each concept.
        characters: of all documents.
        passages: the distinct passages, merged from ``occurrences``.
        longest_passage: its number of characters.
        boilerplate: for each passage, the number of its documents if it is boilerplate, otherwise 0.
        document_of, passage_of: distinct pairs of a document and a passage of it that is no boilerplate, in order.
        document_ids: for each document, the hash of its id.
        topics, question_topics: for each document and question, the hash of its topic, 0 if it has none.
        concept_pairs: pairs of a document and a concept.
        query_keys: for each question, the key of its query, or ``_EMPTY``.
        splits: for each question, its split, or ``NO_SPLIT``.
        relevant_questions, relevant_ids, grades: for each relevant document of a question, the question, the hash of
            the document's id, and its grade, 0 if it is out of range.
    """

    occurrences: Spill
    questions: Spill
    relevant: Spill
    shingles: ShingleIndex
    concepts: list[str]
    characters: int
    dropped: DroppedRecords
    source_notes: list[str]
    passages: Distinct
    longest_passage: int
    boilerplate: Numbers
    document_of: Numbers
    passage_of: Numbers
    document_ids: Numbers
    topics: Numbers
    concept_pairs: tuple[Numbers, Numbers]
    query_keys: Keys
    question_topics: Numbers
    splits: npt.NDArray[np.int8]
    relevant_questions: Numbers
    relevant_ids: Numbers
    grades: npt.NDArray[np.int8]

    @property
    def num_documents(self) -> int:
        return len(self.topics)

    @cached_property
    def notes(self) -> list[str]:
        """The notes about the records."""
        notes = list(self.source_notes)
        topics = self.question_topics if len(self.question_topics) else self.topics
        missing = int(np.count_nonzero(topics == 0))
        if 0 < missing < len(topics):
            unit = "questions" if len(self.question_topics) else "documents"
            notes.append(f"{missing:,} of {len(topics):,} {unit} have no topic. Each of them is its own topic.")
        found = np.flatnonzero(self.boilerplate)
        if len(found):
            counts = self.boilerplate[found]
            most = found[np.lexsort((self.passages.keys[found], counts))[-1]]
            text = self.occurrences.value(int(self.passages.first[most]), "text")
            notes.append(boilerplate.describe(len(found), int(self.boilerplate[most]), text, self.num_documents))
        return notes

    @property
    def has_splits(self) -> bool:
        """Whether the data set assigns the splits.

        Raises:
            UserError: only some questions have a split.
        """
        given = self.splits != NO_SPLIT
        if given.any() and not given.all():
            first = self.questions.value(int(np.argmin(given)), "id")
            raise UserError(f"question '{first}' has no split, but others do. Give all questions a split, or none.")
        return bool(given.any())

    def question_ids(self, questions: Numbers) -> list[str]:
        """The ids of the first three of ``questions``."""
        return [self.questions.value(number, "id") for number in questions[:3].tolist()]

    def relevant_documents(self) -> Numbers:
        """For each relevant document of a question, its number, or -1 if the corpus does not have it."""
        order = np.argsort(self.document_ids)
        ids = self.document_ids[order]
        found = np.searchsorted(ids, self.relevant_ids).clip(max=len(ids) - 1)
        return np.where(ids[found] == self.relevant_ids, order[found], -1)


# --- queries ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Queries:
    """The distinct queries, in order of first occurrence.

    Attributes:
        numbers: the questions of all queries.
        questions: the queries, merged from the positions in ``numbers``.
        used: whether each query is in use. The others were dropped.
        splits: for each query, its split, or ``NO_SPLIT``.
        topics: distinct pairs of a query and the hash of one of its topics, 0 if that is empty.
        query_of, passage_of, grades: each relevant passage of each query, in order.
    """

    numbers: Numbers
    questions: Distinct
    used: Mask
    splits: npt.NDArray[np.int8]
    topics: tuple[Numbers, Numbers]
    query_of: Numbers
    passage_of: Numbers
    grades: npt.NDArray[np.int8]

    @property
    def first(self) -> Numbers:
        """The first question of each query."""
        return self.numbers[self.questions.first]

    def without(self, excluded: Mask) -> "Queries":
        """The same queries, of which the ``excluded`` ones are not in use."""
        return replace(self, used=self.used & ~excluded)


def merge_questions(corpus: Corpus) -> Queries:
    """Merge equal questions. Queries without a relevant passage are not in use. Adds to ``corpus.dropped``.

    A question that occurs in several splits is only in the first of them, in the order train, val, test.

    Raises:
        UserError: a grade is not between 1 and 127.
    """
    empty = corpus.query_keys == _EMPTY
    late = ~empty & (corpus.splits != _earliest_splits(corpus))
    numbers = np.flatnonzero(~empty & ~late).astype(np.int32)
    questions = distinct(corpus.query_keys[numbers])
    query_of = np.full(len(empty), -1, np.int32)
    query_of[numbers] = questions.group_of

    documents = corpus.relevant_documents()
    queries = query_of[corpus.relevant_questions]
    known = np.flatnonzero((queries >= 0) & (documents >= 0))
    unknown = np.flatnonzero((queries >= 0) & (documents < 0))
    _check_grades(corpus, known)
    by_question = ((np.flatnonzero(empty), NO_QUESTION), (np.flatnonzero(late), EARLIER_SPLIT))
    dropped = [
        (found[0], reason, len(found), corpus.question_ids(found)) for found, reason in by_question if len(found)
    ]
    if len(unknown):
        askers = corpus.relevant_questions[unknown]
        names = [corpus.relevant.value(row, "document_id") for row in unknown[:3].tolist()]
        examples = [f"{asker}: {name}" for asker, name in zip(corpus.question_ids(askers), names, strict=True)]
        dropped.append((askers[0], UNKNOWN_DOCUMENT, len(unknown), examples))
    for _, reason, count, examples in sorted(dropped, key=itemgetter(0)):
        corpus.dropped.add_all(reason, count, examples)
    graded = _grades(corpus, queries[known], documents[known], corpus.grades[known])
    used = np.bincount(graded[0], minlength=len(questions.keys)) > 0
    without = numbers[questions.first[~used]]
    corpus.dropped.add_all(NO_RELEVANT, len(without), corpus.question_ids(without))
    splits = corpus.splits[numbers[questions.first]]
    topics = unique_pairs(questions.group_of, corpus.question_topics[numbers])
    return Queries(numbers, questions, used, splits, topics, *graded)


def _earliest_splits(corpus: Corpus) -> npt.NDArray[np.int8]:
    """For each question, the first split of all equal questions, or ``NO_SPLIT``."""
    equal = distinct(corpus.query_keys)
    given = corpus.splits != NO_SPLIT
    earliest = np.full(len(equal.keys), len(SPLITS), np.int8)
    np.minimum.at(earliest, equal.group_of[given], corpus.splits[given])
    earliest[earliest == len(SPLITS)] = NO_SPLIT
    return earliest[equal.group_of]


def _check_grades(corpus: Corpus, rows: Numbers) -> None:
    """Raise UserError if a grade in ``rows`` of ``corpus.relevant`` is out of range."""
    wrong = rows[corpus.grades[rows] == 0]
    if len(wrong):
        row = int(wrong[0])
        question = corpus.questions.value(int(corpus.relevant_questions[row]), "id")
        document, grade = (corpus.relevant.value(row, column) for column in ("document_id", "grade"))
        raise UserError(f"question '{question}': grade {grade} of '{document}'. Use grades from 1 to 127.")


def _grades(
    corpus: Corpus, queries: Numbers, documents: Numbers, grades: npt.NDArray[np.int8]
) -> tuple[Numbers, Numbers, npt.NDArray[np.int8]]:
    """The relevant passages of queries, from their relevant ``documents``: the query, the passage, its highest grade.

    Boilerplate is no answer to any question.
    """
    edges = np.searchsorted(corpus.document_of, np.arange(corpus.num_documents + 1))
    starts, lengths = edges[documents], edges[documents + 1] - edges[documents]
    num_passages = len(corpus.passages.keys)
    pairs = np.repeat(queries.astype(np.int64) * num_passages, lengths) + corpus.passage_of[ragged(starts, lengths)]
    order = np.argsort(pairs, kind="stable")
    found, first = np.unique(pairs[order], return_index=True)
    of_documents = np.repeat(grades, lengths)[order]
    highest = np.maximum.reduceat(of_documents, first) if len(first) else of_documents
    query, passage = np.divmod(found, num_passages)
    return query.astype(np.int32), passage.astype(np.int32), highest
