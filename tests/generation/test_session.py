"""The generation session against a stub server: saved replies, and the limit on failed requests."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyrite.errors import PyriteError, UserError, first_error
from pyrite.generation import prompt
from pyrite.generation.session import GenerationSession
from pyrite.llm.pool import Pool
from pyrite.progress import NullProgress
from pyrite.spec import GenerateSpec, JudgeServers
from pyrite.store import open_store
from stub_judge import MODEL, Raw
from stub_writer import Writer

PROMPT = prompt.load("general")
REQUESTS = [
    prompt.passage_request(PROMPT, GenerateSpec(), f"p{i}", 7, f"Gout hurts passage number {'x' * i}.")
    for i in range(10)
]


@pytest.fixture
def writer() -> Iterator[Writer]:
    with Writer() as server:
        yield server


def open_session(writer: Writer, folder: Path, run: str) -> GenerationSession:
    pool = Pool(JudgeServers([writer.url], 4, 5.0), MODEL)
    return GenerationSession(pool, open_store(str(folder)), "fingerprint", f"{run}/0", NullProgress())


def test_saved_replies_are_reused_by_another_run(writer: Writer, tmp_path: Path) -> None:
    first, second = open_session(writer, tmp_path, "one"), open_session(writer, tmp_path, "two")
    replies = asyncio.run(first.generate(REQUESTS[:6], "questions"))
    assert replies.keys() == {f"p{i}" for i in range(6)}
    assert first.stats["requested"] == 6
    assert first.stats["cached"] == 0
    assert first.stats["prompt_tokens"] > 0
    assert asyncio.run(second.generate(REQUESTS, "questions")).items() >= replies.items()
    assert second.stats["requested"] == 10
    assert second.stats["cached"] == 6
    assert second.stats["prompt_tokens"] > first.stats["prompt_tokens"]
    assert writer.written.total() == len(writer.written) == 10


def test_failed_requests_are_omitted_up_to_a_limit(
    writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyrite.llm.pool.backoff_delay", lambda *_: 0.0)
    monkeypatch.setattr("pyrite.llm.pool._MAX_ATTEMPTS", 1)
    monkeypatch.setattr("pyrite.llm.server._FAILURE_THRESHOLD", 100)
    writer.statuses = lambda number: 500 if number <= 5 else 200
    replies = asyncio.run(open_session(writer, tmp_path, "one").generate(REQUESTS, "questions"))
    assert len(replies) == 5
    pending = [*REQUESTS, prompt.passage_request(PROMPT, GenerateSpec(), "p", 8, "Gout.")]
    writer.statuses = lambda _number: 500
    with pytest.raises(BaseExceptionGroup) as raised:
        asyncio.run(open_session(writer, tmp_path, "two").generate(pending, "questions"))
    error = first_error(raised.value)
    assert isinstance(error, PyriteError)
    assert str(error).startswith("6 of 6 requests for a question failed; most frequent error (6 times): HTTP 500")


def test_parameters_are_negotiated_once(writer: Writer, tmp_path: Path) -> None:
    def refuse(body: dict[str, Any]) -> Raw | None:
        refused = [name for name in ("max_tokens", "temperature", "seed") if name in body]
        return Raw(400, {"error": {"message": f"Unsupported parameter: '{refused[0]}'"}}) if refused else None

    replies = asyncio.run(open_session(writer, tmp_path, "one").generate(REQUESTS, "questions"))
    writer.bodies.clear()
    writer.refuse = refuse
    session = open_session(writer, tmp_path / "other", "one")
    assert asyncio.run(session.generate(REQUESTS, "questions")).keys() == replies.keys()
    assert len(writer.bodies) == 13, "three rejected requests, then one for each question"
    assert writer.bodies[-1].keys() == {"model", "messages", "max_completion_tokens"}


def test_a_refused_prompt_has_no_question(writer: Writer, tmp_path: Path) -> None:
    filtered = Raw(400, {"error": {"message": "content policy", "code": "content_filter"}})
    refused = [REQUESTS[0].body["messages"], REQUESTS[4].body["messages"]]
    writer.refuse = lambda body: filtered if body["messages"] in refused else None
    replies = asyncio.run(open_session(writer, tmp_path, "one").generate(REQUESTS, "questions"))
    assert replies.keys() == {f"p{i}" for i in range(10) if i not in (0, 4)}
    writer.refuse = lambda _body: filtered
    with pytest.raises(BaseExceptionGroup) as raised:
        asyncio.run(open_session(writer, tmp_path / "other", "two").generate(REQUESTS, "questions"))
    error = first_error(raised.value)
    assert isinstance(error, UserError)
    assert "rejects the request (HTTP 400: content policy)" in str(error)


def test_a_reply_without_text_is_a_failed_request(writer: Writer, tmp_path: Path) -> None:
    blank = {"choices": [{"message": {"content": None, "refusal": "I can't help."}}]}
    writer.shape = lambda reply, _body, _pair: reply if writer.written.total() > 5 else blank
    session = open_session(writer, tmp_path, "one")
    assert len(asyncio.run(session.generate(REQUESTS, "questions"))) == 5
    writer.shape = lambda _reply, _body, _pair: blank
    with pytest.raises(BaseExceptionGroup) as raised:
        asyncio.run(open_session(writer, tmp_path / "other", "two").generate(REQUESTS, "questions"))
    assert "the model refused to reply: 'I can't help.'" in str(first_error(raised.value))
