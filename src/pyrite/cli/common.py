"""Code that several commands share: consoles, options, finding a run, and stop signals."""

import json
import os
import re
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console

from pyrite.config import load
from pyrite.errors import UserError
from pyrite.executors.step import Run, open_run
from pyrite.judges.base import graded_by
from pyrite.judges.calibration import Calibration
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


def show_no_go(run: Run) -> None:
    """Print a note if the run's judge failed its probe."""
    from pyrite.estimate.probes import probe_failure, probed

    if failed := probe_failure(probed(run)):
        text = f"note: {failed}; `pyrite train` stops, unless --force is set"
        console.print(text, highlight=False, markup=False)


def latest_calibration(run: Run) -> dict[str, Any] | None:
    """The newest result of `pyrite calibrate` for the judge that graded this run's pairs; None if there is none.

    There is none for a cascade: it measures one judge only.

    If the run uses the calibration that was fitted there, the result has the cross-validated kappa with it, and no
    bias.
    """
    summaries = [manifest.get("summary") or {} for name, manifest in run.manifests().items() if "judge" in name]
    used = {summary.get("judge") for summary in summaries if "first" not in summary}
    own = []
    for key in run.store.keys(f"{run.prefix}/calibration"):
        found: dict[str, Any] = json.loads(run.store.read(key))
        fingerprint = found["judge"]["fingerprint"]
        if graded_by(fingerprint, found["judge"].get("calibration")) in used:
            own.append(found)
        elif found["calibration"] and graded_by(fingerprint, Calibration.of(found).digest) in used:
            own.append({**found, "kappa": found["recalibration"]["after"], "bias": None})
    return max(own, key=lambda each: each["finished"], default=None)


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
