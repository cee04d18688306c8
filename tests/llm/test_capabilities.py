"""Detection of what servers support, against stub servers that support more or less."""

import asyncio
from contextlib import ExitStack

import pytest

from pyrite.errors import PyriteError, UserError
from pyrite.llm.capabilities import Capabilities, detect_capabilities
from pyrite.llm.pool import Pool
from stub_judge import LABELS, MODEL, Stub

MESSAGES = [{"role": "user", "content": "<query>\nWhat?\n</query><passage>\nThat.\n</passage> Which of 1, 2, 3, 4?"}]
ALL = ("label_ids", "choice", "logprobs", "tokenize")


def detect(*stubs: Stub, outage_seconds: float = 5.0, window: int | None = None) -> Capabilities:
    async def run() -> Capabilities:
        async with Pool([stub.url for stub in stubs], MODEL, None, 4, 2.0, outage_seconds, window) as pool:
            return await detect_capabilities(pool, MESSAGES, LABELS)

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("supported", "decoding_mode", "logprobs", "warning"),
    [
        (ALL, "label_ids", True, ""),
        (("label_ids", "choice", "logprobs"), "choice", True, ""),  # no token ids without /tokenize
        (("choice", "logprobs", "tokenize"), "choice", True, ""),
        (("logprobs", "tokenize"), "logprobs", True, "not limited to the labels; a reply without a label"),
        (("choice",), "choice", False, "limited to the labels, but have no logprobs: there are no expected grades"),
        (("none",), "text", False, "not every server supports structured outputs or logprobs"),
    ],
)
def test_best_supported_mode_is_selected_with_a_warning(
    supported: tuple[str, ...], decoding_mode: str, logprobs: bool, warning: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Stub(*supported, window=2048) as stub:
        result = detect(stub)
    assert (result.decoding_mode, result.logprobs) == (decoding_mode, logprobs)
    assert (result.window, result.tokenizes) == (2048, "tokenize" in supported)
    assert result.label_ids == (tuple(map(ord, LABELS)) if decoding_mode == "label_ids" else ())
    assert result.sample_tokens > 0
    assert warning in caplog.text
    assert bool(warning) == bool(caplog.text)
    assert stub.paths["/v1/chat/completions"] == (4 if "tokenize" in supported else 3)


@pytest.mark.parametrize(("supported", "decoding_mode"), [(("choice",), "choice"), (("none",), "text")])
@pytest.mark.parametrize(("status", "requests"), [(400, 4), (500, 8)])
def test_server_that_rejects_logprobs_gets_no_more_such_requests(
    supported: tuple[str, ...], decoding_mode: str, status: int, requests: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: a server that responds with 500 to an unsupported request was considered down."""
    monkeypatch.setattr("pyrite.llm.capabilities.backoff_delay", lambda *_: 0.0)
    with Stub(*supported) as stub:
        stub.logprobs_status = status
        result = detect(stub)
        assert stub.paths["/v1/chat/completions"] == requests
    assert (result.decoding_mode, result.logprobs) == (decoding_mode, False)
    assert "logprobs" not in result.request(LABELS)
    assert ("structured_outputs" in result.request(LABELS)) == (decoding_mode == "choice")


@pytest.mark.parametrize(("path", "status"), [("/v1/models", 500), ("/v1/models", 403), ("/tokenize", 403)])
def test_optional_endpoints_may_be_unavailable(path: str, status: int) -> None:
    with Stub() as stub:
        stub.path_statuses[path] = status
        result = detect(stub)
    assert result.decoding_mode == ("choice" if path == "/tokenize" else "label_ids")
    assert result.window == (None if path == "/v1/models" else 4096)


def test_server_tokenizing_only_plain_text_counts_no_messages() -> None:
    with Stub(*ALL, "tokenize text alone") as stub:
        result = detect(stub)
    assert (result.decoding_mode, result.tokenizes) == ("label_ids", False)


def test_configured_window_overrides_unknown_or_larger_window() -> None:
    with Stub(window=None) as unknown, Stub(window=4096) as larger:
        for stub in (unknown, larger):
            assert detect(stub, window=1000).window == 1000


@pytest.mark.parametrize(
    ("supported", "decoding_mode", "logprobs"),
    [
        ([ALL, ("choice", "logprobs", "tokenize")], "choice", True),
        ([ALL, ("choice",)], "choice", False),
        ([ALL, ("logprobs",)], "logprobs", True),
        ([("choice", "logprobs"), ("none",)], "text", False),
    ],
)
def test_all_servers_use_one_decoding_mode(
    supported: list[tuple[str, ...]], decoding_mode: str, logprobs: bool
) -> None:
    with ExitStack() as stack:
        stubs = [stack.enter_context(Stub(*each, window=1000 + i)) for i, each in enumerate(supported)]
        result = detect(*stubs)
    assert (result.decoding_mode, result.logprobs, result.window) == (decoding_mode, logprobs, 1000)


def test_unknown_window_and_mixed_models_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with Stub(window=None) as one, Stub(window=None) as two:
        one.root, two.root = "model-of-7b", "model-of-70b"
        assert detect(one, two).window is None
    assert "no server reports the model's context window" in caplog.text
    assert "different models under the name stub (model-of-70b, model-of-7b)" in caplog.text


def test_error_for_an_unknown_model_lists_the_served_models() -> None:
    with Stub() as stub:
        stub.models = ["llama", "qwen"]
        with pytest.raises(UserError, match=r"does not serve 'stub' but llama, qwen. Set judge.model"):
            detect(stub)


def test_one_unreachable_server_does_not_block_detection() -> None:
    with Stub() as down:
        pass
    with Stub() as stub:
        assert detect(down, stub).decoding_mode == "label_ids"


def test_no_reachable_server_ends_in_an_error() -> None:
    with Stub() as down:
        pass
    with pytest.raises(PyriteError, match=r"No server in resources.judge_urls responds .*no connection"):
        detect(down, outage_seconds=0.1)
