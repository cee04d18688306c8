"""Execute a run on this machine: each step in its own process, shards in parallel.

Steps are forked from a server process that has imported the slow modules once. If this process is killed, the server
and the steps are killed too. A step that is still ending holds its lock, so the same command waits for it.
"""

import json
import multiprocessing
import signal
import sys
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from pyrite.errors import PyriteError, UserError
from pyrite.executors.child import FAILED, run_child
from pyrite.executors.step import Run
from pyrite.llm.pool import Pool
from pyrite.locks import locked
from pyrite.plan import STAGES, Step, StepState, next_steps
from pyrite.spec import RunSpec

#: Time that a step has to end after SIGTERM.
_GRACE_SECONDS = 20


class Listener(Protocol):
    """Receives the progress of a run."""

    def planned(self, states: Sequence[StepState]) -> None:
        """Called before the first step, with the state of every step."""
        ...

    def started(self, step: Step) -> None: ...

    def event(self, step: Step, event: dict[str, Any]) -> None:
        """Called for each event of a running step: those of ``ProgressEvents``, and "metrics" if they are reported."""
        ...

    def finished(self, step: Step, manifest: dict[str, Any]) -> None: ...


@dataclass
class _StepProcess:
    step: Step
    process: BaseProcess
    events: Connection
    error: tuple[str, int] | None = None


def execute(run: Run, listener: Listener, *, report_metrics: bool = False) -> None:
    """Run every unfinished step, in order, and return when the run is finished.

    Args:
        report_metrics: also send the metrics of steps to ``listener``.

    Raises:
        UserError: another process is working on the run, or a step got invalid input.
        PyriteError: a step failed; the message names its log.
    """
    run.store.ensure_writable()
    with locked(run.lock("run"), f"run {run.spec.name}"):
        run.save_spec()
        states = run.survey()
        unfinished = {state.step.stage for state in states if state.state != "done"}
        check_llm_settings(run.spec, unfinished)
        if run.spec.finetune.gpus > 1 and "finetune" in unfinished:
            from pyrite.training.workers import require_gpus  # imports torch

            require_gpus(run.spec.finetune.gpus)
        listener.planned(states)
        previous: list[Step] = []
        while ready := next_steps(states):
            at_once = 1 if STAGES[ready[0].step.stage].needs_device else run.spec.resources.judge_workers
            steps = [state.step for state in ready][:at_once]
            if steps == previous:
                raise PyriteError(
                    f"{steps[0].label} finished, but its result does not match the run: its inputs may have changed "
                    f"meanwhile. Run the same command again; if this repeats, read its log: {run.log(steps[0])}"
                )
            _run_in_parallel(run, steps, listener, report_metrics)
            states, previous = run.survey(), steps


def check_llm_settings(spec: RunSpec, stages: Collection[str]) -> None:
    """Report invalid LLM settings now, not hours later when the first of ``stages`` calls the LLM."""
    if "generate" in stages:
        Pool.open(spec.generator_servers, spec.generator_model)
    used = [spec.main_judge, spec.first_judge] if "judge" in stages else []
    for judge in (*used, spec.evaluation_judge if "assess" in stages else None):
        if judge and judge.spec.needs_server:
            Pool.open(judge.servers, judge.spec.server_model)


def _run_in_parallel(run: Run, steps: Sequence[Step], listener: Listener, report_metrics: bool) -> None:
    """Run each of ``steps`` in a process and wait for all. On an error or an interrupt, stop all processes."""
    children = [_start(run, step, report_metrics) for step in steps]
    try:
        for step in steps:
            listener.started(step)
        _forward_events(run, children, listener)
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


def _forward_events(run: Run, children: Sequence[_StepProcess], listener: Listener) -> None:
    """Pass the children's events to ``listener`` until all children have ended. Raises the first child's error."""
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
                    raise _step_error(run, child) from None
                listener.finished(child.step, run.manifests()[child.step.name])
                continue
            if event["event"] == "error":
                child.error = (event["text"], event["code"])
            else:
                listener.event(child.step, event)


def _step_error(run: Run, child: _StepProcess) -> PyriteError:
    log = run.log(child.step)
    resume = f"Its log: {log}. The same command resumes the run."
    if child.error:
        text, code = child.error
        return (
            UserError(text)
            if code == UserError.exit_code
            else PyriteError(f"{child.step.label} failed: {text} {resume}")
        )
    code = child.process.exitcode or 0
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    hint = " (out of memory?)" if code == -signal.SIGKILL else ""
    # A killed process cannot log its own end.
    with suppress(OSError):
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            file.write(f"{FAILED}it {how}{hint}\n")
    return PyriteError(f"{child.step.label} {how}{hint}. {resume}")


def _start(run: Run, step: Step, report_metrics: bool) -> _StepProcess:
    if sys.platform == "linux":
        context: Any = multiprocessing.get_context("forkserver")
        # Imported once, because importing torch and transformers takes 7 seconds.
        context.set_forkserver_preload(["transformers.trainer", *(f"pyrite.stages.{stage}" for stage in STAGES)])
    else:
        context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    spec = run.spec.model_dump_json(by_alias=True)
    arguments = (spec, run.store.url, dict(run.external), tuple(step), sender, report_metrics)
    process = context.Process(target=run_child, args=arguments, name=step.name)
    process.start()
    sender.close()
    return _StepProcess(step, process, receiver)
