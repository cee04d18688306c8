"""Starts the S3 server that all tests share: SeaweedFS on this machine, because tests have no access to AWS."""

import atexit
import functools
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "scripts/real_s3.py"
NOT_INSTALLED = 3


@functools.cache
def server() -> dict[str, str] | None:
    """The environment variables that clients of the server need; None if it is not installed."""
    process = subprocess.Popen([sys.executable, SCRIPT, "--port=0", "--no-install"], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    variables = {}
    for line in process.stdout:
        if line.startswith("# ready"):
            atexit.register(_stop, process)
            return variables
        name, _, value = line.removeprefix("export ").strip().partition("=")
        variables[name] = value
    assert process.wait() == NOT_INSTALLED, "the S3 server did not start"
    return None


def _stop(process: "subprocess.Popen[str]") -> None:
    process.terminate()
    process.wait(30)


def environment() -> dict[str, str]:
    """The variables of ``server``. Skips the test if the server is not installed."""
    variables = server()
    if variables is None:
        pytest.skip("SeaweedFS is not installed; `make real-s3` installs it")
    return variables
