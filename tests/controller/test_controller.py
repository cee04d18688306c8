"""The loop: whatever happens to it and to its Jobs, a run goes on to its end, one step at a time."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.fake_cluster import names, now
from controller.harness import LABELS, VLLM, Harness
from pyrite.controller.api import JOB_LABEL
from pyrite.controller.settings import Settings

EVENTS = st.one_of(
    st.tuples(st.just("sync"), st.none()),
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
    world = Harness(chart, one=LABELS, two=VLLM, three=VLLM)
    for event in events:
        world.happens(*event)
    for number in range(3):
        world.happens("suspend", number)
    for _ in range(4):
        world.sync()
        world.cluster.reap()
        world.cluster.settle()
    assert world.cluster.replicas == 0, "the server is up while all runs are suspended"
    ends_well(world)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.lists(OF_TWO, min_size=10, max_size=30))
def test_two_controllers_of_which_one_is_behind_do_no_harm(chart: Settings, events: list[tuple[str, Any]]) -> None:
    """A rolling update has two for a moment; each may act on lists that the other has made old."""
    world = Harness(chart, alone=False, one=LABELS, two=VLLM, three=VLLM)
    for event in events:
        world.happens(*event)
    ends_well(world)


def ends_well(world: Harness) -> None:
    cluster = world.cluster
    for name in cluster.resources:
        cluster.edit(name, suspend=False, retry=cluster.resources[name]["spec"].get("retry", 0) + 1)
    world.go_on()
    phases = {name: cluster.run(name).status.phase for name in cluster.resources}
    assert phases == dict.fromkeys(cluster.resources, "Succeeded")
    world.sync()
    assert cluster.replicas == 0, "the server is left running with nobody to ask it"


def test_gpus_that_two_controllers_give_to_two_runs_are_with_one_of_them_in_the_end(chart: Settings) -> None:
    """The bug: a Job waits for the server's GPUs, and the run that asks the server for that Job, for ever."""
    world = Harness(chart, alone=False, training=LABELS)
    world.has_done("training", before="finetune")
    world.behind.look()
    world.cluster.edit("training", suspend=True)
    world.cluster.add("asking", dict(VLLM))
    world.has_done("asking", before="judge")
    world.sync()
    world.cluster.settle()
    world.second.sync()
    assert world.cluster.present
    assert world.cluster.unfinished("training")
    world.cluster.edit("training", suspend=False)
    world.go_on()


def test_a_run_goes_through_its_steps_and_says_so(chart: Settings) -> None:
    world = Harness(chart, small=LABELS)
    seen = []
    for _ in range(60):
        world.sync()
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
    world = Harness(chart, small=LABELS)
    world.sync()
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
    world.sync()
    shown = world.cluster.run("small").status
    assert shown.phase == "Failed"
    assert "data.jsonl:7: no question" in shown.message
    assert "spec.retry" in shown.message
    world.sync()
    assert names(list(world.cluster.made.values())) == names([job]), "nothing is tried again by itself"
    world.cluster.edit("small", retry=1)
    world.cluster.pods_seen = []
    world.go_on()
    assert world.cluster.run("small").status.phase == "Succeeded"


@pytest.mark.parametrize("edits", [{"retry": 1}, {"seed": 7}, {"suspend": False}], ids=str)
def test_a_run_with_the_name_of_an_old_one_does_not_replace_it(chart: Settings, edits: dict[str, Any]) -> None:
    """The bug: refused once only. Any edit, or resuming a run that was made suspended, and the old one was gone."""
    world = Harness(chart, small=LABELS)
    world.go_on()
    before = dict(world.store.files)
    world.cluster.resources.clear()
    world.cluster.made.clear()
    world.cluster.add("small", {**LABELS, "prepare": {"max_chars": 800}, "suspend": "suspend" in edits})
    world.sync()
    assert world.cluster.run("small").status.phase == ("Suspended" if "suspend" in edits else "Failed")
    world.cluster.edit("small", **edits)
    world.sync()
    shown = world.cluster.run("small").status
    assert shown.phase == "Failed"
    assert "already holds a run small" in shown.message
    assert not world.cluster.made
    assert world.store.files == before
    world.cluster.resources.clear()
    world.cluster.add("small", dict(LABELS))
    world.sync()
    assert world.cluster.run("small").status.phase == "Succeeded", "the very same run is simply found finished"
    assert not world.cluster.made


def test_the_status_does_not_grow_with_the_run(chart: Settings) -> None:
    sizes = []
    for iterations, shards in ((6, 2), (9, 60)):
        spec = {**LABELS, "iterations": iterations, "judge": {"shards": shards}}
        world = Harness(chart, small=spec)
        world.go_on()
        sizes.append(len(world.cluster.run("small").status.model_dump_json()))
    assert abs(sizes[1] - sizes[0]) < 60, f"{sizes}: only numbers may be longer"
