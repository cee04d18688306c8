"""What prepare reads: distinct passages, the questions, and what was left out and why."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from pyrite.chunking import split_into_passages
from pyrite.errors import UserError
from pyrite.identity import normalise, passage_id, query_id
from pyrite.sources.base import NO_QUESTION, NO_TEXT, Document, Dropped, Question, Record, Split
from pyrite.spec import PrepareSpec
from pyrite.splitting import SPLITS

NO_RELEVANT = "query without a relevant passage"
UNKNOWN_DOCUMENT = "question names an unknown document"
EARLIER_SPLIT = "the same question is in an earlier split"

_EXAMPLES = 3


@dataclass(slots=True)
class Passage:
    text: str
    title: str
    parents: list[dict[str, Any]] = field(default_factory=list)


@dataclass(slots=True)
class Query:
    id: str
    first: Question
    split: Split | None
    question_ids: list[str] = field(default_factory=list)
    topics: dict[str, str] = field(default_factory=dict)
    grades: dict[str, int] = field(default_factory=dict)


class Drops:
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


class Corpus:
    """All that was read: distinct passages by id, which passages each document has, and the questions."""

    def __init__(self, spec: PrepareSpec) -> None:
        self._spec = spec
        self.passages: dict[str, Passage] = {}
        self.passages_of: dict[str, list[str]] = {}
        self.topic_of: dict[str, str] = {}
        self.characters = self.cuts = 0
        self.questions: list[Question] = []
        self.dropped = Drops()
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
        if document.id in self.passages_of:
            raise UserError(f"document id '{document.id}' is there twice. Ids must be unique in a source.")
        own: dict[str, None] = {}
        for start, end in split_into_passages(document.text, self._spec.min_chars, self._spec.max_chars):
            text = document.text[start:end]
            key = passage_id(text)
            own[key] = None
            self.cuts += 1
            parent = {"document_id": document.id, "start": start, "end": end}
            parent |= {"topic": document.topic, "type": document.type}
            self.passages.setdefault(key, Passage(text, document.title)).parents.append(parent)
        self.passages_of[document.id] = list(own)
        self.topic_of[document.id] = normalise(document.topic)
        self.characters += len(document.text)
        if not own:
            self.dropped.add(document.id, NO_TEXT)

    @property
    def has_splits(self) -> bool:
        """Whether the data set assigns the splits itself."""
        given = [question.split is not None for question in self.questions]
        if any(given) and not all(given):
            lacking = self.questions[given.index(False)].id
            raise UserError(f"question '{lacking}' has no split, and others have. Give all questions a split, or none.")
        return any(given)

    def queries(self) -> list[Query]:
        """The distinct questions that have a relevant passage, in the order in which they were first seen."""
        found: dict[str, Query] = {}
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
                self.dropped.add(question.id, NO_QUESTION)
                continue
            if question.split != best.get(text):
                self.dropped.add(question.id, EARLIER_SPLIT)
                continue
            key = query_id(text)
            query = found.setdefault(key, Query(key, question, question.split))
            query.question_ids.append(question.id)
            query.topics[normalise(question.topic)] = question.topic
            self._grade(question, query.grades)
        for query in found.values():
            if not query.grades:
                self.dropped.add(query.first.id, NO_RELEVANT)
        return [query for query in found.values() if query.grades]

    def _grade(self, question: Question, grades: dict[str, int]) -> None:
        for document, grade in question.relevant.items():
            if document not in self.passages_of:
                self.dropped.add(f"{question.id}: {document}", UNKNOWN_DOCUMENT)
            elif not 0 < grade < 128:
                raise UserError(f"question '{question.id}': grade {grade} of '{document}'. Use grades from 1 to 127.")
            else:
                for key in self.passages_of[document]:
                    grades[key] = max(grade, grades.get(key, 0))
