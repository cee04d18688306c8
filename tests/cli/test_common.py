"""SIGTERM ends the process, even if a library drops the exception that the signal handler raises."""

import signal
import subprocess
import sys

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
