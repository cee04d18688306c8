"""The cost of LLM requests in tokens, hours and dollars, on the machines in costs.yaml."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from pyrite.errors import UserError
from pyrite.spec import JudgeSpec

#: Approximate characters of English text per token.
CHARACTERS_PER_TOKEN = 4.2

#: Tokens of rubric and query, before the passage. They are computed once per query, then are in the prefix cache.
#: Measured with the medical prompt: 571 prompt tokens per pair, 225 of them computed (docs/results.md, Judging).
_PREFIX_TOKENS = 350

#: Tokens computed for every pair besides the passage: the end of the prompt, and the prefix's last, incomplete block.
_TAIL_TOKENS = 24

#: Tokens of a built-in generation prompt without its passage or examples, rounded.
_GENERATION_PROMPT_TOKENS = 150

#: Tokens of a question: about 15 words.
_QUESTION_TOKENS = 20

DEFAULT_MACHINE = "g5.12xlarge"


@dataclass(frozen=True)
class Machine:
    """A machine type that serves an LLM.

    Attributes:
        what: its GPUs and the model it serves.
        servers: number of servers on one machine, each with its own URL.
        computed_tokens_per_second: prompt tokens that are not in the cache.
        written_tokens_per_second: generated tokens.
        gpu_teraflops: what embedding and training reach on one of its GPUs.
        cpu_dollars_per_hour: price of the node for steps without a GPU.
    """

    name: str
    what: str
    servers: int
    dollars_per_hour: float
    computed_tokens_per_second: float
    written_tokens_per_second: float
    gpu_teraflops: float
    cpu_dollars_per_hour: float
    price_source: str
    speed_source: str


@dataclass(frozen=True)
class JudgeCost:
    """The cost of judging. ``computed_tokens``: prompt tokens not in the cache. ``measured``: by a probe.

    ``requests``: number of requests per pair.
    """

    pairs: int
    prompt_tokens: int
    computed_tokens: int
    hours: float
    dollars: float
    measured: bool
    requests: int = 1


@dataclass(frozen=True)
class GenerateCost:
    """The cost of generating questions. ``checks``: number of requests with which the judge checks them."""

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
    """Maximum number of judged pairs per query. ``patience`` and cached judgments reduce it.

    ``known``: mean number of known relevant passages, which are judged at any rank.
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
    requests: int = 1,
) -> JudgeCost:
    """The cost of judging ``queries * per_query`` pairs in each of ``iterations``.

    Args:
        passage_characters: mean length of a passage.
        machines: number of machines of type ``on`` that serve the judge.
        probe: the content of probe.json, or None. Its speed is that of all its ``servers`` (default 1) together; each
            is as fast as one of the ``on.servers`` of a machine. Its tokens are those of all requests of a pair.
        requests: number of requests per pair. Each after the first finds all but its end in the prefix cache.
    """
    pairs = round(queries * per_query * iterations)
    if probe:
        prompt = pairs * probe["prompt_tokens_per_pair"]
        computed = prompt - pairs * probe["cached_tokens_per_pair"]
        per_server = probe["pairs_per_second"] / probe.get("servers", 1)
        hours = pairs / (per_server * on.servers * machines) / 3600
    else:
        passage = passage_characters / CHARACTERS_PER_TOKEN
        prompt = pairs * requests * (_PREFIX_TOKENS + passage + _TAIL_TOKENS)
        computed = pairs * (passage + requests * _TAIL_TOKENS) + queries * iterations * _PREFIX_TOKENS
        hours = computed / (on.computed_tokens_per_second * machines) / 3600
    dollars = hours * machines * on.dollars_per_hour
    return JudgeCost(pairs, round(prompt), round(computed), hours, dollars, probe is not None, requests)


def generate_cost(
    from_passages: int,
    few_shot: int,
    shots: int,
    passage_characters: float,
    on: Machine,
    machines: int,
    checking: JudgeCost | None,
) -> GenerateCost:
    """The cost of generating questions.

    Args:
        from_passages: number of questions generated from a passage.
        few_shot: number of questions generated from ``shots`` examples.
        checking: the cost of checking that passages answer their questions; None: no check.
    """
    questions, passage = from_passages + few_shot, passage_characters / CHARACTERS_PER_TOKEN
    examples = few_shot * (_GENERATION_PROMPT_TOKENS + shots * _QUESTION_TOKENS)
    prompt = from_passages * (_GENERATION_PROMPT_TOKENS + passage) + examples
    computed = from_passages * (passage + _TAIL_TOKENS) + examples
    generated = questions * _QUESTION_TOKENS
    seconds = computed / on.computed_tokens_per_second + generated / on.written_tokens_per_second
    hours = seconds / machines / 3600 + (checking.hours if checking else 0)
    return GenerateCost(
        questions,
        checking.pairs * checking.requests if checking else 0,
        round(prompt) + (checking.prompt_tokens if checking else 0),
        generated,
        hours,
        hours * machines * on.dollars_per_hour,
    )
