"""Do one step in this process: check what is done, hold the lock, run the stage, publish outputs, manifest last."""

import errno
import importlib
import json
import os
import platform
import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pyrite.embedding.models import base_folder, model_digest
from pyrite.errors import PyriteError, UserError
from pyrite.locks import locked
from pyrite.plan import STAGES, Step, StepState, survey
from pyrite.progress import Progress
from pyrite.sources import open_source
from pyrite.spec import BeirSource, RunSpec
from pyrite.stages.context import StepContext
from pyrite.store import Store, sha256_file

_PACKAGES = (
    "pyrite",
    "sentence-transformers",
    "transformers",
    "torch",
    "pyarrow",
    "faiss-cpu",
    "ir-measures",
)


@dataclass(frozen=True)
class Run:
    """A run's place: its description, its store, and the digests of what comes from outside."""

    spec: RunSpec
    store: Store
    external: Mapping[str, str]

    @property
    def prefix(self) -> str:
        return f"runs/{self.spec.name}"

    def manifests(self) -> dict[str, dict[str, Any]]:
        """All manifests of the run by step name."""
        found = {}
        for key in self.store.keys(f"{self.prefix}/steps"):
            manifest = json.loads(self.store.read(key))
            found[manifest["step"]] = manifest
        return found

    def survey(self) -> list[StepState]:
        """Where every step stands now, read from the store."""
        return survey(self.spec, self.manifests(), self.external)

    def lock(self, name: str) -> Path:
        """The lock file of a step, or of the whole run ("run")."""
        return self.store.path(f"{self.prefix}/locks/{name}")


def open_run(spec: RunSpec, store: Store) -> Run:
    """The run that ``spec`` describes, with the digests of its source, base model and retention set as they are now.

    Raises:
        UserError: one of them is not there.
    """
    external = {
        "source": open_source(spec.source).digest(),
        "model": model_digest(base_folder(spec.model.base, spec.model.revision)),
    }
    if spec.evaluate.retention:
        external["retention"] = open_source(BeirSource(path=spec.evaluate.retention.path)).digest()
    return Run(spec, store, external)


def run_step(run: Run, step: Step, progress: Progress, *, force: bool = False) -> dict[str, Any]:
    """Do ``step`` unless it is done, and return its manifest.

    Raises:
        UserError: an earlier step is missing, somebody else works on the step, or the input is bad.
        PyriteError: the step failed.
    """
    with ExitStack() as stack:
        stack.enter_context(locked(run.lock(step.name), f"{step.label} of run {run.spec.name}"))
        manifests = run.manifests()
        state = next((state for state in survey(run.spec, manifests, run.external) if state.step == step), None)
        if state is None:
            raise UserError(f"run {run.spec.name} has no step {step.name}; `pyrite status` lists its steps.")
        if state.state == "waiting":
            missing = next(s.step for s in survey(run.spec, manifests, run.external) if s.state == "ready")
            raise UserError(f"{step.label} comes after {missing.label}, which is not done: run that first.")
        if state.state == "done" and not force:
            progress.say("already finished with these inputs; nothing to do")
            return manifests[step.name]
        if state.stale:
            progress.say(f"doing it again: {state.stale}")
        return _do(run, state, manifests, progress)


def _do(run: Run, state: StepState, manifests: dict[str, dict[str, Any]], progress: Progress) -> dict[str, Any]:
    step, key = state.step, state.key
    assert key is not None
    assert state.inputs is not None
    below_scratch = f"{run.prefix}/scratch/{step.name}"
    for other in run.store.scratch(below_scratch).iterdir():
        if other.name != key[:16]:
            shutil.rmtree(other, ignore_errors=True)  # of the same step with other inputs
    scratch = run.store.scratch(f"{below_scratch}/{key[:16]}")
    shutil.rmtree(scratch / "outputs", ignore_errors=True)
    context = StepContext(run.spec, step, run.store, run.prefix, manifests, scratch, progress)
    started, clock = datetime.now(UTC), time.monotonic()
    try:
        stage = importlib.import_module(f"pyrite.stages.{step.stage}")
        summary = stage.run(context)
        outputs = _publish(run, context, manifests.get(step.name))
    except PyriteError:
        raise
    except Exception as error:
        raise _explained(error, run.store) from error
    outside = {name: run.external.get(name, "") for name in STAGES[step.stage].external}
    manifest = {
        "step": step.name,
        "key": key,
        "inputs": dict(state.inputs),
        "external": outside,
        "settings": run.spec.settings(*STAGES[step.stage].settings),
        "outputs": outputs,
        "summary": summary,
        "versions": {name: version(name) for name in _PACKAGES},
        "machine": {"system": platform.platform(), "cpus": os.cpu_count()},
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - clock, 2),
    }
    run.store.write(f"{run.prefix}/steps/{step.name}.json", json.dumps(manifest, indent=1).encode())
    run.store.drop(below_scratch)
    return manifest


def _publish(run: Run, context: StepContext, older: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Move the staged outputs to their keys, and say what they are. The old manifest goes first."""
    staged = context.scratch / "outputs"
    paths: dict[str, Path] = {}
    for key in context.staged:
        if key.endswith("/"):
            paths |= {p.relative_to(staged).as_posix(): p for p in sorted((staged / key).rglob("*")) if p.is_file()}
        else:
            paths[key] = staged / key
    entries = [_entry(key, path) for key, path in sorted(paths.items())]
    run.store.delete(f"{run.prefix}/steps/{context.step.name}.json")
    for entry in older["outputs"] if older else []:
        if entry["key"] not in paths:
            run.store.delete(f"{run.prefix}/{entry['key']}")
    for entry in entries:
        run.store.publish(paths[entry["key"]], f"{run.prefix}/{entry['key']}")
    for entry in entries:
        if run.store.size(f"{run.prefix}/{entry['key']}") != entry["bytes"]:
            raise PyriteError(f"{entry['key']} is not in the store as it was written; the step is not finished.")
    return entries


def _entry(key: str, path: Path) -> dict[str, Any]:
    entry = {"key": key, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
    if path.suffix == ".parquet":
        entry["rows"] = pq.read_metadata(path).num_rows
    return entry


def _explained(error: Exception, store: Store) -> Exception:
    """A full disk or a store that cannot be written to is named as that, whichever library met it."""
    code = error.errno if isinstance(error, OSError) else None
    free = shutil.disk_usage(store.root).free
    if code in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error) or free < 1 << 20:
        return UserError(
            f"no space left in the store {store} ({free / 1e6:.0f} MB free). Free some, or name another store with "
            "--store, and give the same command again: what is finished is kept."
        )
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(f"the store {store} cannot be written to ({error}). Mend its permissions and try again.")
    return error
