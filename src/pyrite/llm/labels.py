"""Reads which of a few labels a reply gives, without guessing. Pure.

Labels are digits, or lower-case words such as yes and no, which a reply may spell in any case. The label is the reply's
text. The log probabilities only add the probabilities of the labels, and only if they agree with the text. One decoding
mode differs: in ``label_ids``, a single token that is no label has the likeliest label.
"""

import math
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from pyrite.llm.completion import BLANKS, Completion
from pyrite.llm.error_bodies import quote

DecodingMode = Literal["label_ids", "choice", "logprobs", "text"]

#: Best first. label_ids: one unconstrained token, with the log probabilities of the labels (``logprob_token_ids``).
#: choice: constrained to the labels (``structured_outputs``), with or without log probabilities.
#: logprobs: one unconstrained token, with the log probabilities of the most likely tokens (``top_logprobs``).
#: text: a few words, from which the label is parsed.
DECODING_MODES: tuple[DecodingMode, ...] = get_args(DecodingMode)

#: The minimum probability of all labels together, below which their shares are not used. At one half, the model is more
#: likely to reply with a label than with anything else. In label_ids, tokens such as "Grade" precede the label, so that
#: less is enough; but below a tenth, the labels are rivals of a sentence or of a reasoning tag, and no reply.
_MIN_SHARE = 0.5
_MIN_SHARE_LABEL_IDS = 0.1

#: The maximum probability of labels that are not among the alternatives, as a share of the labels that are. On the
#: scale 1 to 4 it changes the expected grade by 0.15 at most.
_MAX_UNSEEN = 0.05

#: A label within this share of the likeliest one is as likely: servers round.
_TIE = 0.01

#: Why valid log probabilities may give no distribution over the labels (``label_distribution``).
NO_DISTRIBUTION = "the labels have a small share of the probability, or a token is not among the alternatives"


def spellings(labels: Sequence[str]) -> list[tuple[str, ...]]:
    """The spellings that a model may use for ``labels``, each with all labels in their order. Digits have only one."""
    if all(label.isdigit() for label in labels):
        return [tuple(labels)]
    words = [tuple(labels), tuple(label.capitalize() for label in labels)]
    return words + [tuple(f" {word}" for word in spelling) for spelling in words]


def choices(labels: Sequence[str]) -> list[str]:
    """The texts to which constrained decoding limits a reply: the spellings without a blank."""
    return [word for spelling in spellings(labels) for word in spelling if not word.startswith(" ")]


class Reading(NamedTuple):
    """A label, and the probabilities of all labels, in their order, if they are known."""

    label: str
    distribution: tuple[float, ...] | None


def read_label(reply: Completion, labels: Sequence[str], mode: DecodingMode) -> Reading | str:
    """The label that ``reply`` gives in that ``mode``, or the reason that it gives none.

    If labels are equally likely, the label in the text wins, then the first. A label is likelier than the one in the
    text if its spellings are likelier together than the returned token, which may be the likeliest token: it wins.
    """
    if reply.problem:
        return reply.problem
    distribution = label_distribution(reply, labels, mode)
    label = parse_label(reply.text, labels)
    if label is None:
        if mode == "label_ids" and distribution and _is_one_token(reply):
            return Reading(labels[distribution.index(max(distribution))], distribution)
        if not reply.text.strip(BLANKS):
            return "the model's reply is empty"
        names = f"grades {labels[0]} to {labels[-1]}" if labels[0].isdigit() else f"labels {', '.join(labels)}"
        return f"the model's reply is none of the {names}: {quote(reply.text)}"
    if distribution and distribution[labels.index(label)] < (1 - _TIE) * max(distribution):
        likeliest = labels[distribution.index(max(distribution))]
        if len(spellings(labels)) > 1 and _is_likeliest_token(reply):
            return Reading(likeliest, distribution)
        return f"the reply is {quote(reply.text)}, but by its log probabilities {quote(likeliest)} is likelier"
    return Reading(label, distribution)


def parse_label(text: str, labels: Sequence[str]) -> str | None:
    """The label that ``text`` consists of; None if it is anything else.

    Upper case, white space around it, the word "Grade" and a full stop are allowed. So are further lines, which follow
    if a server ignores the maximum number of tokens, unless one is another label.
    """
    pattern = re.compile(rf"(?:grade\s*[:=]?\s*)?({'|'.join(map(re.escape, labels))})\s*\.?", re.IGNORECASE)
    lines = [line.strip(BLANKS) for line in text.strip(BLANKS).splitlines()]
    found = [match[1].casefold() for line in lines if (match := pattern.fullmatch(line))]
    return found[0] if lines and pattern.fullmatch(lines[0]) and len(set(found)) == 1 else None


def label_distribution(reply: Completion, labels: Sequence[str], mode: DecodingMode) -> tuple[float, ...] | None:
    """The probabilities of the labels, normalised over them; None if the log probabilities do not show them.

    They do not if the returned token is not among the alternatives, if the labels have too small a share, or if a label
    that is not among the alternatives may be likely.
    """
    if not reply.logprobs or (mode != "label_ids" and reply.token not in reply.logprobs):
        return None
    chances = dict.fromkeys(labels, 0.0)
    unseen = set(labels)
    for token, logprob in reply.logprobs.items():
        label = token.strip(BLANKS).casefold()
        if label in chances:
            chances[label] += math.exp(logprob)
            unseen.discard(label)
    total = math.fsum(chances.values())
    if total < (_MIN_SHARE_LABEL_IDS if mode == "label_ids" else _MIN_SHARE):
        return None
    if unseen:
        rest = max(0.0, 1 - math.fsum(map(math.exp, reply.logprobs.values())))
        least = math.exp(min(reply.logprobs.values()))  # the alternatives are the likeliest tokens
        if mode == "label_ids" or min(rest, len(unseen) * least) > _MAX_UNSEEN * total:
            return None
    return tuple(chances[label] / total for label in labels)


def _is_one_token(reply: Completion) -> bool:
    """Whether the reply is not longer than its first token. Special tokens are not part of the text."""
    return reply.text.strip(BLANKS) in ("", reply.token.strip(BLANKS))


def _is_likeliest_token(reply: Completion) -> bool:
    """Whether no alternative is likelier than the returned token."""
    logprobs = reply.logprobs or {}
    return logprobs.get(reply.token, -math.inf) >= max(logprobs.values(), default=0.0)
