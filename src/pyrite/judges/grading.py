"""Parses a model's reply into a grade, without guessing: a reply that is not one of the labels has none. Pure."""

from typing import NamedTuple

from pyrite.judges.base import GRADES
from pyrite.llm.completion import BLANKS
from pyrite.llm.labels import DecodingMode, read_label
from pyrite.llm.pool import Completion

LABELS = tuple(str(grade) for grade in GRADES)


class ParsedGrade(NamedTuple):
    """The grade, and the distribution over the grades 1 to 4, if known."""

    grade: int
    distribution: tuple[float, float, float, float] | None


def read_grade(reply: Completion, mode: DecodingMode) -> ParsedGrade | str:
    """The grade in ``reply``, which was requested in that ``mode``, or the reason that there is none.

    The distribution is the model's, normalised over the four labels. Its likeliest grade is the grade.
    """
    reading = read_label(reply, LABELS, mode)
    if isinstance(reading, str):
        return reading
    if reading.distribution is None:
        return ParsedGrade(int(reading.label), None)
    one, two, three, four = reading.distribution
    return ParsedGrade(int(reading.label), (one, two, three, four))


def is_off_label(reply: Completion) -> bool:
    """Whether the generated token is not a label. The log probabilities do not matter here."""
    return reply.text.strip(BLANKS) not in LABELS
