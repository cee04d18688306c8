"""The metrics endpoint: a wrong port is named, a taken one stops nobody."""

import socket
import urllib.request

import pytest

from pyrite import metrics
from pyrite.errors import UserError


@pytest.mark.parametrize("text", ["http", "-1", "0", "65536", "9100.5"])
def test_a_port_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(metrics.PORT_VARIABLE, text)
    with pytest.raises(UserError, match=f"PYRITE_METRICS_PORT is '{text}'"):
        metrics.serve_if_asked()


def test_of_several_workers_on_a_machine_one_has_the_port_and_the_others_say_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        port = other.getsockname()[1]
        monkeypatch.setenv(metrics.PORT_VARIABLE, str(port))
        metrics.serve_if_asked()
    assert f"port {port} cannot be used" in caplog.text
    metrics.serve_if_asked()
    metrics.serve_if_asked()  # once in a process, however often it is asked for
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        assert b"# TYPE pyrite_judge_pairs_total counter" in response.read()


def test_every_metric_has_base_units_and_our_prefix() -> None:
    for family in metrics.REGISTRY.collect():
        assert family.name.startswith(("pyrite_judge_", "pyrite_llm_"))
        assert not family.name.endswith(("_ms", "_milliseconds", "_minutes", "_percent"))
        assert family.documentation
