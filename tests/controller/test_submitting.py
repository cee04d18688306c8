"""`pyrite submit` where it cannot be done: words, and exit code 2. tests/real/cluster submits for real."""

import json
import socket
from collections.abc import Callable
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
    path = tmp_path / "kubeconfig"
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
