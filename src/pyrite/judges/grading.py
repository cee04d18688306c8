"""Parses a model's reply into a grade, without guessing: a reply that is not one of the labels has none. Pure."""

import math
import re
from typing import NamedTuple

from pyrite.judges.base import GRADES
from pyrite.llm.capabilities import DecodingMode
from pyrite.llm.pool import Completion

LABELS = tuple(str(grade) for grade in GRADES)

_GRADE_TEXT = re.compile(r"\s*(?:grade\s*[:=]?\s*)?([1-4])\s*\.?\s*", re.IGNORECASE)

#: What tokenizers put before a word: white space, or a character that encodes a space.
_BLANKS = " \t\n▁Ġ"


class ParsedGrade(NamedTuple):
    """The most likely grade, and the distribution over the grades 1 to 4, if known."""

    grade: int
    distribution: tuple[float, float, float, float] | None


def read_grade(reply: Completion, mode: DecodingMode) -> ParsedGrade | None:
    """The grade in ``reply``, which was requested in that ``mode``; None if there is none.

    The distribution is the model's, normalised over the four labels. On a tie, the lowest grade wins.
    """
    mass = _label_mass(reply)
    if mode in ("label_ids", "choice") and mass and all(label in (reply.logprobs or {}) for label in LABELS):
        return _most_likely(mass)  # whatever the generated token
    text = _GRADE_TEXT.fullmatch(reply.text)
    if text is None:
        return None
    return _most_likely(mass) if mass else ParsedGrade(int(text[1]), None)


def is_off_label(reply: Completion) -> bool:
    """Whether the generated token is not a label. The log probabilities do not matter here."""
    return reply.text.strip(_BLANKS) not in LABELS


def _most_likely(mass: list[float]) -> ParsedGrade:
    total = math.fsum(mass)
    one, two, three, four = (value / total for value in mass)
    return ParsedGrade(GRADES[mass.index(max(mass))], (one, two, three, four))


def _label_mass(reply: Completion) -> list[float] | None:
    """The probability of each label, from the first token's log probabilities; None if they contain no label."""
    if not reply.logprobs:
        return None
    mass = [0.0] * len(LABELS)
    for token, logprob in reply.logprobs.items():
        label = token.strip(_BLANKS)
        if label in LABELS:
            mass[LABELS.index(label)] += math.exp(min(logprob, 0.0))
    total = math.fsum(mass)
    return mass if total > 0 and math.isfinite(total) else None
