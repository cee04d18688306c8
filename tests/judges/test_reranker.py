"""The judge `reranker` against a stub server: APIs, templates, faults, uncalibrated scores."""

import asyncio
import math
import random
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from judges.stub_reranker import MODEL, Api, StubReranker, overlap
from pyrite import tables
from pyrite.errors import PyriteError, UserError
from pyrite.judges import Judgment, Missing, Pair, open_judge
from pyrite.judges.calibration import final_table
from pyrite.judges.reranker import RerankerJudge
from pyrite.judges.session import Block, JudgingSession
from pyrite.llm.errors import TransientError
from pyrite.llm.scoring import parse_scores
from pyrite.progress import NullProgress
from pyrite.spec import RerankerJudgeSpec, ResourcesSpec, RunSpec, SampleSource

KEY = "sk-reranker-0123456789"
QUERY = "what are the symptoms of gout"
PASSAGES = {
    "all": "The symptoms of gout: what they are",
    "half": "gout has symptoms, of course",
    "none": "Tea is made from dried leaves",
}
PAIRS = [Pair("q", passage) for passage in PASSAGES]


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrite.llm.pool.backoff_delay", lambda *_: 0.0)


def open_for(stub: StubReranker, context: str = "", passages: dict[str, str] = PASSAGES, **judge: Any) -> RerankerJudge:
    spec = RunSpec(
        name="r",
        source=SampleSource(),
        judge=RerankerJudgeSpec(**{"model": MODEL, **judge}),
        resources=ResourcesSpec(judge_urls=[stub.url], judge_timeout=5.0),
    )
    query = {"query_id": "q", "text": QUERY, "topic": "", "type": "", "split": "train", "question_ids": []}
    defaults = {"title": "", "context": context, "split": "train", "parents": []}
    rows = [{"passage_id": id, "text": text, **defaults} for id, text in passages.items()]
    judge_ = open_judge(
        spec.main_judge,
        pa.Table.from_pylist([query], tables.QUERIES),
        pa.Table.from_pylist(rows, tables.PASSAGES),
        tables.QRELS.empty_table(),
    )
    assert isinstance(judge_, RerankerJudge)
    return judge_


def grade(judge: RerankerJudge, *pairs: Pair) -> list[Judgment | Missing]:
    async def run() -> list[Judgment | Missing]:
        async with judge:
            return await asyncio.gather(*(judge.grade(pair) for pair in pairs))

    return asyncio.run(run())


def judge_in_session(judge: RerankerJudge) -> pa.Table:
    queries = [("q", list(PASSAGES))]
    session = JudgingSession(judge, None, len(PASSAGES), 0.5, NullProgress())

    async def run() -> Block:
        async with judge:
            return await session.judge_all(queries)

    return session.results(asyncio.run(run()))


@pytest.mark.parametrize(
    ("apis", "used", "tokens"),
    [
        (("score",), "/score with text_2", 7),
        (("rerank",), "/rerank with documents", 7),
        (("cohere",), "/v2/rerank with documents", 7),
        (("texts",), "/rerank with texts", 0),
        (("score", "rerank"), "/rerank with documents", 7),
    ],
)
def test_each_api_is_detected_and_gives_the_scores(apis: tuple[Api, ...], used: str, tokens: int) -> None:
    with StubReranker(*apis) as stub:
        judge = open_for(stub, context="About gout")
        judgments = grade(judge, *PAIRS)
    texts = [f"About gout\n{text}" for text in PASSAGES.values()]
    assert [each.score for each in judgments if isinstance(each, Judgment)] == [overlap(QUERY, t) for t in texts]
    assert sorted(stub.pairs) == sorted((QUERY, text) for text in texts), "one request for each pair"
    assert judge.stats == {"scoring_api": used, "truncated": 0}
    assert {each.prompt_tokens for each in judgments if isinstance(each, Judgment)} == {tokens}


def test_uncalibrated_scores_are_grades_from_1_to_4() -> None:
    with StubReranker() as stub:
        table = judge_in_session(open_for(stub))
    assert table["score"].to_pylist() == pytest.approx([1, 0.5, 0])
    assert table["expected"].to_pylist() == pytest.approx([4, 2.5, 1])
    assert table["grade"].to_pylist() == [4, 3, 1]
    assert table["p1"].null_count == 3


@pytest.mark.parametrize("score", [-0.01, 7.3])
def test_other_scores_without_calibration_stop_the_run(score: float) -> None:
    with StubReranker() as stub:
        stub.score = lambda _query, document: score if "Tea" in document else 0.5
        judge, message = open_for(stub), rf"passage none has the score {score:g}.*Run `pyrite calibrate RUN_FILE"
        with pytest.raises(UserError, match=message):
            judge_in_session(judge)
        rows = [each.row("f") for each in grade(judge, *PAIRS) if isinstance(each, Judgment)]
        with pytest.raises(UserError, match=message):
            final_table(judge, pa.Table.from_pylist(rows, tables.JUDGMENTS))


def test_templates_are_sent_and_part_of_the_fingerprint() -> None:
    templates = {"query_template": "<q> {query}\n{}", "document_template": "<d> {document} </d>"}
    with StubReranker() as stub:
        judge = open_for(stub, **templates)
        grade(judge, Pair("q", "half"))
        assert stub.pairs == [(f"<q> {QUERY}\n{{}}", f"<d> {PASSAGES['half']} </d>")]
        assert stub.bodies[0]["query"].startswith("<q> ")
        assert len({judge.fingerprint, open_for(stub).fingerprint, open_for(stub, model="other").fingerprint}) == 3


@pytest.mark.parametrize("name", ["query_template", "document_template"])
def test_a_template_without_placeholder_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"the template must contain \{(query|document)\} once"):
        RerankerJudgeSpec(model=MODEL, **{name: "Rank this"})


def test_a_long_passage_is_cut_until_it_fits() -> None:
    passages = {"long": "gout " * 1000, "short": "gout"}
    with StubReranker() as stub:
        stub.window = 3000
        judge = open_for(stub, passages=passages)
        long, short = grade(judge, Pair("q", "long"), Pair("q", "short"))
    assert isinstance(long, Judgment)
    assert isinstance(short, Judgment)
    assert judge.truncated == 1
    assert 2000 < max(len(document) for _, document in stub.pairs) < 3000
    assert (long.attempts, short.attempts) == (3, 1)


def replies(change: Callable[[dict[str, Any]], Any]) -> Callable[[Any], tuple[int, Any]]:
    return lambda reply: (200, change(reply["results"][0]))


FAULTS: dict[str, tuple[Callable[[Any], tuple[int, Any]], str]] = {
    "nan": (replies(lambda row: {"results": [{**row, "relevance_score": math.nan}]}), "not a finite number"),
    "string": (replies(lambda row: {"results": [{**row, "relevance_score": "0.9"}]}), "not a finite number"),
    "null": (replies(lambda row: {"results": [{**row, "relevance_score": None}]}), "not a finite number"),
    "no score": (replies(lambda _: {"results": [{"index": 0}]}), "not a finite number"),
    "no index": (replies(lambda _: {"results": [{"relevance_score": 0.9}]}), "no index of its own"),
    "wrong index": (replies(lambda row: {"results": [{**row, "index": 1}]}), "no index of its own"),
    "too many": (replies(lambda row: {"results": [row, row]}), "2 scores for 1 documents"),
    "none": (replies(lambda _: {"results": []}), "0 scores for 1 documents"),
    "other object": (replies(lambda _: {"choices": []}), "no list of scores"),
    "error 400 with status 200": (replies(lambda _: {"error": {"code": 400, "message": "bad text"}}), "bad text"),
    "error 500 with status 200": (replies(lambda _: {"error": {"message": "out of memory"}}), "out of memory"),
    "rejected": (lambda _: (422, {"error": "text is not allowed"}), "text is not allowed"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_invalid_replies_make_the_pair_missing(fault: str) -> None:
    change, reason = FAULTS[fault]
    with StubReranker() as stub:
        stub.fault = lambda reply: change(reply) if stub.pairs[-1][1] == PASSAGES["half"] else (200, reply)
        results = grade(open_for(stub), *PAIRS)
    assert [type(each) for each in results] == [Judgment, Missing, Judgment]
    assert isinstance(results[1], Missing)
    assert reason in results[1].reason


def test_an_unusable_server_stops_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYRITE_JUDGE_API_KEY", KEY)
    with StubReranker("score") as stub:
        with pytest.raises(UserError, match=r"No scoring API for the model 'other'.*The model other does not exist"):
            grade(open_for(stub, model="other"), PAIRS[0])
        stub.apis = ()
        with pytest.raises(UserError, match=r"/rerank with texts: .*HTTP 404: Not Found.*serves a reranker"):
            grade(open_for(stub), PAIRS[0])
        stub.key = "another key"
        with pytest.raises(UserError, match="does not accept the API key") as raised:
            grade(open_for(stub), PAIRS[0])
        assert KEY not in str(raised.value)


def test_an_outage_is_told_from_a_request_that_fails() -> None:
    with StubReranker() as stub:
        stub.fault = lambda reply: (503, {"error": "down"}) if "Tea" in stub.pairs[-1][1] else (200, reply)
        judge = open_for(stub)
        judge._pool.outage_seconds = 0.3
        result = grade(judge, Pair("q", "none"))[0]
        assert isinstance(result, Missing), "the server responds to the test request, which is a scoring request"
        stub.fault = lambda reply: (200, reply)
    judge = open_for(stub)
    judge._pool.outage_seconds = 0.3
    with pytest.raises(PyriteError, match=r"No server in resources\.judge_urls responds"):
        grade(judge, PAIRS[0])


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=9), st.randoms(use_true_random=False))
def test_scores_return_to_their_documents(scores: list[float], order: random.Random) -> None:
    rows = [{"index": index, "relevance_score": score} for index, score in enumerate(scores)]
    order.shuffle(rows)
    assert parse_scores(len(scores), {"results": rows}, 0.0, 1).values == tuple(scores)
    with pytest.raises(TransientError, match="no index of its own"):
        parse_scores(len(scores) + 1, [*rows, rows[0]], 0.0, 1)
