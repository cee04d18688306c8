"""What asking a language model will take: tokens, hours and dollars, by a small table of prices (costs.yaml)."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from pyrite.errors import UserError
from pyrite.spec import JudgeSpec

#: Characters of English in a token of today's tokenizers, about.
_CHARACTERS_PER_TOKEN = 4.2

#: Tokens of rubric, question and frame before the passage: computed once a query where the prefix cache holds them.
#: Measured with the medical prompt: 571 prompt tokens a pair, of which 225 are computed (docs/results.md, Judging).
_PREFIX_TOKENS = 350

#: Tokens computed again with every pair: what follows the passage, and the last cache block of the prefix.
_TAIL_TOKENS = 24

#: Tokens of what is said around a passage, or around examples, to have a question made: the packaged prompts, rounded.
_ASKING_TOKENS = 150

#: Tokens of a question, read or written: about 15 words.
_QUESTION_TOKENS = 20

#: The machine whose price is shown where none is named.
USUAL_MACHINE = "g5.12xlarge"


@dataclass(frozen=True)
class Machine:
    """A machine that serves a judge: dollars an hour, and tokens a second that it computes of prompts and writes.

    ``servers``: how many servers, each with an address of its own, it runs.
    """

    name: str
    what: str
    servers: int
    dollars_per_hour: float
    computed_tokens_per_second: float
    written_tokens_per_second: float
    price_source: str
    speed_source: str


@dataclass(frozen=True)
class JudgeCost:
    """What judging takes. ``computed_tokens``: prompt tokens that are not in the cache; ``measured``: by a probe."""

    pairs: int
    prompt_tokens: int
    computed_tokens: int
    hours: float
    dollars: float
    measured: bool


@dataclass(frozen=True)
class GenerateCost:
    """What making questions takes. ``checks``: pairs of question and own passage that the judge is asked about."""

    questions: int
    checks: int
    prompt_tokens: int
    written_tokens: int
    hours: float
    dollars: float


def machine(name: str) -> Machine:
    """The machine of that name in costs.yaml. Raises UserError where there is none."""
    table = yaml.safe_load(resources.files("pyrite").joinpath("costs.yaml").read_text(encoding="utf-8"))
    if name not in table:
        raise UserError(f"--machine {name}: there is no such machine in Pyrite's table; it has {', '.join(table)}.")
    return Machine(name=name, **table[name])


def pairs_per_query(judge: JudgeSpec, top_k: int, known: float) -> float:
    """Most pairs of one query that are sent: patience and judgments already kept can only lower it.

    ``known``: passages that the data set knows to be relevant to it, which are judged whatever their rank.
    """
    window = min(top_k, judge.rank_window or top_k)
    return min(top_k, window + known)


def judge_cost(
    queries: float,
    per_query: float,
    iterations: int,
    passage_characters: float,
    on: Machine,
    machines: int,
    probe: Mapping[str, Any] | None,
) -> JudgeCost:
    """The cost of judging ``queries * per_query`` pairs in each of ``iterations``.

    Args:
        passage_characters: mean length of a passage.
        machines: how many of ``on`` serve the judge.
        probe: what `pyrite probe` measured (pairs_per_second of its servers together, prompt_tokens_per_pair,
            cached_tokens_per_pair), or None. Each of its servers counts as one of the ``on.servers`` that a machine
            runs; where it does not say how many they were, as one.
    """
    pairs = round(queries * per_query * iterations)
    if probe:
        prompt = pairs * probe["prompt_tokens_per_pair"]
        computed = prompt - pairs * probe["cached_tokens_per_pair"]
        of_one = probe["pairs_per_second"] / probe.get("servers", 1)
        hours = pairs / (of_one * on.servers * machines) / 3600
    else:
        passage = passage_characters / _CHARACTERS_PER_TOKEN
        prompt = pairs * (_PREFIX_TOKENS + passage + _TAIL_TOKENS)
        computed = pairs * (passage + _TAIL_TOKENS) + queries * iterations * _PREFIX_TOKENS
        hours = computed / (on.computed_tokens_per_second * machines) / 3600
    dollars = hours * machines * on.dollars_per_hour
    return JudgeCost(pairs, round(prompt), round(computed), hours, dollars, measured=probe is not None)


def generate_cost(
    from_passages: int,
    after_examples: int,
    shots: int,
    passage_characters: float,
    on: Machine,
    machines: int,
    checking: JudgeCost | None,
) -> GenerateCost:
    """The cost of asking for questions.

    Args:
        from_passages: how many are asked of a passage each.
        after_examples: how many are asked after ``shots`` examples.
        checking: what it takes to have the judge say whether the passages answer them; None: nobody is asked.
    """
    questions, passage = from_passages + after_examples, passage_characters / _CHARACTERS_PER_TOKEN
    examples = after_examples * (_ASKING_TOKENS + shots * _QUESTION_TOKENS)
    prompt = from_passages * (_ASKING_TOKENS + passage) + examples
    computed = from_passages * (passage + _TAIL_TOKENS) + examples
    written = questions * _QUESTION_TOKENS
    seconds = computed / on.computed_tokens_per_second + written / on.written_tokens_per_second
    hours = seconds / machines / 3600 + (checking.hours if checking else 0)
    return GenerateCost(
        questions,
        checking.pairs if checking else 0,
        round(prompt) + (checking.prompt_tokens if checking else 0),
        written,
        hours,
        hours * machines * on.dollars_per_hour,
    )
