"""The judge `reranker` against a real vLLM server (CPU build) with a cross-encoder that the test trains.

The reference is the same model's output in transformers. vLLM is installed by `make real-vllm`.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pyrite import tables
from pyrite.errors import UserError
from pyrite.evaluation.agreement import auc
from pyrite.judges import Judgment, Missing, Pair
from pyrite.judges.reranker import RerankerJudge
from pyrite.llm import scoring
from pyrite.llm.pool import Pool
from pyrite.spec import JudgeServers, RerankerJudgeSpec
from real.vllm import serving

pytestmark = pytest.mark.real
KEY = "sk-real-secret-0123456789"
MODEL = "reranker"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    from real.tiny_reranker import train

    folder = tmp_path_factory.mktemp("reranker")
    return folder, *train(folder)


@pytest.fixture(scope="module")
def server(trained: tuple[Path, Any, Any]) -> Iterator[str]:
    options = ("--model", str(trained[0]), "--served-model-name", MODEL, "--max-model-len", "64", "--dtype", "float32")
    with serving(*options, "--api-key", KEY) as url:
        yield url


def grade(url: str, texts: list[tuple[str, str]], model: str = MODEL) -> tuple[list[Judgment | Missing], RerankerJudge]:
    """The judgments of (query, passage) texts, and the judge."""
    query = {"topic": "", "type": "", "split": "train", "question_ids": []}
    passage = {"title": "", "context": "", "split": "train", "parents": []}
    judge = RerankerJudge(
        Pool(JudgeServers([url], 8), model, KEY),
        RerankerJudgeSpec(model=model),
    )
    judge.load(
        pa.Table.from_pylist(
            [{"query_id": f"q{i}", "text": q, **query} for i, (q, _) in enumerate(texts)], tables.QUERIES
        ),
        pa.Table.from_pylist(
            [{"passage_id": f"p{i}", "text": p, **passage} for i, (_, p) in enumerate(texts)], tables.PASSAGES
        ),
    )

    async def run() -> list[Judgment | Missing]:
        async with judge:
            return await asyncio.gather(*(judge.grade(Pair(f"q{i}", f"p{i}")) for i in range(len(texts))))

    return asyncio.run(run()), judge


def score_of(judgments: list[Judgment | Missing]) -> list[float]:
    assert not [each for each in judgments if isinstance(each, Missing)]
    return [each.score for each in judgments if isinstance(each, Judgment) and each.score is not None]


@pytest.mark.parametrize("api", ["/rerank with documents", "/v1/rerank with documents", "/score with text_2"])
def test_scores_are_those_of_transformers(
    server: str, trained: tuple[Path, Any, Any], api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from real.tiny_reranker import pairs, scores

    monkeypatch.setattr(scoring, "APIS", tuple(each for each in scoring.APIS if str(each) == api))
    sample = pairs(60, 10**6)
    texts = [(question, passage) for question, passage, _ in sample]
    judgments, judge = grade(server, texts)
    assert judge.stats["scoring_api"] == api
    found = score_of(judgments)
    assert found == pytest.approx(scores(*trained[1:], texts), abs=2e-3)
    assert max(found) - min(found) > 0.5
    assert all(isinstance(each, Judgment) and each.prompt_tokens > 10 for each in judgments)


def test_swapped_texts_are_distinguished_worse(server: str) -> None:
    from real.tiny_reranker import pairs

    sample = pairs(120, 10**6)
    relevant, clusters = np.array([bool(label) for *_, label in sample]), list(range(len(sample)))
    right = score_of(grade(server, [(question, passage) for question, passage, _ in sample])[0])
    swapped = score_of(grade(server, [(passage, question) for question, passage, _ in sample])[0])
    assert auc(np.array(right), relevant, clusters).value > 0.85
    assert auc(np.array(swapped), relevant, clusters).value < auc(np.array(right), relevant, clusters).value - 0.1


def test_long_passages_are_cut_to_the_real_window(server: str) -> None:
    judgments, judge = grade(server, [("what ask1x2", "tell1x2 the " * 100), ("what ask1x2", "tell1x2")])
    assert len(score_of(judgments)) == 2
    assert judge.truncated == 1


def test_a_model_that_is_not_served_is_named(server: str) -> None:
    with pytest.raises(UserError, match=r"No scoring API for the model 'another'.*does not exist"):
        grade(server, [("what ask1x2", "tell1x2")], model="another")
