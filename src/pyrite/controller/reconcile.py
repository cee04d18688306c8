"""What to do about one run, and what to show of it: pure functions of what is stored and what is seen."""

import hashlib
import json
from collections.abc import Sequence, Set
from dataclasses import dataclass, field, replace
from datetime import datetime

from pyrite.controller import manifests
from pyrite.controller.observed import Job, Pods, Server, Stored
from pyrite.controller.resource import ENDED, Phase, Status, TrainingRun
from pyrite.controller.settings import Settings
from pyrite.controller.status import conditions, results
from pyrite.plan import Step, StepState, next_steps, step_key
from pyrite.spec import RunSpec


@dataclass(frozen=True)
class Observed:
    """What one turn sees of a run and of those beside it."""

    jobs: Sequence[Job]
    pods: Pods
    #: None where a Job runs and nothing has been edited: there is nothing to look up then.
    stored: Stored | None = None
    server: Server | None = None
    #: Other runs that ask the server or wait for it, and other runs whose Jobs hold GPUs or will.
    asking: Set[str] = frozenset()
    on_gpus: Set[str] = frozenset()


@dataclass(frozen=True)
class Actions:
    """What to create and delete, and the run's status."""

    status: Status
    create: list[manifests.Manifest] = field(default_factory=list)
    delete: list[str] = field(default_factory=list)
    #: Whether the run needs the server up, or its GPUs free; None: it does not care.
    server: bool | None = None
    #: What is wrong with the server, where the run can do nothing without it.
    trouble: str = ""
    #: Whether the run only waits its turn: nothing is wrong, however long it takes.
    queued: bool = False


def is_settled(run: TrainingRun) -> bool:
    """Whether the run has ended and was not edited since: nothing is looked up for it."""
    return run.status.phase in ENDED and run.status.observed_generation == run.generation


def needs_store(run: TrainingRun, jobs: Sequence[Job], pods: Pods) -> bool:
    """Whether the store is to be read: not where a Job just goes on, nor for a run that is stopped."""
    if run.spec is None or run.control.cancel or run.control.suspend:
        return False
    if pods.stuck:
        return True
    unfinished = [job for job in jobs if not job.ended]
    return not (
        len(unfinished) == 1
        and not unfinished[0].deleting
        and run.status.phase in ("Waiting", "Running")
        and run.status.job == unfinished[0].name
        and run.status.observed_generation == run.generation
    )


def held_up(run: TrainingRun, message: str, now: datetime) -> Actions:
    """What to show while the store or the cluster refuses: what runs goes on, and the next turn tries again."""
    status = run.status.model_copy(update={"message": message})
    return Actions(status.model_copy(update={"conditions": conditions(run.status, status, message, run, now)}))


def reconcile(run: TrainingRun, seen: Observed, settings: Settings, store: str, now: datetime) -> Actions:
    """The next thing to do for ``run``.

    Args:
        store: the store's URL, for the addresses that the status shows.
    """
    if is_settled(run):
        return Actions(run.status)
    decision = _reconcile(run, seen, settings, store, now)
    status = decision.status
    finished = (status.finished or now.isoformat(timespec="seconds")) if status.phase in ENDED else None
    status = status.model_copy(update={"observed_generation": run.generation, "finished": finished})
    trouble = seen.pods.stuck or decision.trouble
    status = status.model_copy(update={"conditions": conditions(run.status, status, trouble, run, now)})
    return replace(decision, status=status)


def _reconcile(run: TrainingRun, seen: Observed, settings: Settings, store: str, now: datetime) -> Actions:
    unfinished = [job for job in seen.jobs if not job.ended]
    if run.spec is None:
        mend = f"{run.wrong} Mend it: `kubectl edit trainingrun {run.name}`."
        return _stopping(run, unfinished, seen.pods, "Failed", mend)
    if run.control.cancel:
        kept = "cancelled; what is finished stays in the store."
        return _stopping(run, unfinished, seen.pods, "Cancelled", kept)
    if run.control.suspend:
        again = "suspended; set spec.suspend to false to go on."
        return _stopping(run, unfinished, seen.pods, "Suspended", again)
    if seen.stored is None:
        return _follow(run, unfinished[0], seen, run.status, settings)
    return _advance(run, seen, seen.stored, settings, store, now)


def _advance(
    run: TrainingRun, seen: Observed, stored: Stored, settings: Settings, store: str, now: datetime
) -> Actions:
    assert run.spec is not None
    status = results(run, stored, settings, store)
    if run.status.started is None:
        # What is in the store is another run's until this one has found that it may go on from there. That can have
        # been said of a Job alone: a controller may die before it shows the status.
        voided = [state for state in stored.states if state.stale]
        if voided and not any(job.owner == run.uid for job in seen.jobs):
            return Actions(_at(status, "Failed", _name_taken(run, voided[0])))
        status = status.model_copy(update={"started": now.isoformat(timespec="seconds")})
    todo = next_steps(stored.states)
    if not todo:
        all_done = f"{len(stored.states)}/{len(stored.states)}"
        ended = {"phase": "Succeeded", "step": "", "stage": None, "iteration": None, "shards": None, "job": ""}
        return Actions(status.model_copy(update={**ended, "progress": all_done}))
    steps, key = _together(run.spec, stored.states, todo[0].step)
    status = _on(status, steps, stored.states)
    manifest = manifests.job(run, steps, key, settings)
    name = manifest["metadata"]["name"]
    others = [job for job in seen.jobs if not job.ended and job.name != name]
    if others:
        return Actions(
            _at(status, "Running", _leaving(run, others[0]), seen.pods.trouble),
            delete=[job.name for job in others if not job.deleting],
        )
    job = next((job for job in seen.jobs if job.name == name), None)
    if job is None and seen.pods.left:
        words = f"waiting for pod {seen.pods.left} to end: its Job is gone, and no two do the same work."
        return Actions(_at(status, "Running", words, seen.pods.trouble))
    if job is None:
        return _begin(run, manifest, status, seen, settings)
    if job.deleting:
        return Actions(_at(status, "Running", _leaving(run, job), seen.pods.trouble))
    labels = manifest["metadata"]["labels"]
    if not job.ended:
        if not seen.pods.stuck:
            return _follow(run, job, seen, status, settings)
        if job.template != labels[manifests.TEMPLATE_LABEL]:  # what is done stays done: pods find it in the store
            return Actions(_at(status, "Running", "trying again with the chart's new settings."), delete=[name])
        # What its pods wait for may be the description, which a person may have deleted.
        create = [manifests.description(run, settings)] if seen.pods.unmade else []
        return replace(_follow(run, job, seen, status, settings), create=create)
    if job.ended == "Failed" and job.description != labels[manifests.DESCRIPTION_LABEL]:
        return Actions(_at(status, "Running", "trying again with the edited run."), delete=[name])
    return Actions(_at(status.model_copy(update={"job": name}), "Failed", _failure(job, seen, store)))


def _begin(
    run: TrainingRun, manifest: manifests.Manifest, status: Status, seen: Observed, settings: Settings
) -> Actions:
    """Create the step's Job, once the GPUs are with who needs them."""
    assert run.spec is not None
    server = seen.server
    if manifests.uses_server(run.spec, status.stage, settings):
        if seen.on_gpus:
            words = f"run {min(seen.on_gpus)} has the GPUs; the server starts after it."
            return Actions(_at(status, "Waiting", words), queued=True)
        if server is None:
            assert settings.server is not None
            name = settings.server.stateful_set
            return Actions(_at(status, "Waiting", f"there is no StatefulSet {name}: is server.enabled set?"))
        if not server.ready:
            words = f"the vLLM server is starting: none of {server.replicas or 'its'} replicas answers yet."
            waiting = _at(status, "Waiting", words, server.trouble)
            return Actions(waiting, server=True, trouble=server.trouble)
        server_wanted: bool | None = True
    elif manifests.needs_gpu(manifest):
        if seen.asking:
            return Actions(_at(status, "Waiting", f"run {min(seen.asking)} is judging on the GPUs."), queued=True)
        if server and (server.replicas or server.present):
            return Actions(_at(status, "Waiting", "the vLLM server is making room on the GPUs."), server=False)
        server_wanted = False
    else:
        server_wanted = None
    name = manifest["metadata"]["name"]
    status = _at(status.model_copy(update={"job": name}), "Running", f"{status.step}: started.")
    return Actions(status, create=[manifests.description(run, settings), manifest], server=server_wanted)


def _follow(run: TrainingRun, job: Job, seen: Observed, status: Status, settings: Settings) -> Actions:
    """The status of a run whose Job goes on."""
    steps, _, _ = status.progress.partition(" ")
    progress = steps if job.total == 1 else f"{steps} ({job.done}/{job.total})"
    changes = {"job": job.name, "shards": {"done": job.done, "total": job.total}, "progress": progress}
    status = Status.model_validate({**status.model_dump(), **changes})
    if job.queued:
        words = f"{status.step}: waits to be admitted to the queue {run.control.queue}."
        return Actions(_at(status, "Waiting", words), queued=True)
    going = "running." if job.total == 1 else f"{job.done} of {job.total} shards done."
    server, wanted, lost, trouble = seen.server, None, "", seen.pods.trouble
    if server and run.spec and manifests.uses_server(run.spec, job.stage, settings):
        wanted = None if server.replicas else True  # somebody else took it away
        trouble = f"{server.trouble} {trouble}".strip()
        if not server.ready:
            lost = going = "the vLLM server does not answer."
    elif server and job.gpu and not seen.pods.running and (server.replicas or server.present):
        wanted = False  # a second controller scaled it up as this Job began, and each would wait for the other's GPUs
    words = f"{status.step}:" if job.total == 1 and seen.pods.stuck else f"{status.step}: {going}"
    return Actions(_at(status, "Running", words, trouble), server=wanted, trouble=f"{lost} {trouble}" if lost else "")


def _stopping(run: TrainingRun, unfinished: Sequence[Job], pods: Pods, phase: Phase, message: str) -> Actions:
    """Delete what runs, and be in ``phase`` once it is gone."""
    if unfinished:
        status = _at(run.status, "Running", f"stopping {unfinished[0].name}.", message, pods.trouble)
        return Actions(status, delete=[job.name for job in unfinished if not job.deleting])
    return Actions(_at(run.status.model_copy(update={"job": "", "shards": None}), phase, message))


def _failure(job: Job, seen: Observed, store: str) -> str:
    again = "Then raise spec.retry, or edit what was wrong: the run goes on from here."
    if job.ended == "Complete":
        return (
            f"Job {job.name} is complete, but {store} does not hold its result: do the controller and the workers use "
            f"the same store? {again}"
        )
    said = seen.pods.last_words.get(job.name) or f"{job.reason}: {job.message}"
    why = f" (the Job's deadline had passed: {job.message})" if job.reason == "DeadlineExceeded" else ""
    return f"{job.name} failed{why}: {said} {again}"


def _leaving(run: TrainingRun, job: Job) -> str:
    """What is said of a Job that has to go first. Of one that goes already nobody knows who deleted it, and why."""
    if job.deleting:
        return f"waiting for the pods of {job.name} to end."
    why = "the run was edited" if job.owner == run.uid else "it is of an earlier run of this name"
    return f"stopping {job.name}: {why}; what is judged and trained so far is kept."


def _name_taken(run: TrainingRun, state: StepState) -> str:
    return (
        f"the store already holds a run {run.name} that was made otherwise ({state.step.label}: {state.stale}), and "
        "this one would replace it. Give this run another name, or make the old one's settings its own."
    )


def _together(spec: RunSpec, states: Sequence[StepState], first: Step) -> tuple[list[Step], str]:
    """All shards of a step, done or not, and a key of what their results depend on that the controller knows.

    Of what comes from outside it knows only what finished shards tell: with that, the key would change as they finish.
    """
    beside = [state for state in states if state.step[:2] == first[:2]]
    keys = json.dumps([step_key(spec, state.step, state.inputs or {}, {}) for state in beside])
    return [state.step for state in beside], hashlib.sha256(keys.encode()).hexdigest()


def _on(status: Status, steps: Sequence[Step], states: Sequence[StepState]) -> Status:
    done = sum(state.state == "done" for state in states)
    return status.model_copy(
        update={
            "step": steps[0]._replace(shard=None).label,
            "stage": steps[0].stage,
            "iteration": steps[0].iteration,
            "progress": f"{done}/{len(states)}",
            "shards": None,
        }
    )


def _at(status: Status, phase: Phase, *words: str) -> Status:
    return status.model_copy(update={"phase": phase, "message": " ".join(filter(None, words))})
