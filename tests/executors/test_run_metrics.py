"""`pyrite train --metrics-port` serves the same metrics as a run on a cluster."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


def parse(text: str) -> list[Sample]:
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families), "duplicate family"
    samples = [sample for family in families for sample in family.samples]
    assert len({(s.name, *sorted(s.labels.items())) for s in samples}) == len(samples), "duplicate series"
    return samples


@pytest.mark.slow
def test_one_port_serves_a_run_and_its_steps_to_the_end(run_file: Path, tmp_path: Path) -> None:
    """Regression: a step's metrics were lost when its process ended, and the run ended before the last scrape."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "pyrite",
        "train",
        str(run_file),
        f"--metrics-port={port}",
        "judge.shards=3",
        "judge.rank_window=6",
    ]
    environment = {**os.environ, "PYRITE_STORE": str(tmp_path / "store")}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    scrapes = []
    while process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
                scrapes.append(parse(response.read().decode()))
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(1)
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    assert out.rstrip().endswith("report.html")

    last = {(s.name, *sorted(s.labels.items())): s.value for s in scrapes[-1]}
    run = ("run", "small")
    assert last["pyrite_run_phase", ("phase", "Succeeded"), run] == 1
    assert last["pyrite_run_steps_done", run] == last["pyrite_run_steps", run] > 15
    assert ("pyrite_run_gate_passed", run) in last
    assert last["pyrite_run_validation_mrr", ("iteration", "2"), ("model", "tuned"), run] > 0
    examples = pq.read_table(tmp_path / "store/runs/small/iterations/1/examples.parquet").to_pylist()
    hard = {(row["query_id"], row["positive_id"]) for row in examples if row["kind"] == "hard"}
    first = ("iteration", "1")
    assert last["pyrite_run_hard_positives", first, run] == len(hard) > 0
    assert last["pyrite_run_hard_negatives", first, run] > 0

    done = [s for scrape in scrapes for s in scrape if s.name == "pyrite_step_units_done" and s.value]
    pods = {f"judge-{i}.{shard}" for i in (1, 2) for shard in range(3)}
    assert {s.labels["pod"] for s in done} >= pods
    assert {s.labels["run"] for s in done} == {"small"}
    scrapes_of = Counter(s.labels["pod"] for s in done if s.labels["pod"] in pods)
    assert min(scrapes_of.values()) > 2, "a second scraper must also see the last metrics of a step"
    judged = {
        s.labels["outcome"] for scrape in scrapes for s in scrape if s.name == "pyrite_judge_pairs_total" and s.value
    }
    assert {"judged", "not_selected"} <= judged, "both outcomes must be exported with any judge"
    assert any(s.labels["stage"] == "finetune" and s.labels["iteration"] == "2" for s in done)


def test_a_metrics_port_in_use_is_a_user_error(run_file: Path, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        port = other.getsockname()[1]
        command = [sys.executable, "-m", "pyrite", "train", str(run_file), f"--metrics-port={port}"]
        environment = {**os.environ, "PYRITE_STORE": str(tmp_path / "store")}
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert f"port {port} cannot be used" in " ".join(result.stderr.split())
    assert not (tmp_path / "store/runs/small/steps").exists()
