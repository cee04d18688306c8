"""`pyrite probe` of a reranker: constant scores, a missing template and swapped texts are a no-go."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from judges.stub_reranker import MODEL, StubReranker
from pyrite.config import load
from pyrite.executors.step import open_run, run_step
from pyrite.judge_eval.probe import probe
from pyrite.plan import Step
from pyrite.progress import NullProgress
from pyrite.report.pages import probe_page
from pyrite.store import open_store

Score = Callable[[str, str], float]
_QUESTION = re.compile(r"<Query>: (?:What are the (symptoms) of|How is|What (causes)) (\w+)( treated)?\?")
_TEMPLATE = "judge.query_template='<Query>: {query}'"


def trained(query: str, document: str) -> float:
    """A reranker that has learned questions after "<Query>:", and gives any other text a random score."""
    if not re.match("<Query>:", query):
        return hashlib.sha256(f"{query}\0{document}".encode()).digest()[0] / 255
    question = _QUESTION.match(query)
    if not question or question[3] not in document:
        return 0.05
    sign = "signs" if question[1] else "begins" if question[2] else "Doctors"
    return 0.95 if sign in document else 0.5


def swapped(query: str, document: str) -> float:
    return trained(f"<Query>: {document}", query.removeprefix("<Query>: "))


@pytest.mark.parametrize(
    ("score", "settings", "failed"),
    [
        pytest.param(trained, [_TEMPLATE], set(), id="good"),
        pytest.param(trained, [], {"known above random"}, id="without the template"),
        pytest.param(swapped, [_TEMPLATE], {"known above random", "not all alike"}, id="swapped"),
        pytest.param(lambda *_: 0.7, [], {"known above random", "not all alike", "informative"}, id="constant"),
    ],
)
def test_a_reranker_must_distinguish_passages(
    run_file: Path, tmp_path: Path, score: Score, settings: list[str], failed: set[str]
) -> None:
    with StubReranker() as stub:
        stub.score = score
        judge = ["judge.kind=reranker", f"judge.model={MODEL}", f"resources.judge_urls=[{stub.url}]", *settings]
        run = open_run(load(run_file, judge), open_store(str(tmp_path / "store")))
        run_step(run, Step("prepare"), NullProgress())
        content: dict[str, Any] = probe(run, 30, 10, NullProgress())
    assert f"{MODEL}; scoring API /rerank with documents" in probe_page(content)
    found = {check["name"] for check in content["checks"] if not check["passed"]}
    assert found >= failed
    assert content["go"] == (not failed), content["verdict"]
