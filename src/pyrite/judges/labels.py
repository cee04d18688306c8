"""The data set's own relevance labels as the judge. It costs nothing, and is exact only for labelled answers."""

import hashlib
import json
from array import array
from collections.abc import Callable, Collection, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from pyrite.errors import UserError
from pyrite.identity import IdSet, normalise
from pyrite.judges import register
from pyrite.judges.base import GRADES, Judge, Judgment, Pair
from pyrite.judges.noise import ConfusionErrors, LatentErrors, parse_confusion
from pyrite.spec import ConfiguredJudge, LabelsJudgeSpec

#: The distribution over the grades of a pair whose topics are unknown. The expected grade is 1.75: above the default of
#: ``mine.violating_grade`` (1.5), so that the margin applies to such a passage, and below the one of a passage of the
#: query's topic (2).
UNKNOWN = (0.75, 0.0, 0.0, 0.25)

#: A normalised topic and a normalised type.
Category = tuple[str, str]

#: Passages of the answer key that are Python objects at the same time.
_BATCH = 1 << 14


@register("labels")
class LabelsJudge(Judge):
    """Grades by the relevance labels, topics and types of the data set.

    4: the passage is labelled as relevant. 3: it is from another document of the query's topic and type. 2: it is from
    a document of the query's topic. 1: otherwise. An empty topic or type matches nothing. A query with several topics
    or types matches each of them. If the query or the passage has no topic, an unlabelled passage may be relevant: its
    grade is 1, but its expected grade is above that (``UNKNOWN``). Grades are not shareable, because other runs have
    other labels. With ``judge.noise`` or ``judge.confusion``, the grades have simulated errors (``judges.noise``).
    """

    reads_key = True
    fingerprint = "labels-v3"
    in_flight = 1

    def __init__(self) -> None:
        self._errors: LatentErrors | ConfusionErrors | None = None
        self._relevant = IdSet()
        #: The categories with a topic of queries and of passages, as numbers: positions in ``_categories``.
        self._categories: list[Category] = []
        self._queries: dict[str, frozenset[int]] = {}
        self._passages = _NumbersById()

    @classmethod
    def open(cls, judge: ConfiguredJudge) -> Self:
        opened = cls()
        opened._errors, opened.fingerprint = _errors_of(judge), cls.fingerprint_of(judge)
        return opened

    @classmethod
    def of(cls, queries: pa.Table, passages: pa.Table, qrels: pa.Table) -> Self:
        """The judge without simulated errors, with this answer key."""
        judge = cls()
        judge.load_key(queries, passages, qrels)
        return judge

    def load_key(self, queries: pa.Table, passages: pa.Table, qrels: pa.Table) -> None:
        for query, passage in zip(qrels["query_id"].to_pylist(), qrels["passage_id"].to_pylist(), strict=True):
            self._relevant.add(f"{query} {passage}")
        number_of: dict[Category, int] = {}

        @cache
        def number(topic: str, type: str) -> int | None:
            category = normalise(topic), normalise(type)
            return number_of.setdefault(category, len(number_of)) if category[0] else None

        # A row of ``queries`` has the ids of all questions with its text, but the topic and type of the first only. The
        # others' are those of their answers: in sources with topics, a question and its answer have the same id.
        questions = {id for ids in queries["question_ids"].to_pylist() for id in ids}
        of_answers: dict[str, int | None] = {}
        for batch in passages.select(["passage_id", "parents"]).to_batches(_BATCH):
            for row in batch.to_pylist():
                own = [(parent["document_id"], number(parent["topic"], parent["type"])) for parent in row["parents"]]
                self._passages.append(row["passage_id"], {each for _, each in own if each is not None})
                of_answers |= {document: each for document, each in own if document in questions}
        self._passages.finish()
        for row in queries.select(["query_id", "topic", "type", "question_ids"]).to_pylist():
            of_query = {number(row["topic"], row["type"]), *(of_answers.get(id) for id in row["question_ids"])}
            self._queries[row["query_id"]] = frozenset(each for each in of_query if each is not None)
        self._categories = list(number_of)

    @classmethod
    def fingerprint_of(cls, judge: ConfiguredJudge) -> str:
        assert isinstance(judge.spec, LabelsJudgeSpec)
        if judge.spec.noise:
            errors = _digest(judge.spec.noise.model_dump())
        elif judge.spec.confusion:
            errors = _digest(_read_confusion(judge.spec.confusion, judge.section))
        else:
            return cls.fingerprint
        return f"{cls.fingerprint}-errors-v2-{errors[:16]}"

    @classmethod
    def external(cls, judge: ConfiguredJudge) -> Mapping[str, Callable[[], str]]:
        assert isinstance(judge.spec, LabelsJudgeSpec)
        return {"confusion": partial(cls.fingerprint_of, judge)} if judge.spec.confusion else {}

    @property
    def stats(self) -> Mapping[str, Any]:
        return self._errors.stats if self._errors else {}

    def fit(self, first_candidates: Callable[[], pa.Table], range_max: int, queries: Collection[str]) -> None:
        if isinstance(self._errors, LatentErrors):
            self._errors.fit(first_candidates(), range_max, self.true_grade, queries)

    def true_grade(self, pair: Pair) -> int:
        """The grade without simulated errors."""
        return self._grade(pair) or min(GRADES)

    async def grade(self, pair: Pair) -> Judgment:
        """The pair's grade, with probability 1; with ``UNKNOWN`` if it is not labelled and its topics are unknown.

        With simulated errors, the noisy grade, and its distribution if it has one.
        """
        if self._errors:
            return Judgment(pair, *self._errors.grade(pair, self.true_grade(pair)))
        grade = self._grade(pair)
        if grade is None:
            return Judgment(pair, 1, UNKNOWN)
        one, two, three, four = (1.0 if grade == g else 0.0 for g in GRADES)
        return Judgment(pair, grade, (one, two, three, four))

    def _grade(self, pair: Pair) -> int | None:
        """The grade; None if the pair is not labelled, and the query or the passage has no topic."""
        if f"{pair.query_id} {pair.passage_id}" in self._relevant:
            return 4
        of_query, of_passage = self._queries[pair.query_id], self._passages[pair.passage_id]
        if not of_query or not of_passage:
            return None
        if any(self._categories[number][1] for number in of_query & of_passage):
            return 3
        topics = ({self._categories[number][0] for number in numbers} for numbers in (of_query, of_passage))
        return 2 if set.intersection(*topics) else 1


class _NumbersById:
    """Sets of numbers by id, in about 30 bytes each. Ids are stored as 64-bit hashes, as in ``IdSet``."""

    def __init__(self) -> None:
        self._appended, self._ends, self._numbers = array("q"), array("q", [0]), array("i")
        self._keys = self._rows = np.empty(0, np.int64)

    def append(self, id: str, numbers: Collection[int]) -> None:
        self._appended.append(hash(id))
        self._numbers.extend(numbers)
        self._ends.append(len(self._numbers))

    def finish(self) -> None:
        """Call this after the last ``append``."""
        self._rows = np.argsort(np.asarray(self._appended))
        self._keys = np.asarray(self._appended)[self._rows]

    def __getitem__(self, id: str) -> set[int]:
        position = int(np.searchsorted(self._keys, hash(id)))
        if position == len(self._keys) or self._keys[position] != hash(id):
            raise KeyError(id)
        row = int(self._rows[position])
        return set(self._numbers[self._ends[row] : self._ends[row + 1]])


def _errors_of(judge: ConfiguredJudge) -> LatentErrors | ConfusionErrors | None:
    spec = judge.spec
    assert isinstance(spec, LabelsJudgeSpec)
    if spec.noise:
        return LatentErrors(spec.noise, judge.section)
    return ConfusionErrors(_read_confusion(spec.confusion, judge.section)) if spec.confusion else None


def _read_confusion(name: str, section: str) -> list[list[float]]:
    path = Path(name).expanduser().absolute()
    where = f"{section}.confusion: {path}"
    try:
        return parse_confusion(path.read_text(encoding="utf-8"), where)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"it is not UTF-8 (byte {error.start})"
        raise UserError(f"{where} cannot be read: {reason}. Correct the path.") from None


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
