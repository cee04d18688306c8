"""An LLM's reply to a question, or the reason why it is none. Pure rules over one text."""

import re

from pyrite.spec import GenerateSpec

EMPTY = "empty reply"
NOT_A_QUESTION = "its first line is not a question"
POINTS_AT_PASSAGE = "speaks of a passage that who asks has not seen"
TOO_SHORT = "fewer words than generate.min_words"
TOO_LONG = "more words than generate.max_words"

_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "`": "`", "„": "“"}
_LABEL = re.compile(r"(?:[-*•>#]+\s+|\(?\d{1,3}[.):]\s+|(?:q|query|question)\s*\d*\s*[:.)]\s*)", re.IGNORECASE)
_MARKS = ("?", "？", "؟")
# What LLMs write where they were told not to. English only: in another language the judge's grade must do.
_TELLTALE = re.compile(
    r"\b(?:the|this|that)\s+(?:(?:given|above|provided|following|text)\s+)?(?:passage|excerpt|paragraph)\b(?!\s+of\b)"
    r"|\b(?:according to|mentioned in|described in|based on)\s+(?:the|this)\s+(?:\w+\s+)?(?:text|article|document)\b",
    re.IGNORECASE,
)


def clean(reply: str) -> str:
    """The first line of ``reply`` that is not blank, without numbering, labels, emphasis and quotes around it."""
    text = next((line.strip() for line in reply.splitlines() if line.strip()), "")
    before = None
    while text != before:
        before = text
        text = text.strip("*_ \t")
        if label := _LABEL.match(text):
            text = text[label.end() :]
        if len(text) > 1 and _QUOTES.get(text[0]) == text[-1]:
            text = text[1:-1]
    return " ".join(text.split())


def refusal(question: str, spec: GenerateSpec) -> str | None:
    """Why the cleaned ``question`` cannot be used; None where it can, as far as one sees by looking at it alone."""
    if not question:
        return EMPTY
    if not question.endswith(_MARKS) or not any(character.isalpha() for character in question):
        return NOT_A_QUESTION
    if _TELLTALE.search(question):
        return POINTS_AT_PASSAGE
    words = len(question.split())
    if words < spec.min_words:
        return TOO_SHORT
    return TOO_LONG if words > spec.max_words else None
