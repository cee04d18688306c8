"""Do one step in this process: check what is done, hold the lock, run the stage, publish outputs, manifest last."""

import importlib
import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pyrite import judges
from pyrite.embedding.models import base_folder, model_digest
from pyrite.errors import ACCESS_DENIED, DISK_FULL, PyriteError, UserError, cannot_open_error
from pyrite.executors.counted import Counted
from pyrite.executors.publication import Publication, manifests_below
from pyrite.generation import prompt as generate_prompt
from pyrite.locks import locked
from pyrite.plan import STAGES, Step, StepState, survey
from pyrite.progress import Progress
from pyrite.sources import open_source, retention
from pyrite.spec import RunSpec
from pyrite.stages.context import StepContext
from pyrite.stages.trackers import check as check_trackers
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
        return manifests_below(self.store, self.prefix)

    def survey(self) -> list[StepState]:
        """Where every step stands now, read from the store."""
        return survey(self.spec, self.manifests(), self.external)

    def lock(self, name: str) -> Path:
        """The lock file of a step, or of the whole run ("run")."""
        return self.store.local_path(f"{self.prefix}/locks/{name}")


def open_run(spec: RunSpec, store: Store, stage: str | None = None) -> Run:
    """The run that ``spec`` describes, with the digests of its source, base model and retention set as they are now.

    Args:
        stage: look only at what this stage's result depends on. Elsewhere than on one machine the rest need not be
            there; a step that is finished is trusted to have seen it.

    Raises:
        UserError: one of them is not there, or cannot be read; or a tracker is not there.
    """
    digests: dict[str, Callable[[], str]] = {
        "source": lambda: open_source(spec.source).digest(),
        "model": lambda: model_digest(base_folder(spec.model.base, spec.model.revision)),
    }
    digests |= judges.external(spec)
    if spec.generate:
        prompt = spec.generate.prompt
        digests["generate_prompt"] = lambda: generate_prompt.digest(prompt)
    if spec.evaluate.retention:
        path = spec.evaluate.retention.path
        digests["retention"] = lambda: retention.digest(path)
    if spec.finetune.report_to and stage in (None, "finetune"):
        check_trackers(spec.finetune.report_to)
    wanted = STAGES[stage].external if stage else tuple(digests)
    try:
        return Run(spec, store, {name: digest() for name, digest in digests.items() if name in wanted})
    except OSError as error:
        raise cannot_open_error(error) from error


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
            progress.message("already finished with these inputs; nothing to do")
            return manifests[step.name]
        if state.stale:
            progress.message(f"doing it again: {state.stale}")
        return _do(run, state, manifests, progress)


def _do(run: Run, state: StepState, manifests: dict[str, dict[str, Any]], progress: Progress) -> dict[str, Any]:
    step, key = state.step, state.key
    assert key is not None
    assert state.inputs is not None
    below_scratch = f"{run.prefix}/scratch/{step.name}"
    run.store.delete_scratch(below_scratch, but=key[:16])  # of the same step with other inputs
    context = StepContext(
        run.spec, step, run.store, run.prefix, manifests, f"{below_scratch}/{key[:16]}", Counted(progress)
    )
    shutil.rmtree(context.scratch / "outputs", ignore_errors=True)
    publication = Publication(run.store, run.prefix, step.name, key)
    started, clock = datetime.now(UTC), time.monotonic()
    try:
        stage = importlib.import_module(f"pyrite.stages.{step.stage}")
        summary = stage.run(context)
        paths = _staged(context)
        entries = [_entry(name, path) for name, path in paths.items()]
        manifest = publication.outputs(paths, entries)
        if manifest:
            progress.message("another process has finished it meanwhile; its result is taken")
        else:
            outside = {name: run.external.get(name, "") for name in STAGES[step.stage].external}
            manifest = publication.finish(
                {
                    "step": step.name,
                    "key": key,
                    "attempt": publication.attempt,
                    "inputs": dict(state.inputs),
                    "external": outside,
                    "settings": run.spec.settings(*STAGES[step.stage].settings),
                    "outputs": entries,
                    "summary": summary,
                    "versions": {name: version(name) for name in _PACKAGES},
                    "machine": {"system": platform.platform(), "cpus": os.cpu_count()},
                    "started": started.isoformat(timespec="seconds"),
                    "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                    "seconds": round(time.monotonic() - clock, 2),
                }
            )
    except PyriteError:
        raise
    except Exception as error:
        raise _explained(error, run.store) from error
    run.store.delete_scratch(below_scratch)
    return manifest


def _staged(context: StepContext) -> dict[str, Path]:
    """The files that the stage has staged, by their keys, sorted."""
    staged = context.scratch / "outputs"
    paths: dict[str, Path] = {}
    for key in context.staged:
        if key.endswith("/"):
            paths |= {p.relative_to(staged).as_posix(): p for p in (staged / key).rglob("*") if p.is_file()}
        else:
            paths[key] = staged / key
    return dict(sorted(paths.items()))


def _entry(key: str, path: Path) -> dict[str, Any]:
    entry = {"key": key, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
    if path.suffix == ".parquet":
        entry["rows"] = pq.read_metadata(path).num_rows
    return entry


def _explained(error: Exception, store: Store) -> Exception:
    """A full disk or a store that cannot be written to is named as that, whichever library met it."""
    code = error.errno if isinstance(error, OSError) else None
    free = shutil.disk_usage(store.local).free
    if code in DISK_FULL or "No space left" in str(error) or free < 1 << 20:
        return store.disk_full_error()
    if isinstance(error, OSError) and code in ACCESS_DENIED:
        place = Path(os.fsdecode(error.filename)) if error.filename else store.local
        if not place.absolute().is_relative_to(store.local):
            return cannot_open_error(error)
        return UserError(f"the store {store.local} cannot be written to ({error}). Mend its permissions and try again.")
    return error
