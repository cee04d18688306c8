"""The cost of LLM requests: tokens, hours and dollars, from a small table of machines (costs.yaml)."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from pyrite.errors import UserError
from pyrite.spec import JudgeSpec

#: Characters of English text per token, approximately.
_CHARACTERS_PER_TOKEN = 4.2

#: Tokens of rubric and query before the passage: computed once per query, then found in the prefix cache.
#: Measured with the medical prompt: 571 prompt tokens per pair, 225 of them computed (docs/results.md, Judging).
_PREFIX_TOKENS = 350

#: Tokens computed with every pair in addition to the passage: the prompt's end, and the prefix's last cache block.
_TAIL_TOKENS = 24

#: Tokens of a generation prompt without its passage or examples: the packaged prompts, rounded.
_GENERATION_PROMPT_TOKENS = 150

#: Tokens of a question: about 15 words.
_QUESTION_TOKENS = 20

#: The default machine.
USUAL_MACHINE = "g5.12xlarge"


@dataclass(frozen=True)
class Machine:
    """A machine that serves an LLM: its price, and its throughput of prompt tokens and generated tokens.

    ``servers``: number of servers that it runs, each with its own URL.
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
    """The cost of judging. ``computed_tokens``: prompt tokens not in the cache; ``measured``: by a probe."""

    pairs: int
    prompt_tokens: int
    computed_tokens: int
    hours: float
    dollars: float
    measured: bool


@dataclass(frozen=True)
class GenerateCost:
    """The cost of generating questions. ``checks``: questions that the judge checks against their own passages."""

    questions: int
    checks: int
    prompt_tokens: int
    written_tokens: int
    hours: float
    dollars: float


def machine(name: str) -> Machine:
    """The machine of that name in costs.yaml. Raises UserError if there is none."""
    table = yaml.safe_load(resources.files("pyrite").joinpath("costs.yaml").read_text(encoding="utf-8"))
    if name not in table:
        raise UserError(f"--machine {name}: unknown machine. Use one of {', '.join(table)}.")
    return Machine(name=name, **table[name])


def pairs_per_query(judge: JudgeSpec, range_max: int, known: float) -> float:
    """Maximum number of judged pairs per query. Patience and cached judgments can only reduce it.

    ``known``: mean number of passages known to be relevant, which are judged whatever their rank.
    """
    return min(range_max, (judge.rank_window or range_max) + known)


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
        machines: number of machines like ``on`` that serve the judge.
        probe: the content of probe.json (pairs_per_second of its servers together, prompt_tokens_per_pair,
            cached_tokens_per_pair), or None. Each of its ``servers`` (default 1) counts as one of the ``on.servers``
            that a machine runs.
    """
    pairs = round(queries * per_query * iterations)
    if probe:
        prompt = pairs * probe["prompt_tokens_per_pair"]
        computed = prompt - pairs * probe["cached_tokens_per_pair"]
        per_server = probe["pairs_per_second"] / probe.get("servers", 1)
        hours = pairs / (per_server * on.servers * machines) / 3600
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
    """The cost of generating questions.

    Args:
        from_passages: number of questions generated from a passage.
        after_examples: number of questions generated from ``shots`` examples.
        checking: the cost of checking that passages answer their questions; None: no check.
    """
    questions, passage = from_passages + after_examples, passage_characters / _CHARACTERS_PER_TOKEN
    examples = after_examples * (_GENERATION_PROMPT_TOKENS + shots * _QUESTION_TOKENS)
    prompt = from_passages * (_GENERATION_PROMPT_TOKENS + passage) + examples
    computed = from_passages * (passage + _TAIL_TOKENS) + examples
    generated = questions * _QUESTION_TOKENS
    seconds = computed / on.computed_tokens_per_second + generated / on.written_tokens_per_second
    hours = seconds / machines / 3600 + (checking.hours if checking else 0)
    return GenerateCost(
        questions,
        checking.pairs if checking else 0,
        round(prompt) + (checking.prompt_tokens if checking else 0),
        generated,
        hours,
        hours * machines * on.dollars_per_hour,
    )
