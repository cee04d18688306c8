"""The loop: whatever happens to it and to its Jobs, a run goes on to its end, one step at a time."""

from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.small_cluster import Behind, CutOff, SmallCluster, SmallStore, names, now
from pyrite.controller.api import JOB_LABEL
from pyrite.controller.loop import Loop
from pyrite.controller.resource import ENDED
from pyrite.controller.settings import Settings, load
from pyrite.plan import chain

JOBS = Path(__file__).parents[2] / "jobs"
WITH_GPUS = """
instance: pyrite
worker:
  image: pyrite-worker:test
  stages: {finetune: {resources: {limits: {nvidia.com/gpu: 1}}}}
judge: {parallelism: 2, urls: [http://vllm:8000]}
server: {statefulSet: pyrite-vllm, replicas: 2}
cost: {dollarsPerHour: 2}
"""
LABELS: dict[str, Any] = {"source": {"kind": "sample"}, "iterations": 1, "judge": {"shards": 3}}
VLLM: dict[str, Any] = {**LABELS, "iterations": 2, "judge": {"kind": "vllm", "model": "m", "shards": 2}}


@pytest.fixture(scope="module")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    path = tmp_path_factory.mktemp("chart") / "settings.yaml"
    path.write_text(WITH_GPUS)
    return load(path, JOBS)


class World:
    """A cluster, a store and the controller. Not ``alone``: a second one acts on what it saw a while ago."""

    def __init__(self, chart: Settings, alone: bool = True, **runs: dict[str, Any]):
        self.store = SmallStore()
        self.cluster = SmallCluster(self.store, alone)
        for name, spec in runs.items():
            self.cluster.add(name, dict(spec))
        self.loop = Loop(self.cluster, self.store, lambda: chart)  # type: ignore[arg-type]
        self.behind = Behind(self.cluster)
        self.second = Loop(self.behind, self.store, lambda: chart)  # type: ignore[arg-type]

    def turn(self, die_after: int | None = None) -> None:
        self.cluster.die_after = die_after
        try:
            self.loop.turn()
        except CutOff:
            assert die_after is not None
        self.cluster.die_after = None

    def happens(self, kind: str, number: int | None) -> None:
        cluster = self.cluster
        jobs = cluster.unfinished()
        job = jobs[number % len(jobs)] if jobs and number is not None else None
        name = list(cluster.resources)[(number or 0) % 3]
        match kind:
            case "turn" | "cut off":
                self.turn(die_after=number)
            case "go on":
                for _ in range(number or 0):
                    self.go_on_once()
            case "complete" if job:
                cluster.complete(job)
            case "fail" if job:
                cluster.end(job, "Failed")
            case "delete" if job:
                cluster.delete_job(job["metadata"]["name"])
            case "delete finished":
                cluster.made = {n: job for n, job in cluster.made.items() if job in cluster.unfinished()}
            case "reap":
                cluster.reap()
            case "settle":
                cluster.settle()
            case "scale":
                cluster.replicas = (number or 0) % 3
            case "suspend" | "resume":
                cluster.edit(name, suspend=kind == "suspend")
            case "retry":
                cluster.edit(name, retry=cluster.resources[name]["spec"].get("retry", 0) + 1)
            case "edit":
                cluster.edit(name, mine={"negatives": 1 + (number or 0) % 3})
            case "look":
                self.behind.look()
            case "second":
                self.second.turn()

    def has_done(self, name: str, before: str) -> None:
        """The run's steps up to the first of stage ``before`` are finished."""
        spec = self.cluster.run(name).spec
        assert spec
        for step in takewhile(lambda step: step.stage != before, chain(spec)):
            self.store.finish(spec, [step])

    def go_on_once(self) -> None:
        self.turn()
        self.cluster.settle()
        self.cluster.reap()
        for job in self.cluster.unfinished():
            self.cluster.complete(job)

    def go_on(self, most: int = 400) -> None:
        """Everything goes well from here, until all runs have ended."""
        for _ in range(most):
            self.go_on_once()
            if all(self.cluster.run(name).status.phase in ENDED for name in self.cluster.resources):
                return
        phases = {name: self.cluster.run(name).status for name in self.cluster.resources}
        raise AssertionError(f"not ended: {phases}")


EVENTS = st.one_of(
    st.tuples(st.just("turn"), st.none()),
    st.tuples(st.just("cut off"), st.integers(0, 12)),
    st.tuples(st.just("go on"), st.integers(1, 12)),
    st.tuples(st.sampled_from(["complete", "fail", "delete", "delete finished"]), st.integers(0, 5)),
    st.tuples(st.sampled_from(["reap", "settle"]), st.none()),
    st.tuples(st.sampled_from(["suspend", "resume", "retry", "edit", "scale"]), st.integers(0, 5)),
)
OF_TWO = st.one_of(EVENTS, st.tuples(st.sampled_from(["look", "second"]), st.none()))


@settings(max_examples=25, deadline=None)
@given(st.lists(EVENTS, min_size=5, max_size=30))
def test_whatever_happens_each_run_ends_well_one_job_at_a_time(chart: Settings, events: list[tuple[str, Any]]) -> None:
    """The cluster itself asserts: never two Jobs of a run, no GPU Job beside the server, none without a judge."""
    world = World(chart, one=LABELS, two=VLLM, three=VLLM)
    for event in events:
        world.happens(*event)
    for number in range(3):
        world.happens("suspend", number)
    for _ in range(4):
        world.turn()
        world.cluster.reap()
        world.cluster.settle()
    assert world.cluster.replicas == 0, "the server is up while all runs are suspended"
    ends_well(world)


@settings(max_examples=25, deadline=None)
@given(st.lists(OF_TWO, min_size=10, max_size=30))
def test_two_controllers_of_which_one_is_behind_do_no_harm(chart: Settings, events: list[tuple[str, Any]]) -> None:
    """A rolling update has two for a moment; each may act on lists that the other has made old."""
    world = World(chart, alone=False, one=LABELS, two=VLLM, three=VLLM)
    for event in events:
        world.happens(*event)
    ends_well(world)


def ends_well(world: World) -> None:
    cluster = world.cluster
    for name in cluster.resources:
        cluster.edit(name, suspend=False, retry=cluster.resources[name]["spec"].get("retry", 0) + 1)
    world.go_on()
    phases = {name: cluster.run(name).status.phase for name in cluster.resources}
    assert phases == dict.fromkeys(cluster.resources, "Succeeded")
    world.turn()
    assert cluster.replicas == 0, "the server is left running with nobody to ask it"


def test_gpus_that_two_controllers_give_to_two_runs_are_with_one_of_them_in_the_end(chart: Settings) -> None:
    """The bug: a Job waits for the server's GPUs, and the run that asks the server for that Job, for ever."""
    world = World(chart, alone=False, training=LABELS)
    world.has_done("training", before="finetune")
    world.behind.look()
    world.cluster.edit("training", suspend=True)
    world.cluster.add("asking", dict(VLLM))
    world.has_done("asking", before="judge")
    world.turn()
    world.cluster.settle()
    world.second.turn()
    assert world.cluster.present
    assert world.cluster.unfinished("training")
    world.cluster.edit("training", suspend=False)
    world.go_on()


def test_a_run_goes_through_its_steps_and_says_so(chart: Settings) -> None:
    world = World(chart, small=LABELS)
    seen = []
    for _ in range(60):
        world.turn()
        status = world.cluster.run("small").status
        if not seen or seen[-1] != (status.phase, status.step):
            seen.append((status.phase, status.step))
        for job in world.cluster.unfinished():
            world.cluster.complete(job)
    assert [step for phase, step in seen if phase == "Running"] == [
        "prepare",
        "validate, base",
        "retrieve, iteration 1",
        "judge, iteration 1",
        "mine, iteration 1",
        "finetune, iteration 1",
        "validate, iteration 1",
        "evaluate",
    ]
    status = world.cluster.run("small").status
    assert (status.phase, status.best, status.best_mrr, status.gate_passed) == (
        "Succeeded",
        "iteration-1",
        "0.600 (+20%)",
        True,
    )
    assert status.progress == "10/10"
    assert status.model_uri == "s3://bucket/store/runs/small/model"
    assert status.cost == "$8.00", "8 steps of half an hour at 2 dollars an hour; shards count once"
    conditions = {condition.type: condition.status for condition in status.conditions}
    assert conditions == {"Progressing": "False", "Degraded": "False", "TargetReached": "True", "Complete": "True"}


def _ended(end: dict[str, Any]) -> dict[str, Any]:
    return {"phase": "Failed", "containerStatuses": [{"state": {"terminated": end}}]}


def test_a_failed_job_says_why_and_a_retry_goes_on_from_there(chart: Settings) -> None:
    world = World(chart, small=LABELS)
    world.turn()
    (job,) = world.cluster.unfinished()
    world.cluster.end(job, "Failed")
    end = {"exitCode": 2, "message": "data.jsonl:7: no question", "finishedAt": now()}
    status = _ended(end)
    labels = {JOB_LABEL: job["metadata"]["name"]}
    older = {"exitCode": 1, "message": "of another Job", "finishedAt": "2030-01-01T00:00:00Z"}
    world.cluster.pods_seen = [
        {"metadata": {"name": "pod-1", "labels": labels}, "status": status},
        {"metadata": {"name": "pod-0", "labels": {JOB_LABEL: "other"}}, "status": _ended(older)},
    ]
    world.turn()
    shown = world.cluster.run("small").status
    assert shown.phase == "Failed"
    assert "data.jsonl:7: no question" in shown.message
    assert "spec.retry" in shown.message
    world.turn()
    assert names(list(world.cluster.made.values())) == names([job]), "nothing is tried again by itself"
    world.cluster.edit("small", retry=1)
    world.cluster.pods_seen = []
    world.go_on()
    assert world.cluster.run("small").status.phase == "Succeeded"


def test_a_stuck_job_is_made_anew_once_the_chart_is_mended_and_a_running_one_is_left_alone(chart: Settings) -> None:
    """The bug: a Job whose image has a wrong tag waits for ever, though the chart has been right for hours."""
    world = World(chart, small=LABELS)
    world.turn()
    (job,) = world.cluster.unfinished()
    mended = chart.model_copy(update={"worker": chart.worker.model_copy(update={"image": "pyrite-worker:right"})})
    world.loop = Loop(world.cluster, world.store, lambda: mended)  # type: ignore[arg-type]
    world.turn()
    assert world.cluster.unfinished() == [job]
    assert "deletionTimestamp" not in job["metadata"]
    waiting = {"containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull"}}}]}
    labels = {JOB_LABEL: job["metadata"]["name"]}
    world.cluster.pods_seen = [{"metadata": {"name": "pod-1", "labels": labels}, "status": waiting}]
    world.turn()
    assert "deletionTimestamp" in job["metadata"]
    world.cluster.reap()
    world.cluster.pods_seen = []
    world.turn()
    (again,) = world.cluster.unfinished()
    assert again["spec"]["template"]["spec"]["containers"][0]["image"] == "pyrite-worker:right"


def test_a_server_that_is_lost_while_a_run_judges_is_told(chart: Settings) -> None:
    """The bug: hours of "0 of 2 shards done" while nobody answers the judges."""
    world = World(chart, asking=VLLM)
    while world.cluster.run("asking").status.stage != "judge" or not world.cluster.unfinished():
        world.turn()
        world.cluster.settle()
        for job in world.cluster.unfinished():
            if job["metadata"]["labels"]["pyrite.dev/stage"] != "judge":
                world.cluster.complete(job)
    world.cluster.present = 0
    world.turn()
    assert "the vLLM server does not answer" in world.cluster.run("asking").status.message


def test_a_run_with_the_name_of_an_old_one_does_not_replace_it(chart: Settings) -> None:
    world = World(chart, small=LABELS)
    world.go_on()
    before = dict(world.store.files)
    world.cluster.resources.clear()
    world.cluster.made.clear()
    world.cluster.add("small", {**LABELS, "prepare": {"max_chars": 800}})
    world.turn()
    shown = world.cluster.run("small").status
    assert shown.phase == "Failed"
    assert "already holds a run small" in shown.message
    assert world.store.files == before
    world.cluster.resources.clear()
    world.cluster.add("small", dict(LABELS))
    world.turn()
    assert world.cluster.run("small").status.phase == "Succeeded", "the very same run is simply found finished"
    assert not world.cluster.made


def test_the_status_does_not_grow_with_the_run(chart: Settings) -> None:
    sizes = []
    for iterations, shards in ((6, 2), (9, 60)):
        spec = {**LABELS, "iterations": iterations, "judge": {"shards": shards}}
        world = World(chart, small=spec)
        world.go_on()
        sizes.append(len(world.cluster.run("small").status.model_dump_json()))
    assert abs(sizes[1] - sizes[0]) < 60, f"{sizes}: only numbers may be longer"
