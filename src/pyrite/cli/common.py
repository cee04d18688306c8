"""What the verbs share: consoles, options, and finding a run."""

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

RunFile = Annotated[Path, typer.Argument(metavar="RUN_FILE", help="The run's description, a YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings that win over the file's: finetune.learning_rate=1e-4"),
]
StoreOption = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="PYRITE_STORE",
        help="What keeps runs, models and embeddings: a folder, or s3://bucket/prefix.",
    ),
]
_RUN = "A run file, or the name of a run in the store."
RunName = Annotated[str, typer.Argument(metavar="RUN", help=_RUN)]
RunA = Annotated[str, typer.Argument(metavar="RUN_A", help=_RUN)]
RunB = Annotated[str, typer.Argument(metavar="RUN_B", help="Another one.")]


def run_from_file(path: Path, overrides: list[str] | None, store: str, stage: str | None = None) -> Run:
    """The run that a run file describes, its source and base model (or what ``stage`` needs) as they are now."""
    return open_run(load(path, overrides or ()), open_store(store), stage)


def find_run(name: str, store: str) -> Run:
    """A run by run file or by name, for looking at: what came from outside is trusted to be unchanged.

    Raises:
        UserError: there is no such run.
    """
    place = open_store(store)
    if name.endswith((".yaml", ".yml")):
        spec: RunSpec = load(Path(name))
    else:
        key = f"runs/{name}/run.yaml"
        if not place.exists(key):
            found = (re.fullmatch(r"runs/([^/]+)/run.yaml", key) for key in place.keys("runs"))
            runs = sorted(match[1] for match in found if match)
            known = f"It has: {', '.join(runs)}." if runs else "It has none yet; `pyrite train` makes one."
            there = f"One on a cluster: `pyrite status {name} --cluster`."
            raise UserError(f"the store {place} has no run {name!r}. {known} {there}")
        spec = load(place.fetch(key))
    return Run(spec, place, {})


#: The signals that have told this process to stop.
told_to_stop: list[int] = []


#: Seconds after which a process that was told to stop is gone in any case; stopping in order takes up to 20.
_AT_THE_LATEST = 25.0


def interruptible() -> None:
    """SIGTERM stops a run as Ctrl-C does: children first, then this process.

    Python drops an exception that meets it in a callback from a library's C code. Then the process would go on until
    it is killed, and Kubernetes count a failure.
    """

    def stop(signum: int, frame: FrameType | None) -> None:
        del frame
        told_to_stop.append(signum)
        last = threading.Timer(_AT_THE_LATEST, os._exit, [128 + signum])
        last.daemon = True
        last.start()
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    if sys.platform != "win32":
        signal.signal(signal.SIGHUP, stop)
