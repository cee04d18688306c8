"""What the client finds out of servers that can do more or less, and the decoding_mode it takes."""

import asyncio
from contextlib import ExitStack

import pytest

from pyrite.errors import PyriteError, UserError
from pyrite.llm.capabilities import Capabilities, detect_capabilities
from pyrite.llm.pool import Pool
from stub_judge import LABELS, MODEL, Stub

MESSAGES = [{"role": "user", "content": "<query>\nWhat?\n</query><passage>\nThat.\n</passage> Which of 1, 2, 3, 4?"}]
ALL = ("label_ids", "choice", "logprobs", "tokenize")


def found(*stubs: Stub, patience: float = 5.0) -> Capabilities:
    async def run() -> Capabilities:
        async with Pool([stub.url for stub in stubs], MODEL, None, 4, 2.0, patience) as pool:
            return await detect_capabilities(pool, MESSAGES, LABELS)

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("capabilities", "decoding_mode", "logprobs", "told"),
    [
        (ALL, "label_ids", True, ""),
        (("label_ids", "choice", "logprobs"), "choice", True, ""),  # no ids without /tokenize
        (("choice", "logprobs", "tokenize"), "choice", True, ""),
        (("logprobs", "tokenize"), "logprobs", True, "not held to the labels; replies"),
        (("choice",), "choice", False, "held to the labels, but without logprobs: there are no expected grades"),
        (("none",), "text", False, "neither structured outputs nor logprobs"),
    ],
)
def test_the_best_way_that_a_server_has_is_taken_and_a_lesser_one_is_said(
    capabilities: tuple[str, ...], decoding_mode: str, logprobs: bool, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Stub(*capabilities, window=2048) as stub:
        result = found(stub)
    assert (result.decoding_mode, result.logprobs) == (decoding_mode, logprobs)
    assert (result.window, result.tokenizes) == (2048, "tokenize" in capabilities)
    assert result.label_ids == (tuple(map(ord, LABELS)) if decoding_mode == "label_ids" else ())
    assert result.sample_tokens > 0
    assert told in caplog.text
    assert bool(told) == bool(caplog.text)
    assert stub.paths["/v1/chat/completions"] == (4 if "tokenize" in capabilities else 3)


@pytest.mark.parametrize(("capabilities", "decoding_mode"), [(("choice",), "choice"), (("none",), "text")])
@pytest.mark.parametrize(("status", "requests"), [(400, 4), (500, 8)])
def test_a_server_that_refuses_logprobs_is_not_asked_for_them(
    capabilities: tuple[str, ...], decoding_mode: str, status: int, requests: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bug of 500: a server that answers so to what it cannot do is taken for one that is down."""
    monkeypatch.setattr("pyrite.llm.capabilities.pause", lambda *_: 0.0)
    with Stub(*capabilities) as stub:
        stub.refuses_logprobs = status
        result = found(stub)
        assert stub.paths["/v1/chat/completions"] == requests
    assert (result.decoding_mode, result.logprobs) == (decoding_mode, False)
    assert "logprobs" not in result.request(LABELS)
    assert ("structured_outputs" in result.request(LABELS)) == (decoding_mode == "choice")


@pytest.mark.parametrize(("address", "status"), [("/v1/models", 500), ("/v1/models", 403), ("/tokenize", 403)])
def test_what_a_server_does_not_let_be_asked_beside_the_chat_is_done_without(address: str, status: int) -> None:
    with Stub() as stub:
        stub.statuses_at[address] = status
        result = found(stub)
    assert result.decoding_mode == ("choice" if address == "/tokenize" else "label_ids")
    assert result.window == (None if address == "/v1/models" else 4096)


def test_a_server_that_tokenizes_plain_text_alone_is_not_asked_to_count_messages() -> None:
    with Stub(*ALL, "tokenize text alone") as stub:
        result = found(stub)
    assert (result.decoding_mode, result.tokenizes) == ("label_ids", False)


def test_a_window_that_a_person_has_set_counts_where_servers_tell_none_or_a_larger_one() -> None:
    with Stub(window=None) as untold, Stub(window=4096) as large:
        for stub in (untold, large):
            pool = Pool([stub.url], MODEL, None, 4, 2.0, 5.0, window=1000)

            async def run(pool: Pool = pool) -> Capabilities:
                async with pool:
                    return await detect_capabilities(pool, MESSAGES, LABELS)

            assert asyncio.run(run()).window == 1000


@pytest.mark.parametrize(
    ("several", "decoding_mode", "logprobs"),
    [
        ([ALL, ("choice", "logprobs", "tokenize")], "choice", True),
        ([ALL, ("choice",)], "choice", False),
        ([ALL, ("logprobs",)], "logprobs", True),
        ([("choice", "logprobs"), ("none",)], "text", False),
    ],
)
def test_all_servers_use_one_decoding_mode(several: list[tuple[str, ...]], decoding_mode: str, logprobs: bool) -> None:
    with ExitStack() as stack:
        stubs = [stack.enter_context(Stub(*capabilities, window=1000 + i)) for i, capabilities in enumerate(several)]
        result = found(*stubs)
    assert (result.decoding_mode, result.logprobs, result.window) == (decoding_mode, logprobs, 1000)


def test_what_servers_do_not_tell_and_where_they_differ_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with Stub(window=None) as one, Stub(window=None) as two:
        one.root, two.root = "model-of-7b", "model-of-70b"
        assert found(one, two).window is None
    assert "does not tell its model's window" in caplog.text
    assert "different models as stub (model-of-70b, model-of-7b)" in caplog.text


def test_a_model_that_is_not_served_is_named_with_those_that_are() -> None:
    with Stub() as stub:
        stub.models = ["llama", "qwen"]
        with pytest.raises(UserError, match=r"does not serve 'stub' but llama, qwen. Set judge.model"):
            found(stub)


def test_one_server_of_two_that_is_down_holds_nothing_up() -> None:
    with Stub() as gone:
        pass
    with Stub() as stub:
        assert found(gone, stub).decoding_mode == "label_ids"


def test_when_none_answers_the_wait_ends_with_a_sentence() -> None:
    with Stub() as gone:
        pass
    with pytest.raises(PyriteError, match=r"no server of resources.judge_urls answers .*no connection"):
        found(gone, patience=0.1)
