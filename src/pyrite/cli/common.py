"""Code that several commands share: consoles, options, finding a run, and stop signals."""

import os
import re
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

from pyrite.config import load
from pyrite.errors import UserError
from pyrite.executors.step import Run, open_run
from pyrite.spec import RunSpec
from pyrite.store import open_store

console = Console()
errors = Console(stderr=True)

RunFile = Annotated[Path, typer.Argument(metavar="RUN_FILE", help="The run file: the run's settings as YAML.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings that override the file's: finetune.learning_rate=1e-4"),
]
StoreOption = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="PYRITE_STORE",
        help="Where runs, models and embeddings are stored: a folder, or s3://bucket/prefix.",
    ),
]
_RUN = "A run file, or the name of a run in the store."
RunName = Annotated[str, typer.Argument(metavar="RUN", help=_RUN)]
RunA = Annotated[str, typer.Argument(metavar="RUN_A", help=_RUN)]
RunB = Annotated[str, typer.Argument(metavar="RUN_B", help="The run to compare it with.")]


def run_from_file(path: Path, overrides: list[str] | None, store: str, stage: str | None = None) -> Run:
    """The run of a run file, with the current digests of its external inputs (or of those that ``stage`` needs)."""
    return open_run(load(path, overrides or ()), open_store(store), stage)


def find_run(name: str, store: str) -> Run:
    """Find a run by run file or by name, for reading: its external inputs are assumed to be unchanged.

    Raises:
        UserError: there is no such run.
    """
    opened = open_store(store)
    if name.endswith((".yaml", ".yml")):
        spec: RunSpec = load(Path(name))
    else:
        key = f"runs/{name}/run.yaml"
        if not opened.exists(key):
            found = (re.fullmatch(r"runs/([^/]+)/run.yaml", key) for key in opened.keys("runs"))
            runs = sorted(match[1] for match in found if match)
            known = f"Its runs: {', '.join(runs)}." if runs else "It has no runs yet; `pyrite train` starts one."
            cluster = f"For a run on a cluster: `pyrite status {name} --cluster`."
            raise UserError(f"the store {opened} has no run {name!r}. {known} {cluster}")
        spec = load(opened.fetch(key))
    return Run(spec, opened, {})


#: The stop signals that this process has received.
stop_signals: list[int] = []

#: Seconds after a stop signal until the process exits in any case. Stopping its children takes up to 20.
_EXIT_DEADLINE_SECONDS = 25.0


def handle_stop_signals() -> None:
    """Make SIGTERM and SIGHUP stop the process as Ctrl-C does: first its children, then the process itself.

    A timer ends the process if that fails: Python drops an exception raised in a callback from a C library. The process
    would then run until it is killed, which Kubernetes counts as a failure.
    """

    def stop(signum: int, frame: FrameType | None) -> None:
        del frame
        stop_signals.append(signum)
        deadline = threading.Timer(_EXIT_DEADLINE_SECONDS, os._exit, [128 + signum])
        deadline.daemon = True
        deadline.start()
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    if sys.platform != "win32":
        signal.signal(signal.SIGHUP, stop)
