"""Errors of options, and SIGTERM, which ends the process even if a library drops the exception of the handler."""

import signal
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from pyrite.cli import app

DROPS_EXCEPTION = """
import time
from pyrite.cli import common
common._EXIT_DEADLINE_SECONDS = 0.5
common.handle_stop_signals()
while True:
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("dropped", flush=True)
"""


def test_sigterm_ends_a_process_that_drops_the_exception() -> None:
    """Regression: a step on a drained node continued until it was killed, which counts as a failure."""
    process = subprocess.Popen([sys.executable, "-c", DROPS_EXCEPTION], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "dropped\n", "the exception was not raised, or ended the process"
    assert process.wait(30) == 143


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("submit", "run.yaml", "--until", "probes"), "'--until': 'probes' is not one of 'probe'."),
        (("probe", "run.yaml", "--queries", "1.5"), "'--queries': must be a valid integer."),
        (("probe", "run.yaml", "--queries", "1"), "'--queries': must be greater than or equal to 2."),
    ],
)
def test_errors_of_options_have_no_terms_of_pydantic(arguments: tuple[str, ...], message: str) -> None:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert f"Invalid value for {message}" in " ".join(done.output.split())
