"""Run `pyrite grade` in tests, and send requests to it as the page does."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def grading(store: Path, run: str, *options: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Run `pyrite grade`; yields the process and the address of its page."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pyrite", "grade", run, *options],
        env={**os.environ, "PYRITE_STORE": str(store), "COLUMNS": "80"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # If pytest runs in the background, it ignores SIGINT, and its child processes inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout
    output = ""
    while not (url := re.search(r"http://127\.0\.0\.1:\d+/[\w-]+/", output)):
        line = process.stdout.readline()
        assert line, output
        output += line
    try:
        yield process, url[0]
    finally:
        process.kill()
        process.wait(20)


def send(url: str, body: object = None) -> Any:
    """The JSON response to a GET, or to a POST of ``body``."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as response:
        return json.load(response)
