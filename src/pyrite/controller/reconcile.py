"""Decides the next actions for one run and its new status. All functions are pure."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from pyrite.controller import manifests
from pyrite.controller.observed import Job, Observed, Pods, Stored
from pyrite.controller.resource import ENDED, Phase, ProbeResult, Status, TrainingRun
from pyrite.controller.settings import Settings, StageSettings
from pyrite.controller.status import conditions, over_budget, results, with_cost
from pyrite.costs import pairs_per_query
from pyrite.plan import PROBE, State, Step, StepState, next_steps, no_go, probe_key, step_key
from pyrite.spec import RunSpec


@dataclass(frozen=True)
class Actions:
    """The objects to create and delete, and the run's new status."""

    status: Status
    create: list[manifests.Manifest] = field(default_factory=list)
    delete: list[str] = field(default_factory=list)
    #: Jobs that have exceeded their deadline.
    expire: list[str] = field(default_factory=list)
    #: True: the run needs the vLLM server; False: it needs the server's GPUs; None: neither.
    want_server: bool | None = None
    #: Why the vLLM server is not ready, if the run cannot continue without it.
    problem: str = ""
    #: Whether the run waits for other runs to release the GPUs, or for Kueue. Such a run is not degraded.
    queued: bool = False


def is_settled(run: TrainingRun) -> bool:
    """Whether the run has ended and was not edited since, so that there is nothing to do for it."""
    return run.status.phase in ENDED and run.status.observed_generation == run.generation


def needs_store(run: TrainingRun, jobs: Sequence[Job], pods: Pods, settings: Settings, now: datetime) -> bool:
    """Whether the store must be read: not while a Job of an unedited run makes progress, nor for a stopped run."""
    if _stop_reason(run, settings, now):
        return False
    if pods.blocked:
        return True
    unfinished = [job for job in jobs if not job.ended]
    return not (
        len(unfinished) == 1
        and not unfinished[0].deleting
        and run.status.phase in ("Waiting", "Running")
        and run.status.job == unfinished[0].name
        and run.status.observed_generation == run.generation
    )


def report_error(run: TrainingRun, message: str, now: datetime) -> Actions:
    """Show an error in the run's status and do nothing else. Running Jobs continue, and the next sync retries."""
    status = run.status.model_copy(update={"message": message})
    return Actions(status.model_copy(update={"conditions": conditions(run.status, status, message, run, now)}))


def reconcile(run: TrainingRun, observed: Observed, settings: Settings, store: str, now: datetime) -> Actions:
    """The next actions for ``run``.

    Args:
        store: the store's URL, for the addresses in the status.
    """
    if is_settled(run):
        return Actions(run.status)
    actions = _next_actions(run, observed, settings, store, now)
    active = _uses_nodes(run, actions, observed, settings)
    status = with_cost(run.status, actions.status, active, settings.cost, now)
    status = status.model_copy(update={"over_budget": over_budget(run, settings.cost, now)})
    finished = (status.finished or now.isoformat(timespec="seconds")) if status.phase in ENDED else None
    status = status.model_copy(update={"observed_generation": run.generation, "finished": finished})
    problem = observed.pods.blocked or actions.problem
    status = status.model_copy(update={"conditions": conditions(run.status, status, problem, run, now)})
    return replace(actions, status=status)


def _next_actions(run: TrainingRun, observed: Observed, settings: Settings, store: str, now: datetime) -> Actions:
    unfinished = [job for job in observed.jobs if not job.ended]
    if reason := _stop_reason(run, settings, now):
        return _stop(run, unfinished, observed.pods, *reason)
    if observed.stored is None:  # see needs_store: exactly one Job is unfinished
        return _track(run, unfinished[0], observed, run.status, settings, now)
    return _advance(run, observed, observed.stored, settings, store, now)


def _stop_reason(run: TrainingRun, settings: Settings, now: datetime) -> tuple[Phase, str] | None:
    """Why a run must not have Jobs, whatever the store holds: the phase to enter, and the message."""
    if run.spec is None:
        return "Failed", f"{run.error} Fix it: `kubectl edit trainingrun {run.name}`."
    if run.control.cancel:
        return "Cancelled", "cancelled; finished steps stay in the store."
    if run.control.suspend:
        return "Suspended", "suspended; set spec.suspend to false to resume."
    if settings.cost.on_budget == "suspend" and (message := over_budget(run, settings.cost, now)):
        return "Suspended", f"suspended: {message}"
    return None


def _uses_nodes(run: TrainingRun, actions: Actions, observed: Observed, settings: Settings) -> bool:
    """Whether the run costs money: its pods run or start, or it needs the vLLM server, ready or not."""
    status = actions.status
    if status.phase != "Running":
        return actions.want_server is True
    server = run.spec is not None and manifests.uses_server(run.spec, status.stage, settings)
    return server or not observed.pods.blocked


def _advance(
    run: TrainingRun, observed: Observed, stored: Stored, settings: Settings, store: str, now: datetime
) -> Actions:
    assert run.spec is not None
    unfinished = [job for job in observed.jobs if not job.ended]
    status = results(run, stored, store)
    if run.status.started is None:
        # Stored steps may belong to an older run of this name. If its spec was different, refuse to replace them. If
        # this run has a Job, an earlier sync has passed this check and was killed before it wrote `started`.
        stale = [state for state in stored.states if state.stale]
        if stale and not any(job.owner == run.uid for job in observed.jobs):
            return Actions(_with_phase(status, "Failed", _name_taken(run, stale[0])))
        status = status.model_copy(update={"started": now.isoformat(timespec="seconds")})
    if problem := _rejected_judge(run, stored, status):
        return _stop(replace(run, status=status), unfinished, observed.pods, "Failed", problem)
    states = _until_probe(run, stored, status) if run.control.until else stored.states
    todo = next_steps(states)
    if not todo:
        ended = {"step": "", "stage": None, "iteration": None, "shards": None, "job": ""}
        status = status.model_copy(update={**ended, "progress": f"{len(states)}/{len(states)}"})
        if run.control.until and status.probe:
            return _stop(replace(run, status=status), unfinished, observed.pods, "Probed", _probed(run, status.probe))
        return Actions(_with_phase(status, "Succeeded", status.message))
    steps, key = _steps_of_job(run.spec, states, todo[0].step)
    status = _with_step(status, steps, states)
    manifest = manifests.job(run, steps, key, settings, _llm_work(run.spec, todo[0].step, stored))
    name = manifest["metadata"]["name"]
    others = [job for job in observed.jobs if not job.ended and job.name != name]
    if others:
        return Actions(
            _with_phase(status, "Running", _deletion(run, others[0]), observed.pods.problem),
            delete=[job.name for job in others if not job.deleting],
        )
    job = next((job for job in observed.jobs if job.name == name), None)
    if job is None and observed.pods.leftover:
        message = f"waiting for pod {observed.pods.leftover} of a deleted Job to end before its step is repeated."
        return Actions(_with_phase(status, "Running", message, observed.pods.problem))
    if job is None:
        return _start(run, manifest, status, observed, settings)
    if job.deleting:
        return Actions(_with_phase(status, "Running", _deletion(run, job), observed.pods.problem))
    labels = manifest["metadata"]["labels"]
    if not job.ended:
        if not observed.pods.blocked:
            return _track(run, job, observed, status, settings, now)
        if job.template != labels[manifests.TEMPLATE_LABEL]:  # its work so far is in the store
            return Actions(_with_phase(status, "Running", "retrying with the chart's new settings."), delete=[name])
        # The pods may wait for a run config that a user deleted.
        create = [manifests.run_config(run, settings)] if observed.pods.creating else []
        return replace(_track(run, job, observed, status, settings, now), create=create)
    if job.ended == "Failed" and job.run_config != labels[manifests.RUN_CONFIG_LABEL]:
        return Actions(_with_phase(status, "Running", "retrying with the edited run."), delete=[name])
    return Actions(
        _with_phase(status.model_copy(update={"job": name}), "Failed", _failure(job, observed, settings, store))
    )


def _until_probe(run: TrainingRun, stored: Stored, status: Status) -> list[StepState]:
    """The states of the steps that prepare a run, and of its probe.

    The first retrieve step is among them: it encodes the passages, on a GPU if the stage claims one, while no server
    waits for it. The probe finds their embeddings in the store.
    """
    assert run.spec is not None
    wanted = ("prepare", "generate", "retrieve")
    states = [state for state in stored.states if state.step.stage in wanted and state.step.iteration in (None, 1)]
    done = status.probe is not None and status.probe.retry == run.control.retry
    ready: State = "ready" if all(state.state == "done" for state in states) else "waiting"
    return [*states, StepState(PROBE, "done" if done else ready, probe_key(run.spec))]


def _rejected_judge(run: TrainingRun, stored: Stored, status: Status) -> str | None:
    """Why a run to the end stops: as in `pyrite train`, if its judge failed the probe and pairs are left to judge."""
    assert run.spec is not None
    control, probe = run.control, status.probe
    if control.until or control.force or probe is None or probe.verdict != "no-go" or not run.spec.judge.needs_server:
        return None
    if all(state.state == "done" for state in stored.states if state.step.stage == "judge"):
        return None
    return no_go(f"this judge failed its probe ({probe.failed})", probe.page_uri, "set spec.force to true")


def _probed(run: TrainingRun, probe: ProbeResult) -> str:
    """The result of the probe, and how to continue."""
    edit, page = f"`kubectl edit tr {run.name}`", f"The probe's page: {probe.page_uri}"
    if probe.verdict == "go":
        return f"the judge passed its probe. To continue, remove spec.until ({edit}). {page}"
    if probe.verdict == "unclear":
        return f"the probe gives no verdict ({probe.failed}). To continue without, remove spec.until ({edit}). {page}"
    return (
        f"the judge failed its probe ({probe.failed}). Change the judge ({edit}), or fix its server and raise "
        f"spec.retry to probe again. {page}"
    )


def _start(
    run: TrainingRun, manifest: manifests.Manifest, status: Status, observed: Observed, settings: Settings
) -> Actions:
    """Create the step's Job, once the vLLM server is ready or its GPUs are free.

    With a queue, the server starts after the Job is admitted: see ``_track``.
    """
    assert run.spec is not None
    server = observed.server
    want_server: bool | None = None
    if manifests.uses_server(run.spec, status.stage, settings) and not run.control.queue:
        want_server = True
        if observed.gpu_users:
            message = f"run {min(observed.gpu_users)} uses the GPUs; the vLLM server starts after it."
            return Actions(_with_phase(status, "Waiting", message), queued=True)
        if server is None:
            assert settings.server is not None
            message = f"there is no StatefulSet {settings.server.stateful_set}: is server.enabled set in the chart?"
            return Actions(_with_phase(status, "Waiting", message))
        if not server.ready:
            message = f"the vLLM server is starting: none of {server.replicas or 'its'} replicas is ready."
            waiting = _with_phase(status, "Waiting", message, server.coming, server.problem)
            return Actions(waiting, want_server=True, problem=server.problem)
    elif manifests.needs_gpu(manifest):
        want_server = False
        if observed.server_users:
            message = f"run {min(observed.server_users)} is judging on the GPUs."
            return Actions(_with_phase(status, "Waiting", message), queued=True)
        if server and (server.replicas or server.present):
            message = "waiting for the vLLM server to release the GPUs."
            return Actions(_with_phase(status, "Waiting", message), want_server=False)
    name = manifest["metadata"]["name"]
    status = _with_phase(status.model_copy(update={"job": name}), "Running", f"{status.step}: started.")
    return Actions(status, create=[manifests.run_config(run, settings), manifest], want_server=want_server)


def _track(
    run: TrainingRun, job: Job, observed: Observed, status: Status, settings: Settings, now: datetime
) -> Actions:
    """The status of a run whose Job is active."""
    steps, _, _ = status.progress.partition(" ")
    progress = steps if job.total == 1 else f"{steps} ({job.done}/{job.total})"
    changes = {"job": job.name, "shards": {"done": job.done, "total": job.total}, "progress": progress}
    status = Status.model_validate({**status.model_dump(), **changes})
    if job.queued:
        message = f"{status.step}: Job {job.name} is suspended; resume it."
        if run.control.queue:
            message = f"{status.step}: waiting for admission to the queue {run.control.queue}."
        return Actions(_with_phase(status, "Waiting", message), queued=True)
    since, limit = observed.pods.running_since, _deadline(job, settings)
    if since and limit and now - since > timedelta(seconds=limit):
        message = f"{status.step}: a pod has run for longer than its deadline."
        return Actions(_with_phase(status, "Running", message), expire=[job.name])
    activity = "running." if job.total == 1 else f"{job.done} of {job.total} shards done."
    server, want_server, outage, problem = observed.server, None, "", observed.pods.problem
    if server and run.spec and manifests.uses_server(run.spec, job.stage, settings):
        blocked_by = "" if server.replicas else min(observed.gpu_users, default="")
        # Without replicas: a queue has admitted the Job, or a user has scaled the server down.
        want_server = None if server.replicas or blocked_by else True
        problem = f"{server.problem} {problem}".strip()
        if not server.ready:
            outage = activity = "no replica of the vLLM server is ready."
            if blocked_by:
                activity = f"run {blocked_by} uses the GPUs; the vLLM server starts after it."
            activity = f"{activity} {server.coming}".strip()
    elif server and job.gpu and not observed.pods.running and (server.replicas or server.present):
        want_server = False  # another controller scaled it up as this Job started: free the GPUs, or both wait
    if observed.pods.coming:
        activity = f"{activity} {observed.pods.coming}" if observed.pods.running else observed.pods.coming
    elif job.total == 1 and observed.pods.blocked:
        activity = ""
    text = f"{status.step}: {activity}".rstrip()
    return Actions(
        _with_phase(status, "Running", text, problem),
        want_server=want_server,
        problem=f"{outage} {problem}" if outage else "",
    )


def _stop(run: TrainingRun, unfinished: Sequence[Job], pods: Pods, phase: Phase, message: str) -> Actions:
    """Delete the run's Jobs; enter ``phase`` once they are gone."""
    if unfinished:
        status = _with_phase(run.status, "Running", f"stopping {unfinished[0].name}.", message, pods.problem)
        return Actions(status, delete=[job.name for job in unfinished if not job.deleting])
    return Actions(_with_phase(run.status.model_copy(update={"job": "", "shards": None}), phase, message))


def _failure(job: Job, observed: Observed, settings: Settings, store: str) -> str:
    advice = "To resume the run from this step, fix the cause, then raise spec.retry or edit the wrong setting."
    if job.ended == "Complete":
        return (
            f"Job {job.name} is complete, but {store} does not hold its result: do the controller and the workers use "
            f"the same store? {advice}"
        )
    if job.reason == "DeadlineExceeded":
        limit = f"worker.stages.{job.stage}.deadlineSeconds"
        cause = f"a pod ran longer than {_deadline(job, settings)} s: raise {limit} in the chart if it made progress."
    else:
        cause = observed.pods.failures.get(job.name) or f"{job.reason}: {job.message}"
    return f"{job.name} failed: {cause} {advice}"


def _deletion(run: TrainingRun, job: Job) -> str:
    """Why a Job is deleted. If it is being deleted already, the reason is unknown."""
    if job.deleting:
        return f"waiting for the pods of {job.name} to end."
    why = "the run was edited" if job.owner == run.uid else "it belongs to an earlier run of this name"
    return f"stopping {job.name}: {why}; its judgments and checkpoints are saved."


def _name_taken(run: TrainingRun, state: StepState) -> str:
    return (
        f"the store already holds a run {run.name} with other settings ({state.step.label}: {state.stale}), and this "
        "run would replace it. Choose another name, or use the old run's settings."
    )


def _llm_work(spec: RunSpec, step: Step, stored: Stored) -> float:
    """The maximum number of pairs or questions for which all shards of ``step`` need the LLM's servers."""
    if step.stage == "generate":
        assert spec.generate is not None
        return 2 * spec.generate.queries  # each question is also a pair: the judge checks it
    if step.stage != "judge" or not spec.judge.needs_server:
        return 0
    candidates = stored.manifests[Step("retrieve", step.iteration).name]["summary"]["candidates"]
    judged = pairs_per_query(spec.judge, spec.retrieve.range_max, 0) / spec.retrieve.range_max
    return float(candidates * judged)


def _deadline(job: Job, settings: Settings) -> int | None:
    """How many seconds a pod of ``job`` may run; None: no limit."""
    return settings.worker.stages.get(job.stage, StageSettings()).deadline_seconds or job.deadline


def _steps_of_job(spec: RunSpec, states: Sequence[StepState], first: Step) -> tuple[list[Step], str]:
    """All shards of a step, done or not, and a digest of what their results depend on.

    The digest excludes external inputs (source, base model): the controller reads their digests from finished shards,
    so it would change as shards finish.
    """
    shards = [state for state in states if state.step[:2] == first[:2]]
    if first == PROBE:
        return [first], str(shards[0].key)
    keys = json.dumps([step_key(spec, state.step, state.inputs or {}, {}) for state in shards])
    return [state.step for state in shards], hashlib.sha256(keys.encode()).hexdigest()


def _with_step(status: Status, steps: Sequence[Step], states: Sequence[StepState]) -> Status:
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


def _with_phase(status: Status, phase: Phase, *sentences: str) -> Status:
    return status.model_copy(update={"phase": phase, "message": " ".join(filter(None, sentences))})
