"""A local run scraped by a real Prometheus: dashboards have data, and alerts fire when they should."""

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

#: Prefixes of metrics that exist only in a cluster: controller, server and cost.
CLUSTER_ONLY = ("pyrite_controller_", "pyrite_server_", "pyrite_run_cost_", "pyrite_run_queued")

#: Panels of these metrics, and of GPUs.
EMPTY_PANELS = {
    *("judging: Cost", "judging: Cost budget used", "judging: Pairs per dollar"),
    *("run: Cost", "run: Cost budget used"),
    *("run: Runs by phase", "run: Sync duration", "run: Errors per minute, by type"),
    *("vllm: Servers not ready", "vllm: Servers ready"),
    *prometheus.GPU_PANELS,
}


@contextmanager
def training(folder: Path, run_file: Path, *settings: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Run `pyrite train`; yields the process and the address of its metrics."""
    port = free_port()
    command = [sys.executable, "-m", "pyrite", "train", str(run_file), *settings, f"--metrics-port={port}"]
    process = subprocess.Popen(
        command,
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


def test_every_panel_and_rule_finds_its_metrics(tmp_path: Path, run_file: Path) -> None:
    """Detects metrics renamed by us or by a new vLLM, and missing labels."""
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
        with training(tmp_path, run_file, *settings) as (process, address):
            vllm = {"namespace": "here", "component": "vllm", "pod": "vllm-0"}
            targets = {address: {"namespace": "here"}, server.removeprefix("http://"): vllm}
            with prometheus.running(tmp_path, targets, RULES) as scraper:
                scraper.until("judging", 'pyrite_judge_pairs_total{outcome="judged", stage="judge"} > 5', 180)
                scraped = scraper.scraped()
                scraper.until("the end", 'pyrite_run_phase{phase="Succeeded"} == 1', 300)
                scraped |= scraper.scraped()
                empty = prometheus.empty_panels(scraper, start, namespace="here", run="small")
                assert not scraper.firing(start) - {"PyriteControllerDown"}
            assert process.wait(60) == 0
    assert {name for name in prometheus.names() - scraped if not name.startswith(CLUSTER_ONLY)} == set()
    assert empty == EMPTY_PANELS


def test_alerts_fire_only_when_the_judge_fails(tmp_path: Path, run_file: Path) -> None:
    """With shortened rules and a stub: a real LLM cannot be made to fail in four ways within two minutes."""
    garbled: set[object] = set()

    def fail_25_pairs(_number: int, pair: object) -> str | None:
        if len(garbled) < 25:
            garbled.add(pair)
        return "no grade" if pair in garbled else None

    with Stub() as stub:
        # The alert on uniform grades needs 200 pairs within 30 s (shortened), on a slow machine too: at most 20 pairs a
        # second. The about 1,700 pairs must last until the end, so there are at most 5 a second before.
        stub.delay = 0.8
        settings = (
            "retrieve.range_max=40",
            f"judge={{kind: llm, model: {MODEL}, shards: 1, rank_window: 40}}",
            f"resources={{judge_urls: [{stub.url}], judge_concurrency: 4, judge_timeout: 20}}",
        )
        with training(tmp_path, run_file, *settings) as (process, address):
            targets, rules = {address: {"namespace": "here"}}, prometheus.shortened(RULES)
            with prometheus.running(tmp_path, targets, rules) as scraper:
                start = time.time()
                scraper.until("judging", 'pyrite_judge_pairs_total{outcome="judged"} > 100', 120)
                assert scraper.firing(start) <= {"PyriteControllerDown"}, (
                    "an alert fires without a fault (PyriteControllerDown is expected: no controller runs)"
                )

                stub.fault = fail_25_pairs
                scraper.until("alert on missing pairs", firing("PyriteFailureBudgetHalfUsed"), 60)
                stub.fault, stub.delay = lambda _number, _pair: None, 0.2
                stub.distribution = lambda _pair: [0.97, 0.01, 0.01, 0.01]
                scraper.until("alert on uniform grades", firing("PyriteGradeCollapse", grade="1"), 90)
                assert not scraper.now(firing("PyriteJudgingStalled"))

                stub.delay = 3600
                scraper.until("alert on a hanging judge", firing("PyriteJudgingStalled", run="small"), 60)
                scraper.until("alert on a hanging run", firing("PyriteNoProgress", run="small"), 120)
                assert not scraper.now(firing("PyriteRunFailed"))

                stub.delay, stub.fault = 0, lambda _number, _pair: "no grade"
                scraper.until("alert on a failed run", firing("PyriteRunFailed", run="small"), 120)
                assert process.wait(60) == 1


def firing(alert: str, **labels: str) -> str:
    more = "".join(f', {name}="{value}"' for name, value in labels.items())
    return f'ALERTS{{alertname="{alert}", alertstate="firing"{more}}}'
