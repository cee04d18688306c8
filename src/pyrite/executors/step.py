"""Run one step in this process: lock it, run its stage, and publish the outputs and then the manifest."""

import importlib
import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pyrite import judges, metrics
from pyrite.config import dump
from pyrite.embedding.models import base_digest
from pyrite.errors import ACCESS_DENIED, DISK_FULL, PyriteError, UserError, cannot_open_error
from pyrite.executors.publication import Publication, manifests_below
from pyrite.generation import prompt as generate_prompt
from pyrite.locks import locked
from pyrite.plan import STAGES, Step, StepState, settings, survey
from pyrite.processes import peak_memory
from pyrite.progress import NullProgress, Progress
from pyrite.sources import open_source, retention
from pyrite.spec import RunSpec
from pyrite.stages.context import StepContext
from pyrite.stages.trackers import check_trackers
from pyrite.store import ObjectCorrupted, ObjectNotFound, Store, sha256_file

#: Packages whose versions a manifest records.
_PACKAGES = ("pyrite", "sentence-transformers", "transformers", "torch", "pyarrow", "ir-measures")


@dataclass(frozen=True)
class Run:
    """A run: its RunSpec, its store, and the digests of its external inputs."""

    spec: RunSpec
    store: Store
    external: Mapping[str, str]

    @property
    def prefix(self) -> str:
        return f"runs/{self.spec.name}"

    def manifests(self) -> dict[str, dict[str, Any]]:
        """All manifests of the run by step name, including outdated ones."""
        return manifests_below(self.store, self.prefix)

    def survey(self) -> list[StepState]:
        """The current state of every step, read from the store."""
        return survey(self.spec, self.manifests(), self.external)

    def reading_context(self, progress: Progress | None = None) -> StepContext:
        """A read-only context for the stages' functions that read outputs of the run."""
        scratch = f"{self.prefix}/scratch/aside"
        return StepContext(
            self.spec, Step("evaluate"), self.store, self.prefix, self.manifests(), scratch, progress or NullProgress()
        )

    def save_spec(self) -> None:
        """Write the RunSpec to run.yaml in the store, unless it is there already."""
        key, text = f"{self.prefix}/run.yaml", dump(self.spec).encode()
        with suppress(ObjectNotFound, ObjectCorrupted):
            if self.store.read(key) == text:
                return
        self.store.write(key, text)

    def lock(self, name: str) -> Path:
        """The lock file of the step ``name``, or of the run ("run")."""
        return self.store.local_path(f"{self.prefix}/locks/{name}")

    def log(self, step: Step) -> Path:
        """The log file of a step."""
        return self.store.local_path(f"{self.prefix}/logs/{step.name}.log")


def open_run(spec: RunSpec, store: Store, stage: str | None = None) -> Run:
    """The run of ``spec``, with the current digests of its source, prompts, base model and retention sets.

    Args:
        stage: read only the inputs of this stage. A pod may not have the others, whose digests are in manifests.

    Raises:
        UserError: an input is missing or cannot be read, or a tracker is not installed.
    """
    digests: dict[str, Callable[[], str]] = {
        "source": lambda: open_source(spec.source).digest(),
        "model": partial(base_digest, spec.model),
    }
    digests |= judges.external(spec)
    if spec.generate:
        digests["generate_prompt"] = partial(generate_prompt.digest, spec.generate.prompt)
    if spec.evaluate.retention:
        sets = spec.evaluate.retention
        digests["retention"] = partial(retention.digest, [sets.path])
        digests["retention_report"] = partial(retention.digest, sets.report, retention.REPORT)
    if spec.finetune.report_to and stage in (None, "finetune"):
        check_trackers(spec.finetune.report_to)
    wanted = {name for name, info in STAGES.items() if stage in (None, name) for name in info.external}
    try:
        # "" for an input that the run does not have. Without it, the digest in an older manifest would count.
        return Run(spec, store, {name: digests[name]() if name in digests else "" for name in sorted(wanted)})
    except OSError as error:
        raise cannot_open_error(error) from error


def run_step(run: Run, step: Step, progress: Progress, *, force: bool = False) -> dict[str, Any]:
    """Run ``step`` unless it is finished, and return its manifest.

    Raises:
        UserError: an earlier step is unfinished, another process runs the step, or the input is invalid.
        PyriteError: the step failed.
    """
    with locked(run.lock(step.name), f"{step.label} of run {run.spec.name}"):
        manifests = run.manifests()
        states = survey(run.spec, manifests, run.external)
        state = next((state for state in states if state.step == step), None)
        if state is None:
            others = [each.step for each in states if each.step[:2] == step[:2]]
            why = f"its shards are 0 to {len(others) - 1}" if others else "it has fewer iterations"
            raise UserError(f"run {run.spec.name} has no step {step.name}: {why}. `pyrite status` lists its steps.")
        if state.state == "waiting":
            missing = next(state.step for state in states if state.state == "ready")
            raise UserError(f"{step.label} needs {missing.label}, which is not finished. Run that step first.")
        if state.state == "done" and not force:
            progress.message("already finished with these inputs; nothing to do")
            return manifests[step.name]
        if state.stale:
            progress.message(f"running again: {state.stale}")
        return _run_stage(run, state, manifests, progress)


def _run_stage(run: Run, state: StepState, manifests: dict[str, dict[str, Any]], progress: Progress) -> dict[str, Any]:
    """Run the step's stage, then publish its outputs and its manifest."""
    step, key = state.step, state.key
    assert key is not None
    assert state.inputs is not None
    scratch = f"{run.prefix}/scratch/{step.name}"
    run.store.delete_scratch(scratch, exclude=key[:16])  # of an earlier attempt with other inputs
    context = StepContext(
        run.spec, step, run.store, run.prefix, manifests, f"{scratch}/{key[:16]}", MeteredProgress(progress)
    )
    shutil.rmtree(context.scratch / "outputs", ignore_errors=True)
    publication = Publication(run.store, run.prefix, step.name, key)
    started, clock = datetime.now(UTC), time.monotonic()
    try:
        summary = importlib.import_module(f"pyrite.stages.{step.stage}").run(context)
        paths = _staged_files(context)
        entries = [_output_entry(name, path) for name, path in paths.items()]
        manifest = publication.publish_outputs(paths, entries)
        if manifest:
            progress.message("another process finished this step first; its result is used")
        else:
            manifest = publication.publish_manifest(
                {
                    "step": step.name,
                    "key": key,
                    "attempt": publication.attempt,
                    "inputs": dict(state.inputs),
                    "external": {name: run.external.get(name, "") for name in STAGES[step.stage].external},
                    "settings": settings(run.spec, step),
                    "outputs": entries,
                    "summary": summary,
                    "versions": {name: version(name) for name in _PACKAGES},
                    "machine": {"system": platform.platform(), "cpus": os.cpu_count()},
                    "started": started.isoformat(timespec="seconds"),
                    "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                    "seconds": round(time.monotonic() - clock, 2),
                    "peak_memory_bytes": peak_memory(),
                }
            )
    except PyriteError:
        raise
    except Exception as error:
        raise _to_user_error(error, run.store) from error
    run.store.delete_scratch(scratch)
    return manifest


def _staged_files(context: StepContext) -> dict[str, Path]:
    """The files that the stage has written, sorted by key."""
    staged = context.scratch / "outputs"
    paths: dict[str, Path] = {}
    for key in context.staged:
        if key.endswith("/"):
            paths |= {p.relative_to(staged).as_posix(): p for p in (staged / key).rglob("*") if p.is_file()}
        else:
            paths[key] = staged / key
    return dict(sorted(paths.items()))


def _output_entry(key: str, path: Path) -> dict[str, Any]:
    entry = {"key": key, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
    if path.suffix == ".parquet":
        entry["rows"] = pq.read_metadata(path).num_rows
    return entry


def _to_user_error(error: Exception, store: Store) -> Exception:
    """A UserError if ``error`` comes from a full disk or missing permissions, in any library; else ``error``."""
    code = error.errno if isinstance(error, OSError) else None
    free = shutil.disk_usage(store.local).free
    if code in DISK_FULL or "No space left" in str(error) or free < 1 << 20:
        return store.disk_full_error()
    if isinstance(error, OSError) and code in ACCESS_DENIED:
        place = Path(os.fsdecode(error.filename)) if error.filename else store.local
        if not place.absolute().is_relative_to(store.local):
            return cannot_open_error(error)
        return UserError(f"the store {store.local} cannot be written to ({error}). Fix its permissions and try again.")
    return error


class MeteredProgress:
    """Counts progress in the step's metrics, and passes it on to ``inner``."""

    def __init__(self, inner: Progress):
        self._inner = inner
        self._unit = ""

    def begin(self, total: int | None, unit: str) -> None:
        for gauge in (metrics.STEP_UNITS, metrics.STEP_UNITS_DONE):
            gauge.clear()
        self._unit = unit
        metrics.STEP_UNITS_DONE.labels(unit).set(0)
        if total is not None:
            metrics.STEP_UNITS.labels(unit).set(total)
        self._inner.begin(total, unit)

    def advance(self, n: int = 1) -> None:
        if self._unit:
            metrics.STEP_UNITS_DONE.labels(self._unit).inc(n)
        self._inner.advance(n)

    def message(self, text: str) -> None:
        self._inner.message(text)
