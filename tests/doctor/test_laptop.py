"""`pyrite doctor` on this machine: each problem is found, and says how to fix it."""

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pyrite.doctor.laptop import Machine, check_clock, check_machine, read_date, read_server

Pyrite = Callable[..., Any]
GIB = 1 << 30
GOOD = Machine((3, 11), "2.13.0+cpu", has_gpu=False, system="Linux", memory=16 * GIB, disk=100 * GIB)


@contextmanager
def server(models: str, date: str | None = None, status: int = 200) -> Iterator[str]:
    """A server whose /v1/models is ``models``, and whose clock says ``date``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(models.encode())

        def date_time_string(self, timestamp: float | None = None) -> str:
            return date or super().date_time_string(timestamp)

        def log_message(self, *arguments: Any) -> None:
            del arguments

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.mark.parametrize(
    ("change", "name", "status", "fix"),
    [
        ({}, "PyTorch", "ok", ""),
        ({"python": (3, 10)}, "Python", "fail", "Install Python 3.11"),
        ({"torch": ""}, "PyTorch", "fail", "make setup"),
        ({"has_gpu": True}, "PyTorch", "warn", "--torch-backend=auto"),
        ({"torch": "2.13.0"}, "PyTorch", "warn", "--torch-backend=cpu"),
        ({"torch": "2.13.0", "has_gpu": True}, "PyTorch", "ok", ""),
        ({"torch": "2.13.0", "system": "Darwin"}, "PyTorch", "ok", ""),
        ({"memory": GIB}, "memory", "fail", "2 GiB or more"),
        ({"memory": 4 * GIB}, "memory", "warn", "8 GiB"),
        ({"disk": GIB}, "disk", "fail", "--store"),
    ],
)
def test_machine_is_judged(change: dict[str, Any], name: str, status: str, fix: str) -> None:
    checks = {check.name: check for check in check_machine(GOOD._replace(**change))}
    assert checks[name].status == status
    assert fix in checks[name].fix
    assert sum(check.status != "ok" for check in checks.values()) == (status != "ok")


@pytest.mark.parametrize(("skew", "status"), [(5, "ok"), (-90, "warn"), (1000, "fail"), (-1000, "fail")])
def test_clock_is_compared_with_the_date_header(skew: float, status: str) -> None:
    date = "Sun, 01 Nov 2026 12:00:00 GMT"
    assert check_clock([date, ""], 1793534400 + skew).status == status


def test_healthy_machine_exits_with_0(pyrite: Pyrite, tmp_path: Path) -> None:
    with server('{"data": [{"id": "Qwen"}]}') as url:
        done = pyrite("doctor", "--store", tmp_path / "store", "--judge-url", f"{url}/v1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"ok   judge {url}" in done.stdout
    assert "FAIL" not in done.stdout
    assert not list((tmp_path / "store").rglob("doctor*")), "it deletes what it writes"


def test_problems_exit_with_2_and_say_what_to_do(pyrite: Pyrite, tmp_path: Path) -> None:
    wrong_model = server('{"data": [{"id": "Qwen"}]}', date="Sun, 01 Nov 2020 12:00:00 GMT")
    with wrong_model as first, server("<html>") as second, server("{}", status=401) as third:
        spec = tmp_path / "run.yaml"
        spec.write_text(
            f"source: {{kind: sample}}\nmodel: {{base: /none}}\njudge: {{kind: llm, model: Llama}}\n"
            f"resources: {{judge_urls: [{first}, {second}, {third}, http://127.0.0.1:1]}}\n"
        )
        done = pyrite("doctor", spec, "--store", tmp_path / "store")
    assert done.returncode == 2
    for text in (
        "/none does not exist",
        "serves Qwen, not Llama",
        "is not an OpenAI-compatible server",
        "replied HTTP 401",
        "does not respond",
        "S3 rejects requests. Synchronize the clock",
    ):
        assert text in done.stdout


def test_server_that_does_not_speak_http_is_reported() -> None:
    """Regression: the wrong port, such as that of SSH, ended with a traceback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            for _ in range(2):
                with listener.accept()[0] as connection:
                    connection.sendall(b"SSH-2.0\r\n")
                    connection.recv(1000)

        threading.Thread(target=greet, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert "does not respond" in read_server(url, None).error
        assert read_date(url) == ""


def test_help_does_not_import_the_clients_of_clouds() -> None:
    code = "import pyrite.cli, sys; print(sorted({'boto3', 'kubernetes', 'torch'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n"


@pytest.mark.skipif("os.geteuid() == 0", reason="root can write everywhere")
def test_read_only_store_fails(pyrite: Pyrite, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    done = pyrite("doctor", "--store", tmp_path / "store")
    assert done.returncode == 2
    assert "cannot be written to" in done.stdout
