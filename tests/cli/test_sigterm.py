"""A process that is told to stop is gone, whatever becomes of the exception that says so."""

import signal
import subprocess
import sys

DEAF = """
import time
from pyrite.cli import common
common._AT_THE_LATEST = 0.5
common.interruptible()
while True:
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("dropped", flush=True)
"""


def test_a_stop_that_a_library_drops_still_ends_the_process() -> None:
    """The bug: a step on a drained node went on until it was killed, which counts as a failure."""
    process = subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "dropped\n", "the exception was not raised, or ended the process"
    assert process.wait(30) == 143
