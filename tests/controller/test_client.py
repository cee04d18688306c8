"""`pyrite submit`, `attach` and `status --cluster`: messages and exit codes. tests/real/cluster has a real API."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

Pyrite = Callable[..., Any]


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Path:
    """A kubeconfig of a cluster that does not respond."""
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


def test_submit_without_a_cluster_names_kubeconfig(pyrite: Pyrite, run_file: Path, tmp_path: Path) -> None:
    done = pyrite("submit", run_file, KUBECONFIG=str(tmp_path / "none"))
    assert done.returncode == 2
    assert "KUBECONFIG" in done.stderr


@pytest.mark.parametrize("content", ["not YAML: [", "[]", "clusters: 3", "{current-context: x, contexts: [{name: x}]}"])
def test_an_invalid_kubeconfig_is_an_error_of_the_user(pyrite: Pyrite, tmp_path: Path, content: str) -> None:
    """Regression: a traceback."""
    path = tmp_path / "kubeconfig"
    path.write_text(content)
    done = pyrite("doctor", "--on", "cluster", KUBECONFIG=str(path))
    assert done.returncode == 2, done.stderr
    assert "KUBECONFIG" in done.stderr
    assert "Traceback" not in done.stderr


def test_attach_to_an_unreachable_cluster_fails_at_once(pyrite: Pyrite, kubeconfig: Path) -> None:
    """Regression: it printed nothing for two minutes."""
    start = time.monotonic()
    done = pyrite("attach", "r", KUBECONFIG=str(kubeconfig))
    assert done.returncode == 1
    assert "kubectl config use-context" in done.stderr
    assert time.monotonic() - start < 60


def test_submit_to_an_unreachable_cluster_fails(pyrite: Pyrite, tmp_path: Path, kubeconfig: Path) -> None:
    run_file = tmp_path / "r.yaml"
    run_file.write_text("source: {kind: sample}\n")
    done = pyrite("submit", run_file, KUBECONFIG=str(kubeconfig))
    assert done.returncode == 1
    assert "the Kubernetes API: no response from http://127.0.0.1:" in done.stderr
    assert "(NewConnectionError). Check `kubectl get nodes`." in done.stderr
    assert "Traceback" not in done.stderr


def test_local_data_file_is_refused(pyrite: Pyrite, run_file: Path, kubeconfig: Path) -> None:
    """Regression: the run failed minutes later on the cluster, because pods cannot read local files."""
    done = pyrite("submit", run_file, KUBECONFIG=str(kubeconfig))
    assert done.returncode == 2
    assert "s3://" in done.stderr


def test_name_with_a_dot_is_refused(pyrite: Pyrite, tmp_path: Path, kubeconfig: Path) -> None:
    run_file = tmp_path / "r.yaml"
    run_file.write_text("source: {kind: sample}\n")
    done = pyrite("submit", run_file, "name=a.b", KUBECONFIG=str(kubeconfig))
    assert done.returncode == 2
    assert "name: 'a.b'" in done.stderr


@pytest.mark.parametrize(
    ("setting", "key", "advice"),
    [
        ("model", "base", "cp --recursive {local} s3://bucket/data/local`) and set model.base=s3://bucket/data/local."),
        ("judge", "prompt", "mount it into the pods"),
        ("judge", "confusion", "Mount it into the pods"),
        ("judge", "calibration", "Mount it into the pods"),
        ("evaluate", "judge.prompt", "mount it into the pods"),
        ("evaluate", "retention.path", "and set evaluate.retention.path=s3://bucket/data/local."),
    ],
)
def test_settings_that_name_local_files_are_refused(
    pyrite: Pyrite, tmp_path: Path, kubeconfig: Path, setting: str, key: str, advice: str
) -> None:
    run_file, local = tmp_path / "r.yaml", tmp_path / "local"
    judge = "{kind: labels}" if key == "confusion" else "{kind: llm, model: m}"
    second = "evaluate: {judge: {model: n}}\nresources: {evaluate_judge_urls: [http://h:1]}\n"
    run_file.write_text(f"source: {{kind: sample}}\njudge: {judge}\n{second}")
    local.mkdir()
    done = pyrite("submit", run_file, f"{setting}.{key}={local}", KUBECONFIG=str(kubeconfig))
    assert done.returncode == 2
    assert f"{setting}.{key}" in done.stderr
    message = " ".join(done.stderr.split())
    assert "pods cannot read" in message
    assert advice.format(local=local) in message


def test_local_reported_retention_sets_are_refused(pyrite: Pyrite, tmp_path: Path, kubeconfig: Path) -> None:
    run_file, local = tmp_path / "r.yaml", tmp_path / "local"
    run_file.write_text(f"source: {{kind: sample}}\nevaluate: {{retention: {{path: s3://b/s, report: [{local}]}}}}\n")
    local.mkdir()
    done = pyrite("submit", run_file, KUBECONFIG=str(kubeconfig))
    assert done.returncode == 2
    assert "evaluate.retention.report" in done.stderr


Status = dict[str, Any]
OUTAGE: Status = {"outage": True}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[Path, list[Status], list[Any]]]:
    """A kubeconfig, the successive statuses of run `r` (the last one stays), and the created resources."""
    statuses: list[Status] = []
    created: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = statuses.pop(0) if len(statuses) > 1 else statuses[0]
            if status == OUTAGE:
                return  # the connection ends without a response
            metadata = {"name": "r", "uid": "u", "generation": 1, "creationTimestamp": "2026-11-23T08:00:00Z"}
            spec = created[0]["spec"] if created else {"source": {"kind": "sample"}}
            self._respond({"metadata": {**metadata, "resourceVersion": "1"}, "spec": spec, "status": status})

        def do_POST(self) -> None:
            created.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self._respond(created[-1], 409 if len(created) > 1 else 200)

        def do_PATCH(self) -> None:
            created.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self._respond(created[0])

        def _respond(self, content: Any, code: int = 200) -> None:
            body = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield _kubeconfig(tmp_path, server.server_port), statuses, created
    server.shutdown()


def _degraded(message: str) -> Status:
    when = {"lastTransitionTime": "2026-11-23T08:00:00Z", "observedGeneration": 1}
    return {"conditions": [{"type": "Degraded", "status": "True", "reason": "Stuck", "message": message, **when}]}


def test_following_shows_what_blocks_the_run(
    pyrite: Pyrite, tmp_path: Path, cluster: tuple[Path, list[Status], list[Any]]
) -> None:
    """Regression: no message was shown for a wrong bucket or a suspended run, because no step had started."""
    kubeconfig, statuses, created = cluster
    statuses += [
        {"phase": "Pending", "message": "the bucket does not exist.", **_degraded("the bucket does not exist.")},
        {"phase": "Suspended", "message": "suspended; set spec.suspend to false to resume.", "observedGeneration": 1},
        {"phase": "Failed", "message": "no luck.", "observedGeneration": 1, **_degraded("no luck.")},
    ]
    (tmp_path / "r.yaml").write_text("source: {kind: sample}\n")
    done = pyrite("submit", tmp_path / "r.yaml", "--queue", "gpus", KUBECONFIG=str(kubeconfig))
    assert done.returncode == 1
    assert created[0]["spec"] == {"source": {"kind": "sample"}, "queue": "gpus"}
    assert "the bucket does not exist." in done.stdout
    assert "suspended; set spec.suspend to false to resume." in done.stdout
    assert "no luck." not in done.stdout
    assert "run r is failed: no luck." in done.stderr


def test_following_waits_for_an_outage_after_submit(
    pyrite: Pyrite, tmp_path: Path, cluster: tuple[Path, list[Status], list[Any]]
) -> None:
    """Regression: the run was created, and a restart of the API server before the next request ended in an error."""
    kubeconfig, statuses, _ = cluster
    statuses += [OUTAGE] * 5  # more than the client's own retries
    statuses += [{"phase": "Failed", "message": "no luck.", "observedGeneration": 1}]
    (tmp_path / "r.yaml").write_text("source: {kind: sample}\n")
    done = pyrite("submit", tmp_path / "r.yaml", KUBECONFIG=str(kubeconfig))
    assert "run r is failed: no luck." in done.stderr
    assert len(statuses) == 1, "the outage happened"


def test_submit_until_probe_ends_with_the_verdict_and_continues(
    pyrite: Pyrite, tmp_path: Path, cluster: tuple[Path, list[Status], list[Any]]
) -> None:
    kubeconfig, statuses, created = cluster
    probe = {"failed": "", "pageUri": "s3://b/probe.html", "finished": "f", "retry": 0}
    probed = {"phase": "Probed", "message": "judged.", "observedGeneration": 1}
    run_file = tmp_path / "r.yaml"
    run_file.write_text("source: {kind: sample}\n")
    for verdict, code in (("no-go", 3), ("go", 0)):
        statuses[:] = [{**probed, "probe": {**probe, "verdict": verdict}}]
        done = pyrite("submit", run_file, "--until", "probe", KUBECONFIG=str(kubeconfig))
        assert done.returncode == code, done.stderr
        assert done.stdout.splitlines()[-2:] == ["judged.", "s3://b/probe.html"]
    assert created[0]["spec"] == {"source": {"kind": "sample"}, "until": "probe"}
    shown = pyrite("status", "r", "--cluster", KUBECONFIG=str(kubeconfig)).stdout
    assert "go, s3://b/probe.html" in shown
    done = pyrite("submit", run_file, "--force", "--detach", KUBECONFIG=str(kubeconfig))
    assert done.returncode == 0, done.stderr
    assert created[-1] == {"spec": {"until": None, "force": True}}
    created[0]["spec"] |= {"retry": 1, "budget_dollars": 9.0}  # edited with kubectl
    assert pyrite("submit", run_file, "--detach", KUBECONFIG=str(kubeconfig)).returncode == 0
    done = pyrite("submit", run_file, "iterations=3", KUBECONFIG=str(kubeconfig))
    assert done.returncode == 2
    assert "other settings" in done.stderr


def test_detaching_prints_commands_that_work(pyrite: Pyrite, cluster: tuple[Path, list[Status], list[Any]]) -> None:
    kubeconfig, statuses, _ = cluster
    running = {"phase": "Running", "step": "judge, iteration 1", "progress": "5/10 (1/4)", "observedGeneration": 1}
    statuses.append({**running, "stage": "judge", "iteration": 1, "message": "judge, iteration 1: 1 of 4 shards done."})
    attached = subprocess.Popen(
        [sys.executable, "-m", "pyrite", "attach", "r", "-n", "team"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "KUBECONFIG": str(kubeconfig)},
        # If pytest runs in the background, it ignores SIGINT, and its child processes inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert attached.stdout
    assert "start judge" in attached.stdout.readline()
    attached.send_signal(signal.SIGINT)
    output = attached.communicate(timeout=60)[0]
    assert attached.returncode == 0
    commands = re.findall("`pyrite ([^`]+)`", output)
    assert [command.split()[0] for command in commands] == ["attach", "status"]
    shown = pyrite(*commands[1].split(), KUBECONFIG=str(kubeconfig))
    assert shown.returncode == 0
    assert "1 of 4 shards done" in shown.stdout
    assert "controller" not in shown.stdout
    local = pyrite("status", "r")
    assert local.returncode == 2
    assert "pyrite status r --cluster" in " ".join(local.stderr.split())
