"""Turns a model's replies into a grade, without guessing: a reply that is none of the labels has none. Pure."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from pyrite.judges.base import GRADES
from pyrite.llm.completion import BLANKS
from pyrite.llm.labels import Reading
from pyrite.llm.pool import Completion

#: What a prompt asks for. grades: one of the grades. yes_no: whether the passage answers the query, then whether it is
#: on the query's topic.
Form = Literal["grades", "yes_no"]

#: The labels of the form grades.
LABELS = tuple(str(grade) for grade in GRADES)

#: The labels of each reply, by form.
LABELS_OF: dict[Form, tuple[str, ...]] = {"grades": LABELS, "yes_no": ("yes", "no")}

Distribution = tuple[float, float, float, float]


class ParsedGrade(NamedTuple):
    """The grade, and the distribution over the grades 1 to 4, if known."""

    grade: int
    distribution: Distribution | None


def parse_grade(form: Form, readings: Sequence[Reading]) -> ParsedGrade:
    """The grade in the replies to one prompt: one reply in the form grades, two in the form yes_no.

    The distribution has the model's probabilities, normalised over the labels. Its likeliest grade is the grade.
    """
    if form == "yes_no":
        return _from_yes_no(*readings)
    (reading,) = readings
    if reading.distribution is None:
        return ParsedGrade(int(reading.label), None)
    one, two, three, four = reading.distribution
    return ParsedGrade(int(reading.label), (one, two, three, four))


def yes_no_distribution(answers: float, on_topic: float) -> Distribution:
    """The probabilities of the grades 1 to 4, from those that the passage answers the query and is on its topic.

    The two replies count as independent: yes and yes is a 4, no and yes a 2, no and no a 1. Yes and no contradict each
    other, since an answer is on the topic; they are a 3, which mining uses neither as positive nor as negative by
    default. The expected grade is 1 + 2 answers + on_topic. Both arguments can be recovered: p3 + p4 and p2 + p4.
    """
    return (
        (1 - answers) * (1 - on_topic),
        (1 - answers) * on_topic,
        answers * (1 - on_topic),
        answers * on_topic,
    )


def _from_yes_no(answers: Reading, on_topic: Reading) -> ParsedGrade:
    grade = 1 + 2 * (answers.label == "yes") + (on_topic.label == "yes")
    if answers.distribution is None or on_topic.distribution is None:
        return ParsedGrade(grade, None)
    return ParsedGrade(grade, yes_no_distribution(answers.distribution[0], on_topic.distribution[0]))


def is_off_label(reply: Completion, labels: Sequence[str]) -> bool:
    """Whether the generated token is not a label. The log probabilities do not matter here."""
    return reply.text.strip(BLANKS).casefold() not in labels
