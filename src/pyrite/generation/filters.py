"""Turns LLM replies into usable questions: cleaning, rejection, deduplication. Pure functions."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from pyrite.generation.questions import GeneratedQuestion
from pyrite.identity import normalise
from pyrite.spec import GenerateSpec
from pyrite.splitting import SPLITS
from pyrite.words import count_words, words

EMPTY = "empty reply"
NOT_A_QUESTION = "its first line is not a question"
MENTIONS_PASSAGE = "it mentions a passage that a search user does not see"
TOO_SHORT = "fewer words than generate.min_words"
TOO_LONG = "more words than generate.max_words"
DUPLICATE = "the same as another question"
NEAR_DUPLICATE = "nearly the same as another question"

_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "`": "`", "„": "“"}
_LABEL = re.compile(r"(?:[-*•>#]+\s+|\(?\d{1,3}[.):]\s+|(?:q|query|question)\s*\d*\s*[:.)]\s*)", re.IGNORECASE)
_QUESTION_MARKS = ("?", "？", "؟")
# Phrases that LLMs write although the prompt forbids them. English only: in other languages, only the judge's grade
# filters such questions.
_PASSAGE_MENTION = re.compile(
    r"\b(?:the|this|that)\s+(?:(?:given|above|provided|following|text)\s+)?(?:passage|excerpt|paragraph)\b(?!\s+of\b)"
    r"|\b(?:according to|mentioned in|described in|based on)\s+(?:the|this)\s+(?:\w+\s+)?(?:text|article|document)\b",
    re.IGNORECASE,
)

#: Words that do not distinguish questions. Words that do, such as how, why, when, where, who and not, are missing.
_STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
        a an the this that these those some any of in on at to for with from by as and or what which is are was were
        be been being do does did can could may might will would shall should have has had there it its they them
        their i me my you your we our one person people someone
        """,
    )
)


def clean(reply: str) -> str:
    """The first non-blank line of ``reply``, without numbering, labels, emphasis and surrounding quotes."""
    text = next((line.strip() for line in reply.splitlines() if line.strip()), "")
    previous = None
    while text != previous:
        previous = text
        text = text.strip("*_ \t")
        if label := _LABEL.match(text):
            text = text[label.end() :]
        if len(text) > 1 and _QUOTES.get(text[0]) == text[-1]:
            text = text[1:-1]
    return " ".join(text.split())


def rejection_reason(question: str, spec: GenerateSpec) -> str | None:
    """Why the text of the cleaned ``question`` is unusable; None if it is usable."""
    if not question:
        return EMPTY
    if not question.endswith(_QUESTION_MARKS) or not any(character.isalpha() for character in question):
        return NOT_A_QUESTION
    if _PASSAGE_MENTION.search(question):
        return MENTIONS_PASSAGE
    number = count_words(question)
    if number < spec.min_words:
        return TOO_SHORT
    return TOO_LONG if number > spec.max_words else None


def content_words(question: str) -> frozenset[str]:
    """The words of a question, without stop words and plural s. Near-duplicates have the same set.

    Shingles would not work: "What are the early symptoms of gout in men?" shares most of them with the same question
    about another disease, and few with "In men, what are early gout symptoms?".
    """
    found = words(re.sub(r"['’]s\b", "", normalise(question)), punctuation=False)
    return frozenset(map(_singular, [word for word in found if word not in _STOP_WORDS] or found))


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def deduplicate(
    existing: Iterable[str], questions: Sequence[GeneratedQuestion]
) -> tuple[list[GeneratedQuestion], Counter[str]]:
    """Drop questions that repeat an earlier one or one of ``existing``. Returns the rest, and counts by reason.

    Questions from passages precede few-shot ones, and train precedes val and test, as in prepare. So the result
    does not depend on which shard finishes first. A duplicate from another passage of the same split adds its passage
    to the first question.
    """
    existing_words = {normalise(text): content_words(text) for text in existing}
    seen_words = set(existing_words.values())
    unique: dict[str, GeneratedQuestion] = {}
    dropped: Counter[str] = Counter()
    for question in sorted(questions, key=lambda each: (not each.passage_ids, SPLITS.index(each.split))):
        text, content = normalise(question.text), content_words(question.text)
        first = unique.get(text)
        if first is not None:
            dropped[DUPLICATE] += 1
            if first.split == question.split and question.passage_ids:
                unique[text] = _merge(first, question)
        elif text in existing_words:
            dropped[DUPLICATE] += 1
        elif content in seen_words:
            dropped[NEAR_DUPLICATE] += 1
        else:
            unique[text] = question
            seen_words.add(content)
    return list(unique.values()), dropped


def _merge(first: GeneratedQuestion, second: GeneratedQuestion) -> GeneratedQuestion:
    return replace(
        first,
        passage_ids=tuple(dict.fromkeys(first.passage_ids + second.passage_ids)),
        origins=tuple(dict.fromkeys(first.origins + second.origins)),
    )
