"""From what a model said to a grade. Pure. What is none of the four labels is no grade."""

import math
import re
from typing import NamedTuple

from pyrite.judges.base import GRADES
from pyrite.llm.capabilities import DecodingMode
from pyrite.llm.pool import Completion

LABELS = tuple(str(grade) for grade in GRADES)

_SAID = re.compile(r"\s*(?:grade\s*[:=]?\s*)?([1-4])\s*\.?\s*", re.IGNORECASE)

#: What tokenizers put before a word: a blank, or the mark that stands for one.
_BLANKS = " \t\n▁Ġ"


class Graded(NamedTuple):
    """The most likely grade, and the distribution over the grades 1 to 4; None where there is none."""

    grade: int
    distribution: tuple[float, float, float, float] | None


def read_grade(answer: Completion, way: DecodingMode) -> Graded | None:
    """The grade that ``answer``, had in that ``way``, gives; None where it gives none.

    The distribution is the model's over the four labels alone: their probabilities, made to add up to 1. Equally
    likely labels count as the lower one.
    """
    mass = _label_mass(answer)
    held = way in ("label_ids", "choice")
    if held and mass and all(label in (answer.logprobs or {}) for label in LABELS):
        return _most_likely(mass)
    said = _SAID.fullmatch(answer.text)
    if said is None:
        return None
    return _most_likely(mass) if mass else Graded(int(said[1]), None)


def strays(answer: Completion) -> bool:
    """Whether the model's own word is none of the labels, whatever its log probabilities of them say."""
    return answer.text.strip(_BLANKS) not in LABELS


def _most_likely(mass: list[float]) -> Graded:
    total = math.fsum(mass)
    one, two, three, four = (value / total for value in mass)
    return Graded(GRADES[mass.index(max(mass))], (one, two, three, four))


def _label_mass(answer: Completion) -> list[float] | None:
    """The probability of each label among the first token's top ones; None where they give none."""
    if not answer.logprobs:
        return None
    mass = [0.0] * len(LABELS)
    for token, logprob in answer.logprobs.items():
        label = token.strip(_BLANKS)
        if label in LABELS:
            mass[LABELS.index(label)] += math.exp(min(logprob, 0.0))
    total = math.fsum(mass)
    return mass if total > 0 and math.isfinite(total) else None
