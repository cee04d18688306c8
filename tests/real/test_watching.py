"""A run on this machine, watched by a real Prometheus: dashboards find their data, alerts fire when they must."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from charts.test_dashboards import RULES
from real import prometheus
from real.vllm import VARYING, free_port, serving
from stub_judge import MODEL, Stub

pytestmark = pytest.mark.real

#: What only a cluster has: metrics of the controller, of the server that it scales, and of a node's price.
OF_A_CLUSTER = ("pyrite_controller_", "pyrite_server_", "pyrite_run_cost_", "pyrite_run_queued")

#: Panels of those.
EMPTY = {
    *("judging: Cost", "judging: Cost budget used", "judging: Pairs per dollar"),
    *("run: Cost", "run: Cost budget used"),
    *("run: Runs by phase", "run: Sync duration", "run: Errors per minute, by type"),
    *("vllm: Servers not ready", "vllm: Servers ready"),
}


@contextmanager
def watched(folder: Path, run_file: Path, *settings: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """`pyrite train`, and the address of its metrics."""
    port = free_port()
    words = [sys.executable, "-m", "pyrite", "train", str(run_file), *settings, f"--metrics-port={port}"]
    process = subprocess.Popen(
        words,
        env={**os.environ, "PYRITE_STORE": str(folder / "store")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process, f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_every_panel_and_rule_finds_what_it_asks_for(tmp_path: Path, run_file: Path) -> None:
    """The bugs: a metric is renamed, by us or by a new vLLM; a label that a panel goes by is not there."""
    with serving(VARYING) as server:
        settings = (
            "judge={kind: llm, model: judge, shards: 2}",
            f"resources.judge_urls=[{server}]",
            "resources.judge_concurrency=8",
            "prepare.max_train_queries=8",
            "retrieve.range_max=8",
            "mine.num_negatives=1",
        )
        start = time.time()
        with watched(tmp_path, run_file, *settings) as (process, address):
            vllm = {"namespace": "here", "component": "vllm", "pod": "vllm-0"}
            targets = {address: {"namespace": "here"}, server.removeprefix("http://"): vllm}
            with prometheus.running(tmp_path, targets, RULES) as seen:
                seen.until("judging", 'pyrite_judge_pairs_total{outcome="judged", stage="judge"} > 5', 180)
                scraped = seen.scraped()
                seen.until("the end", 'pyrite_run_phase{phase="Succeeded"} == 1', 300)
                scraped |= seen.scraped()
                empty = prometheus.empty_panels(seen, start, namespace="here", run="small")
                assert not seen.firing(start) - {"PyriteControllerDown"}
            assert process.wait(60) == 0
    assert {name for name in prometheus.names() - scraped if not name.startswith(OF_A_CLUSTER)} == set()
    assert empty == EMPTY


def test_alerts_fire_when_a_judge_goes_wrong_and_not_before(
    tmp_path: Path, run_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In fast motion, with a stub for the LLM: a real one cannot be made to go wrong in four ways in two minutes."""
    garbled: set[object] = set()

    def some(_number: int, pair: object) -> str | None:
        if len(garbled) < 25:
            garbled.add(pair)
        return "no grade" if pair in garbled else None

    with Stub() as stub:
        stub.delay = 0.2
        settings = (
            f"judge={{kind: llm, model: {MODEL}, shards: 1}}",
            f"resources={{judge_urls: [{stub.url}], judge_concurrency: 2, judge_timeout: 20}}",
        )
        with watched(tmp_path, run_file, *settings) as (process, address):
            targets, rules = {address: {"namespace": "here"}}, prometheus.in_fast_motion(RULES)
            with prometheus.running(tmp_path, targets, rules) as seen:
                start = time.time()
                seen.until("judging", 'pyrite_judge_pairs_total{outcome="judged"} > 100', 120)
                assert seen.firing(start) <= {"PyriteControllerDown"}, "nothing is wrong yet; here is no controller"

                stub.fault = some
                seen.until("missing pairs are told", firing("PyriteFailureBudgetHalfUsed"), 60)
                stub.fault = lambda _number, _pair: None
                monkeypatch.setattr("stub_judge.distribution", lambda _pair: [0.97, 0.01, 0.01, 0.01])
                seen.until("one grade for all is told", firing("PyriteGradeCollapse", grade="1"), 90)
                assert not seen.now(firing("PyriteJudgingStalled"))

                stub.delay = 3600
                seen.until("a judge that hangs is told", firing("PyriteJudgingStalled", run="small"), 60)
                seen.until("a run that hangs is told", firing("PyriteNoProgress", run="small"), 120)
                assert not seen.now(firing("PyriteRunFailed"))

                stub.delay, stub.fault = 0, lambda _number, _pair: "no grade"
                seen.until("a run that failed is told", firing("PyriteRunFailed", run="small"), 120)
                assert process.wait(60) == 1


def firing(alert: str, **labels: str) -> str:
    more = "".join(f', {name}="{value}"' for name, value in labels.items())
    return f'ALERTS{{alertname="{alert}", alertstate="firing"{more}}}'
