"""Of questions that are the same, one. The order in which shards finish decides nothing."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from pyrite.generation.questions import GeneratedQuestion
from pyrite.identity import normalise
from pyrite.splitting import SPLITS

SAME = "the same as another question"
NEARLY_SAME = "nearly the same as another question"

#: Words that a question can lose without becoming another one. Not among them: how, why, when, where, who, not.
_FILLER = frozenset(
    re.findall(
        r"\w+",
        """
        a an the this that these those some any of in on at to for with from by as and or what which is are was were
        be been being do does did can could may might will would shall should have has had there it its they them
        their i me my you your we our one person people someone
        """,
    )
)


def gist(question: str) -> frozenset[str]:
    """What two questions have in common that are nearly the same: their words, but for fillers and a plural's s.

    Shingles of several words would not do: "What are the early symptoms of gout in men?" shares most of its shingles
    with the same question on another disease, and little with "In men, what are early gout symptoms?".
    """
    words = re.findall(r"\w+", re.sub(r"['’]s\b", "", normalise(question)))
    telling = [word for word in words if word not in _FILLER] or words
    return frozenset(_singular(word) for word in telling)


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def deduplicate(
    existing: Iterable[str], made: Sequence[GeneratedQuestion]
) -> tuple[list[GeneratedQuestion], Counter[str]]:
    """The questions of ``made`` that repeat neither each other nor those of ``existing``, and why others were dropped.

    First come, first kept: those made from a passage before few-shot ones, and train before val before test, as
    prepare does with a data set's own questions. The same question made from another passage of the same split adds
    that passage to the one that is kept.
    """
    order = sorted(made, key=lambda question: (not question.passage_ids, SPLITS.index(question.split)))
    known = {normalise(text): gist(text) for text in existing}
    gists = set(known.values())
    kept: dict[str, GeneratedQuestion] = {}
    dropped: Counter[str] = Counter()
    for question in order:
        same, key = normalise(question.text), gist(question.text)
        first = kept.get(same)
        if first is not None:
            dropped[SAME] += 1
            if first.split == question.split and question.passage_ids:
                kept[same] = _joined(first, question)
        elif same in known:
            dropped[SAME] += 1
        elif key in gists:
            dropped[NEARLY_SAME] += 1
        else:
            kept[same] = question
            gists.add(key)
    return list(kept.values()), dropped


def _joined(first: GeneratedQuestion, second: GeneratedQuestion) -> GeneratedQuestion:
    return replace(
        first,
        passage_ids=tuple(dict.fromkeys(first.passage_ids + second.passage_ids)),
        origins=tuple(dict.fromkeys(first.origins + second.origins)),
    )
