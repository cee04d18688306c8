"""Run a whole plan on this machine: each step in a process of its own, judge shards side by side.

Steps are forked from a server process that has the slow imports behind it. The server and its steps die with this
process, however it dies; the step's own lock keeps a last moment of an orphan from meeting its successor.
"""

import ctypes
import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

from pyrite.config import dump
from pyrite.errors import PyriteError, UserError, to_pyrite_error
from pyrite.executors.child import Warnings, tell
from pyrite.executors.step import Run, run_step
from pyrite.llm.pool import Pool
from pyrite.locks import locked
from pyrite.plan import Step, StepState, next_steps
from pyrite.progress import ProgressEvents
from pyrite.spec import RunSpec
from pyrite.store import open_store

_GRACE_SECONDS = 20

#: How the last line of a failed step's log begins.
FAILED = "failed: "


class Listener(Protocol):
    """Who is told how a run goes."""

    def planned(self, states: Sequence[StepState]) -> None:
        """Before the first step: where every step stands."""
        ...

    def started(self, step: Step) -> None: ...

    def event(self, step: Step, event: dict[str, Any]) -> None:
        """A progress event of a running step, as ``pyrite.progress.ProgressEvents`` passes them on."""
        ...

    def finished(self, step: Step, manifest: dict[str, Any]) -> None: ...


@dataclass
class _Child:
    step: Step
    process: BaseProcess
    events: Connection
    error: tuple[str, int] | None = None


def execute(run: Run, listener: Listener, *, watched: bool = False) -> None:
    """Do every step that is not done, in order, and return when the run is finished.

    Args:
        watched: have steps tell their metrics too, as events "metrics".

    Raises:
        UserError: another process works on the run, or a step met bad input.
        PyriteError: a step failed; the message names its log.
    """
    run.store.ensure_writable()
    with locked(run.lock("run"), f"run {run.spec.name}"):
        run.store.write(f"{run.prefix}/run.yaml", dump(run.spec).encode())
        states = run.survey()
        _check_judge(run.spec, {state.step.stage for state in states if state.state != "done"})
        listener.planned(states)
        before: list[Step] = []
        while todo := next_steps(states):
            steps = [state.step for state in todo][: run.spec.resources.judge_workers]
            if steps == before:
                raise PyriteError(
                    f"{steps[0].label} finished but is still not done; its log is in {_log(run, steps[0])}"
                )
            _together(run, steps, listener, watched)
            states, before = run.survey(), steps


def _check_judge(spec: RunSpec, stages: Collection[str]) -> None:
    """What is wrong with a language model's settings is told now, and not after hours of what comes before it."""
    if "generate" in stages and spec.generate:
        Pool.from_spec(spec, spec.generator_model)
    if "judge" in stages and spec.judge.needs_server:
        Pool.from_spec(spec, spec.judge.server_model)


def _together(run: Run, steps: Sequence[Step], listener: Listener, watched: bool) -> None:
    """Run ``steps`` side by side and wait for all. On an error or an interrupt the others are stopped first."""
    children = [_start(run, step, watched) for step in steps]
    try:
        for step in steps:
            listener.started(step)
        _follow(run, children, listener)
    finally:
        for child in children:
            if child.process.is_alive():
                child.process.terminate()
        for child in children:
            child.process.join(_GRACE_SECONDS)
            if child.process.is_alive():
                child.process.kill()
                child.process.join()
            child.events.close()


def _follow(run: Run, children: Sequence[_Child], listener: Listener) -> None:
    open_pipes = {child.events: child for child in children}
    while open_pipes:
        for pipe in wait(list(open_pipes)):
            assert isinstance(pipe, Connection)
            child = open_pipes[pipe]
            try:
                event = json.loads(pipe.recv_bytes())
            except EOFError:
                del open_pipes[pipe]
                child.process.join()
                if child.process.exitcode != 0:
                    raise _failure(run, child) from None
                listener.finished(child.step, run.manifests()[child.step.name])
                continue
            if event["event"] == "error":
                child.error = (event["text"], event["code"])
            else:
                listener.event(child.step, event)


def _failure(run: Run, child: _Child) -> PyriteError:
    log = _log(run, child.step)
    if child.error is None:
        code = child.process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        # What kills a process leaves it no time to say so.
        with suppress(OSError):
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("a") as file:
                file.write(f"{FAILED}it {how}{hint}\n")
        return PyriteError(f"{child.step.label} {how}{hint}. Its log: {log}. The same command goes on from here.")
    text, code = child.error
    if code == UserError.exit_code:
        return UserError(text)
    return PyriteError(f"{child.step.label} failed: {text} Its log: {log}. The same command goes on from here.")


def _log(run: Run, step: Step) -> Path:
    return run.store.local_path(f"{run.prefix}/logs/{step.name}.log")


def _start(run: Run, step: Step, watched: bool) -> _Child:
    if sys.platform == "linux":
        context: Any = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["pyrite.executors.preload"])
    else:
        context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    arguments = (
        run.spec.model_dump_json(by_alias=True),
        run.store.url,
        dict(run.external),
        tuple(step),
        sender,
        watched,
    )
    process = context.Process(target=_child, args=arguments, name=step.name)
    process.start()
    sender.close()
    return _Child(step, process, receiver)


def _child(
    spec: str, store: str, external: dict[str, str], step: tuple[Any, ...], pipe: Connection, watched: bool
) -> None:
    """Body of a step's process: run the step, tell the parent by the pipe, leave with the error's exit code."""
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    run = Run(RunSpec.model_validate_json(spec), open_store(store), external)
    doing = Step(*step)

    one_at_a_time = threading.Lock()

    def emit(event: dict[str, Any]) -> None:
        with one_at_a_time:
            pipe.send_bytes(json.dumps(event).encode())

    told = tell(emit) if watched else None
    code = 0
    try:
        _output_to(_log(run, doing))
        logging.basicConfig(format="%(asctime)s %(message)s")
        logging.getLogger("pyrite").addHandler(Warnings(emit))
        run_step(run, doing, ProgressEvents(emit))
    except Exception as error:
        known = to_pyrite_error(error)
        code, text = (known.exit_code, str(known)) if known else (1, f"{type(error).__name__}: {error}.")
        # Before the log, which may be on the disk that is full.
        emit({"event": "error", "text": text, "code": code})
        with suppress(OSError):
            traceback.print_exc()
            print(f"{FAILED}{' '.join(text.split())}", flush=True)
    if told:
        told()
    pipe.close()
    sys.exit(code)


def _output_to(log: Path) -> None:
    """Have all that this process says go to the end of the file ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
