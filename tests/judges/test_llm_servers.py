"""The LLM judge with servers as people report them: a pair has the grade in its reply, or is missing with a reason."""

import asyncio
import gzip
import json
import math
from collections.abc import Callable
from typing import Any

import pytest

import stub_shapes as shapes
from llm_judging import PAIRS, TEXTS, grade_pairs, judge_of
from pyrite.errors import UserError
from pyrite.judges import Judgment, Missing, Pair
from pyrite.judges.llm import LlmJudge
from pyrite.judges.session import JudgingSession
from pyrite.llm.pool import NoServerAvailable
from pyrite.progress import NullProgress
from stub_judge import Raw, Stub, distribution, grade

VLLM, OPENAI, CONSTRAINED = ("label_ids", "choice", "logprobs", "tokenize"), ("logprobs",), ("choice", "logprobs")
BLANK = {"null", "blank"}
Results = list[Judgment | Missing]


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrite.judges.llm.backoff_delay", lambda *_: 0.0)
    monkeypatch.setattr("pyrite.llm.pool.backoff_delay", lambda *_: 0.0)


def assert_grades(results: Results, distributions: bool) -> None:
    """Every pair has the grade in its reply, and a distribution, or none."""
    for pair, result in zip(PAIRS, results, strict=False):
        texts = ("q", TEXTS[pair.passage_id])
        assert isinstance(result, Judgment), result
        assert result.grade == grade(texts)
        assert result.distribution == (pytest.approx(distribution(texts)) if distributions else None)


def only(shape: shapes.Shape, passage: str = "passage 3") -> shapes.Shape:
    return lambda reply, body, pair: shape(reply, body, pair) if pair and pair[1] == passage else reply


@pytest.mark.parametrize("invalid", shapes.INVALID)
@pytest.mark.parametrize(("supported", "mode"), [(VLLM, "choice"), (OPENAI, "text"), (CONSTRAINED, "choice")])
def test_invalid_logprobs_are_found_at_start_and_not_used(
    invalid: str, supported: tuple[str, ...], mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Stub(*supported) as stub:
        stub.shape = shapes.INVALID[invalid]
        judge = judge_of(TEXTS, stub)
        assert_grades(grade_pairs(judge, *PAIRS), distributions=False)
    assert judge.decoding_mode == mode
    assert "log probabilities are not used" in caplog.text


@pytest.mark.parametrize("invalid", shapes.INVALID)
@pytest.mark.parametrize("supported", [VLLM, OPENAI, CONSTRAINED])
def test_one_reply_with_invalid_logprobs_is_graded_by_text(
    invalid: str, supported: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    with Stub(*supported) as stub:
        stub.shape = only(shapes.INVALID[invalid])
        judge = judge_of(TEXTS, stub)
        results = grade_pairs(judge, *PAIRS)
    odd = results[3]
    assert isinstance(odd, Judgment)
    assert (odd.grade, odd.distribution) == (grade(("q", "passage 3")), None)
    assert_grades(results[:3], distributions=True)
    assert judge.stats["without_logprobs"] == 1
    assert "the log probabilities of a reply are not used (" in caplog.text


@pytest.mark.parametrize("supported", [VLLM, OPENAI, CONSTRAINED])
def test_a_likelier_rival_of_the_reply_makes_the_pair_missing(supported: tuple[str, ...]) -> None:
    with Stub(*supported) as stub:
        stub.shape = only(shapes.rival)
        results = grade_pairs(judge_of(TEXTS, stub), *PAIRS)
    text = grade(("q", "passage 3"))
    likelier = 2 if text == 1 else 1
    reason = f"the reply is '{text}', but by its log probabilities '{likelier}' is likelier"
    assert results[3] == Missing(PAIRS[3], reason, 3, "unparsable")
    assert_grades(results[:3], distributions=True)


def test_rivals_that_are_always_likelier_are_found_at_start(caplog: pytest.LogCaptureFixture) -> None:
    with Stub("logprobs") as stub:
        stub.shape = shapes.rival
        assert_grades(grade_pairs(judge_of(TEXTS, stub), *PAIRS), distributions=False)
    assert "log probabilities are not used: the reply is" in caplog.text


@pytest.mark.parametrize("share", [0.08, 0.9])
@pytest.mark.parametrize("supported", [VLLM, OPENAI, ("none",)])
@pytest.mark.parametrize("passage", ["passage 3", None])
def test_a_sentence_is_not_graded_by_its_first_token(
    share: float, supported: tuple[str, ...], passage: str | None
) -> None:
    with Stub(*supported) as stub:
        shape = shapes.sentence(share)
        stub.shape = only(shape, passage) if passage else shape
        results = grade_pairs(judge_of(TEXTS, stub), *PAIRS[:5])
    reason = f"none of the grades 1 to 4: 'I would rate this passage {grade(('q', 'passage 3'))}'"
    missing = [result for result in results if isinstance(result, Missing)]
    assert [result.reason for result in missing if result.pair == PAIRS[3]] == [f"the model's reply is {reason}"]
    assert len(missing) == (1 if passage else 5)


def test_an_unlikely_label_does_not_grade_an_off_label_token() -> None:
    def chatty(reply: Any, _body: dict[str, Any], _pair: Any) -> Any:
        tokens = reply["choices"][0].get("logprobs", {}).get("content", [])
        for entry in (entry for first in tokens for entry in first["top_logprobs"]):
            entry["logprob"] = math.log(0.95) if entry["token"] == "I" else entry["logprob"] + math.log(0.05)
        return reply

    with Stub() as stub:
        stub.reply_text = "I"
        stub.shape = only(chatty)
        results = grade_pairs(judge_of(TEXTS, stub), *PAIRS[:5])
    assert results[3] == Missing(PAIRS[3], "the model's reply is none of the grades 1 to 4: 'I'", 3, "unparsable")
    assert_grades(results[:3], distributions=True)


@pytest.mark.parametrize("form", shapes.GRADED)
@pytest.mark.parametrize("supported", [VLLM, OPENAI, CONSTRAINED, ("none",)])
def test_a_grade_in_an_unusual_form_is_read(form: str, supported: tuple[str, ...]) -> None:
    with Stub(*supported) as stub:
        stub.shape = shapes.GRADED[form]
        judge = judge_of(TEXTS, stub)
        results = grade_pairs(judge, *PAIRS)
    assert_grades(results, distributions=judge.decoding_mode != "text")
    assert (judge.decoding_mode == "text") == (supported == ("none",))


@pytest.mark.parametrize(
    ("form", "supported"),
    # In label_ids, an empty text may be a special token, and the probabilities of the labels give the grade.
    [(form, OPENAI) for form in shapes.WITHOUT_GRADE]
    + [(form, VLLM) for form in shapes.WITHOUT_GRADE if form not in BLANK],
)
def test_a_reply_without_a_grade_is_missing_with_the_reason(form: str, supported: tuple[str, ...]) -> None:
    shape, reason = shapes.WITHOUT_GRADE[form]
    with Stub(*supported) as stub:
        stub.shape = only(shape)
        results = grade_pairs(judge_of(TEXTS, stub), *PAIRS[:5])
    missing = results[3]
    assert isinstance(missing, Missing)
    assert (missing.attempts, missing.kind) == (3, "unparsable")
    assert missing.reason.endswith(reason)
    assert "\n" not in missing.reason
    assert len([result for result in results if isinstance(result, Judgment)]) == 4


def test_a_label_outside_the_alternatives_may_be_likely() -> None:
    with Stub("logprobs") as stub:
        stub.shape = only(shapes.few_alternatives)
        results = grade_pairs(judge_of(TEXTS, stub), *PAIRS[:5])
        assert isinstance(results[3], Judgment)
        assert (results[3].grade, results[3].distribution) == (grade(("q", "passage 3")), None)
        stub.shape = shapes.few_alternatives
        judge = judge_of(TEXTS, stub)
        assert_grades(grade_pairs(judge, *PAIRS), distributions=False)
    assert judge.decoding_mode == "text"


FILTER = {"error": {"message": "The prompt triggered the content\npolicy.", "code": "content_filter"}}


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        *((Raw(status, FILTER), f"HTTP {status}") for status in (400, 403, 422, 451)),
        (Raw(200, FILTER), "HTTP 200 with error 400"),
        (Raw(200, {"choices": [{"error": FILTER["error"], "message": None}]}), "HTTP 200 with error 400"),
        (
            Raw(200, {"error": {**FILTER["error"], "code": None, "type": "invalid_request_error"}}),
            "HTTP 200 with error 400",
        ),
    ],
)
def test_a_prompt_that_the_server_refuses_makes_one_pair_missing(fault: Raw, status: str) -> None:
    with Stub() as stub:
        stub.fault = lambda _number, pair: fault if pair[1] == "passage 3" else None
        results = grade_pairs(judge_of(TEXTS, stub), *PAIRS)
        assert stub.faults.total() == 1, "a retry would not help"
    reason = f"{stub.url} rejects the request ({status}: The prompt triggered the content policy.)"
    assert results.pop(3) == Missing(PAIRS[3], reason, 1, "rejected")
    assert all(isinstance(result, Judgment) for result in results)


def judge_all(judge: LlmJudge, pairs: list[Pair], max_missing: float) -> JudgingSession:
    session = JudgingSession(judge, None, len(pairs), max_missing, NullProgress())

    async def run() -> None:
        async with judge:
            await session.judge_all([(pair.query_id, [pair.passage_id]) for pair in pairs])

    asyncio.run(run())
    return session


def test_prompts_that_are_all_refused_stop_the_judge() -> None:
    with Stub() as stub:
        stub.fault = lambda _number, _pair: Raw(403, FILTER)
        with pytest.raises(UserError, match=r"rejected the first 6 pairs, .*HTTP 403: The .*query q, passage c\d"):
            judge_all(judge_of(TEXTS, stub), PAIRS, 0.1)
        stub.fault = lambda number, _pair: None if number % 5 == 0 else Raw(403, FILTER)
        session = judge_all(judge_of(TEXTS, stub), PAIRS, 0.9)
    assert len(session.missing) == 40


@pytest.mark.parametrize(
    ("fault", "is_busy"),
    [
        (Raw(200, {"error": {"message": "Rate limit reached", "code": 429}}), True),
        (Raw(200, {"error": {"message": "Rate limit reached", "code": "rate_limit_exceeded"}}), True),
        (Raw(200, {"error": "Rate limit reached", "status": "503"}), True),
        (Raw(200, {"error": {"message": "Rate limit reached"}}), False),
        (Raw(200, {"object": "error", "message": "Rate limit reached", "code": 429}), True),
        (
            Raw(
                200, {"choices": [{"error": {"message": "Rate limit reached", "code": 502}, "finish_reason": "error"}]}
            ),
            True,
        ),
        (Raw(200, b"<html><head><title>Rate limit\nreached</title></head><body>Go away</body></html>"), False),
        (Raw(503, b"<!DOCTYPE html><h1>Rate limit</h1> <p>reached</p>"), True),
        (Raw(500, {"detail": [{"msg": "Rate limit reached"}]}), False),
        (Raw(429, {"error": {"message": "Error", "metadata": {"raw": "Rate limit reached"}}}), True),
    ],
)
def test_errors_in_any_body_are_retried_then_quoted(fault: Raw, is_busy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrite.llm.server._MAX_OPEN_SECONDS", 0.05)
    monkeypatch.setattr("pyrite.llm.server._FIRST_OPEN_SECONDS", 0.05)
    with Stub() as stub:
        times = 8 if is_busy else 5  # six errors of another kind make the pair missing
        stub.fault = lambda _number, pair: fault if pair[1] == "passage 3" and stub.requested[pair] <= times else None
        results = grade_pairs(judge_of(TEXTS, stub), *PAIRS)
        assert stub.faults.total() == times
        assert_grades(results, distributions=True)
        stub.refuse = lambda _body: fault
        judge = judge_of(TEXTS, stub)
        judge._pool.outage_seconds = 0.1
        monkeypatch.setattr("pyrite.llm.capabilities.backoff_delay", lambda *_: -1.0)
        with pytest.raises(NoServerAvailable, match=r"gives a usable reply .*Rate limit reached.*Check its log"):
            grade_pairs(judge, PAIRS[0])


@pytest.mark.parametrize(
    "encode",
    [
        lambda content: Raw(200, b"\xef\xbb\xbf" + content),
        lambda content: Raw(200, b"\n " + content + b"\n\ndata: [DONE]\n"),
        lambda content: Raw(200, gzip.compress(content), {"Content-Encoding": "gzip"}),
    ],
)
def test_bytes_around_a_reply_and_compression_are_ignored(encode: Callable[[bytes], Raw]) -> None:
    reply = json.dumps({"choices": [{"message": {"content": "2"}}]}).encode()
    with Stub("none") as stub:
        stub.fault = lambda _number, _pair: encode(reply)
        (result,) = grade_pairs(judge_of(TEXTS, stub), PAIRS[0])
    assert isinstance(result, Judgment)
    assert result.grade == 2
