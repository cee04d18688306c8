"""The real S3 server of the tests: one for all of them, started by its script."""

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
    """The environment variables by which a client finds the server, or None where it is not installed."""
    process = subprocess.Popen([sys.executable, SCRIPT, "--port=0", "--no-install"], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    found = {}
    for line in process.stdout:
        if line.startswith("# ready"):
            atexit.register(_stop, process)
            return found
        name, _, value = line.removeprefix("export ").strip().partition("=")
        found[name] = value
    assert process.wait() == NOT_INSTALLED, "the S3 server did not start"
    return None


def _stop(process: "subprocess.Popen[str]") -> None:
    process.terminate()
    process.wait(30)


def environment() -> dict[str, str]:
    """As ``server``; the test is skipped where it is not installed."""
    found = server()
    if found is None:
        pytest.skip("SeaweedFS is not installed; `make real-s3` installs it")
    return found
