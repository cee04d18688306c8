"""Detection of what servers support, against stub servers that support more or less."""

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from pyrite.errors import PyriteError, UserError
from pyrite.llm.capabilities import Capabilities, detect_capabilities
from pyrite.llm.pool import Pool
from pyrite.spec import JudgeServers
from stub_judge import LABELS, MODEL, Pair, Raw, Stub
from stub_shapes import INVALID, reasoning

MESSAGES = [{"role": "user", "content": "<query>\nWhat?\n</query><passage>\nThat.\n</passage> Which of 1, 2, 3, 4?"}]
ALL = ("label_ids", "choice", "logprobs", "tokenize")
ZERO, ONE, SIXTEEN = {"temperature": 0}, {"max_tokens": 1}, {"max_tokens": 16}
LIMIT = ZERO | {"max_completion_tokens": 1}


def detect(*stubs: Stub, outage_seconds: float = 5.0, window: int | None = None) -> Capabilities:
    async def run() -> Capabilities:
        urls = [stub.url for stub in stubs]
        servers = JudgeServers(urls, 4, 2.0, window, outage_seconds=outage_seconds)
        async with Pool(servers, MODEL) as pool:
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
        with pytest.raises(
            UserError, match=r"does not serve 'stub' but llama, qwen \(The model `stub` .*\)\. Set judge"
        ):
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


def error(status: int, message: str) -> Raw:
    return Raw(status, {"error": {"message": message}})


def refuses(name: str, message: str, status: int = 400) -> Callable[[dict[str, Any]], Raw | None]:
    return lambda body: error(status, message) if name in body else None


NO_ZERO = "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) is supported."


@pytest.mark.parametrize(
    ("refuse", "expected"),
    [
        (refuses("max_tokens", "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."), LIMIT),
        (refuses("max_tokens", "Extra inputs are not permitted", 422), LIMIT),
        (refuses("temperature", NO_ZERO), {"max_tokens": 1}),
        (lambda body: None if body["temperature"] else error(422, "must be positive"), {"temperature": 0.01} | ONE),
        (lambda body: None if body["max_tokens"] > 15 else error(400, "Expected max_tokens >= 16"), ZERO | SIXTEEN),
        (
            lambda body: refuses("max_tokens", "bad request")(body) or refuses("temperature", "bad request")(body),
            {"max_completion_tokens": 1},
        ),
    ],
)
def test_parameters_are_negotiated(refuse: Callable[[dict[str, Any]], Raw | None], expected: dict[str, Any]) -> None:
    with Stub() as stub:
        stub.refuse = refuse
        result = detect(stub)
    names = ("temperature", "max_tokens", "max_completion_tokens")
    assert {name: value for name, value in result.request(LABELS).items() if name in names} == expected
    assert result.decoding_mode == "label_ids"


def test_a_request_refused_in_any_form_ends_with_the_first_error() -> None:
    with Stub() as stub:
        numbers = iter(range(100))
        stub.refuse = lambda _body: error(400, f"no access to the model, {next(numbers)}")
        with pytest.raises(UserError, match=r"rejects the request \(HTTP 400: no access to the model, 0\)"):
            detect(stub)
        assert len(stub.bodies) == 6


def test_parameters_fit_all_servers() -> None:
    with Stub() as one, Stub() as two:
        one.refuse = refuses("max_tokens", "Use max_completion_tokens")
        two.refuse = refuses("temperature", NO_ZERO)
        request = detect(one, two).request(LABELS)
    assert request["max_completion_tokens"] == 1
    assert not {"temperature", "max_tokens"} & request.keys()


@pytest.mark.parametrize(("supported", "tokens"), [("none", 2048), ("choice", 1)])
def test_text_replies_after_reasoning_get_more_tokens(
    supported: str, tokens: int, caplog: pytest.LogCaptureFixture
) -> None:
    def shape(reply: Any, body: dict[str, Any], pair: Pair | None) -> Any:
        return reply if "structured_outputs" in body and supported == "choice" else reasoning(reply, body, pair)

    with Stub(supported, window=9000) as stub:
        stub.shape = shape
        stub.refuse = refuses("max_tokens", "Use max_completion_tokens")
        result = detect(stub)
    assert result.request(LABELS)["max_completion_tokens"] == tokens
    assert ("reasons before it replies" in caplog.text) == (tokens > 1)
    assert result.prompt_window == (9000 - 2048 if tokens > 1 else 9000)


def test_fewer_alternatives_are_requested_if_20_are_too_many() -> None:
    with Stub("logprobs") as stub:
        stub.refuse = lambda body: error(422, "top_logprobs <= 5") if body.get("top_logprobs", 0) > 5 else None
        result = detect(stub)
    assert (result.decoding_mode, result.request(LABELS)["top_logprobs"]) == ("logprobs", 5)


@pytest.mark.parametrize("status", [400, 403, 404, 422])
def test_a_gateway_may_reject_what_it_does_not_support(status: int) -> None:
    with Stub("none") as stub:
        stub.logprobs_status = status
        assert detect(stub).decoding_mode == "text"


@pytest.mark.parametrize(
    ("listed", "warning"),
    [
        ({"data": [{"id": "openai/*"}]}, "lists openai/*, but not stub"),
        ({"data": [{"id": "models/stub"}, {"id": "x"}]}, "lists models/stub, x, but not stub"),
        ({"data": []}, ""),
        ({"data": None}, ""),
        ({"object": "list"}, ""),
        ([{"name": "stub"}], ""),
        ({"error": {"message": "no list", "code": 404}}, ""),
    ],
)
def test_a_list_of_models_can_only_warn(listed: Any, warning: str, caplog: pytest.LogCaptureFixture) -> None:
    with Stub() as stub:
        stub.listed = listed
        assert detect(stub, window=4096).decoding_mode == "label_ids"
    assert warning in caplog.text
    assert bool(warning) == bool(caplog.text)


def test_redirects_and_html_pages_end_in_one_sentence() -> None:
    with Stub() as stub:
        stub.refuse = lambda _body: Raw(308, b"<html><title>Moved</title></html>", {"Location": "https://x/v1"})
        with pytest.raises(UserError, match=r"redirects requests \(HTTP 308: Moved\). Set resources.judge_urls"):
            detect(stub)
        stub.refuse = lambda _body: Raw(403, b"<html><head><title>Access\n denied</title></head></html>")
        with pytest.raises(UserError, match=r"does not accept the API key \(HTTP 403: Access denied\)"):
            detect(stub)


def test_unusable_logprobs_of_another_mode_cause_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    with Stub() as stub:
        invalid = INVALID["probabilities"]
        stub.shape = lambda reply, body, pair: invalid(reply, body, pair) if "structured_outputs" in body else reply
        assert detect(stub).decoding_mode == "label_ids"
    assert not caplog.text
