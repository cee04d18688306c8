"""`pyrite submit`, `attach` and `status --cluster`: words and exit codes. tests/real/cluster does them for real."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

Pyrite = Callable[..., Any]


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Path:
    """Of a cluster that does not answer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return _kubeconfig(tmp_path, port)


def _kubeconfig(folder: Path, port: int) -> Path:
    path = folder / "kubeconfig"
    cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}
    context = {"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "team"}}
    users = [{"name": "u", "user": {}}]
    path.write_text(json.dumps({"clusters": [cluster], "contexts": [context], "users": users, "current-context": "x"}))
    return path


def test_without_a_cluster_it_says_how_to_run_here(pyrite: Pyrite, run_file: Path, tmp_path: Path) -> None:
    done = pyrite("submit", run_file, KUBECONFIG=str(tmp_path / "none"))
    assert done.returncode == 2
    assert "KUBECONFIG" in done.stderr


def test_a_cluster_that_does_not_answer(pyrite: Pyrite, tmp_path: Path, kubeconfig: Path) -> None:
    run_file = tmp_path / "r.yaml"
    run_file.write_text("source: {kind: sample}\n")
    done = pyrite("submit", run_file, KUBECONFIG=str(kubeconfig))
    assert done.returncode == 1
    assert "API server does not answer" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_of_this_machine_is_refused_before_anything_is_made(
    pyrite: Pyrite, run_file: Path, kubeconfig: Path
) -> None:
    """The bug: a run that fails on the cluster minutes later, since pods do not see this machine's files."""
    done = pyrite("submit", run_file, KUBECONFIG=str(kubeconfig))
    assert done.returncode == 2
    assert "s3://" in done.stderr


def test_a_name_that_kubernetes_does_not_take(pyrite: Pyrite, tmp_path: Path, kubeconfig: Path) -> None:
    run_file = tmp_path / "r.yaml"
    run_file.write_text("source: {kind: sample}\n")
    done = pyrite("submit", run_file, "name=a.b", KUBECONFIG=str(kubeconfig))
    assert done.returncode == 2
    assert "name: 'a.b'" in done.stderr


@pytest.mark.parametrize(
    ("setting", "key", "advice"),
    [
        ("model", "base", "cp --recursive {here} s3://bucket/data/here`) and say model.base=s3://bucket/data/here."),
        ("judge", "prompt", "have it mounted into the pods"),
        ("evaluate", "retention.path", "and say evaluate.retention.path=s3://bucket/data/here."),
    ],
)
def test_no_setting_may_name_a_file_of_this_machine(
    pyrite: Pyrite, tmp_path: Path, kubeconfig: Path, setting: str, key: str, advice: str
) -> None:
    run_file, here = tmp_path / "r.yaml", tmp_path / "here"
    run_file.write_text("source: {kind: sample}\njudge: {kind: llm, model: m}\n")
    here.mkdir()
    done = pyrite("submit", run_file, f"{setting}.{key}={here}", KUBECONFIG=str(kubeconfig))
    assert done.returncode == 2
    assert f"{setting}.{key}" in done.stderr
    said = " ".join(done.stderr.split())
    assert "pods do not see" in said
    assert advice.format(here=here) in said


Status = dict[str, Any]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[Path, list[Status], list[Any]]]:
    """A kubeconfig, the statuses that the run `r` has one after the other, the last one for good; and what was made."""
    statuses: list[Status] = []
    made: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = statuses.pop(0) if len(statuses) > 1 else statuses[0]
            metadata = {"name": "r", "uid": "u", "generation": 1, "creationTimestamp": "2026-11-23T08:00:00Z"}
            spec = {"source": {"kind": "sample"}}
            self._answer({"metadata": {**metadata, "resourceVersion": "1"}, "spec": spec, "status": status})

        def do_POST(self) -> None:
            made.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self._answer(made[-1])

        def _answer(self, content: Any) -> None:
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield _kubeconfig(tmp_path, server.server_port), statuses, made
    server.shutdown()


def _degraded(message: str) -> Status:
    when = {"lastTransitionTime": "2026-11-23T08:00:00Z", "observedGeneration": 1}
    return {"conditions": [{"type": "Degraded", "status": "True", "reason": "Stuck", "message": message, **when}]}


def test_whoever_follows_a_run_is_told_what_holds_it_up(
    pyrite: Pyrite, tmp_path: Path, cluster: tuple[Path, list[Status], list[Any]]
) -> None:
    """The bug: with a wrong bucket nothing at all, as no step had begun; nor that somebody has suspended the run."""
    kubeconfig, statuses, made = cluster
    statuses += [
        {"phase": "Pending", "message": "the bucket does not exist.", **_degraded("the bucket does not exist.")},
        {"phase": "Suspended", "message": "suspended; go on by false.", "observedGeneration": 1},
        {"phase": "Failed", "message": "it had to be.", "observedGeneration": 1, **_degraded("it had to be.")},
    ]
    (tmp_path / "r.yaml").write_text("source: {kind: sample}\n")
    done = pyrite("submit", tmp_path / "r.yaml", "--queue", "gpus", KUBECONFIG=str(kubeconfig))
    assert done.returncode == 1
    assert made[0]["spec"] == {"source": {"kind": "sample"}, "queue": "gpus"}
    assert "the bucket does not exist." in done.stdout
    assert "suspended; go on by false." in done.stdout
    assert "it had to be." not in done.stdout
    assert "run r is failed: it had to be." in done.stderr


def test_one_comes_back_to_a_run_by_what_was_said_on_leaving(
    pyrite: Pyrite, cluster: tuple[Path, list[Status], list[Any]]
) -> None:
    kubeconfig, statuses, _ = cluster
    running = {"phase": "Running", "step": "judge, iteration 1", "progress": "5/10 (1/4)", "observedGeneration": 1}
    statuses.append({**running, "stage": "judge", "iteration": 1, "message": "judge, iteration 1: 1 of 4 shards done."})
    left = subprocess.Popen(
        [sys.executable, "-m", "pyrite", "attach", "r", "-n", "team"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "KUBECONFIG": str(kubeconfig)},
        # A test run started in the background ignores Ctrl-C, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert left.stdout
    assert "start judge" in left.stdout.readline()
    left.send_signal(signal.SIGINT)
    said = left.communicate(timeout=60)[0]
    assert left.returncode == 0
    commands = re.findall("`pyrite ([^`]+)`", said)
    assert [command.split()[0] for command in commands] == ["attach", "status"]
    shown = pyrite(*commands[1].split(), KUBECONFIG=str(kubeconfig))
    assert shown.returncode == 0
    assert "1 of 4 shards done" in shown.stdout
    assert "controller" not in shown.stdout
    local = pyrite("status", "r")
    assert local.returncode == 2
    assert "pyrite status r --cluster" in " ".join(local.stderr.split())
