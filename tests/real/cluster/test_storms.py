"""A run among faults of the cluster ends with the tables of an undisturbed one."""

import random
from collections import Counter
from collections.abc import Callable

import pytest

from real.cluster import faults
from real.cluster.place import Object, Place

pytestmark = [pytest.mark.real, pytest.mark.slow]
VALUES: Object = {"judge": {"parallelism": 4}}

#: A killed shard is kept back for 10 s, and its place with it: so many, that 30 kills meet no shard three times.
SHARDS = 40


@pytest.fixture(scope="module")
def spec(small: Callable[..., Object]) -> Object:
    return small(judge={"shards": SHARDS})


@pytest.fixture(scope="module")
def calm(place: Place, spec: Object) -> dict[str, str]:
    """The tables of a run that is left alone."""
    place.apply("calm", spec)
    place.wait("calm")
    found = tables(place, "calm")
    assert len(found) > SHARDS
    return found


def tables(place: Place, run: str) -> dict[str, str]:
    """Digests of all tables and weights; not of the report and the model cards, in which times stand."""
    return {key: value for key, value in place.digests(run).items() if key.endswith((".parquet", ".safetensors"))}


#: What happens to a run: at which step, what, how often, and how.
Storm = list[tuple[str, int | None, str, int, Callable[[Place, str, str], object]]]
KILLS = 30


def kill(place: Place, run: str, stage: str) -> None:
    faults.kill_pods(place, run, stage, KILLS, random.Random(KILLS))


STORMS: dict[str, Storm] = {
    "pods": [
        ("prepare", None, "controller killed (SIGKILL)", 1, lambda place, *_: faults.kill_controller(place)),
        ("validate", 0, "process killed (SIGKILL)", 1, faults.kill_pod),
        ("retrieve", 1, "pod evicted", 1, faults.evict),
        ("judge", 1, "judge pod evicted", 1, faults.evict),
        ("judge", 1, "judge pods deleted while they ran", KILLS, kill),
        ("mine", 1, "Job and pods deleted unseen", 1, faults.finished_job_vanishes),
        ("finetune", 1, "running Job deleted", 1, faults.delete_running_job),
        ("finetune", 1, "S3 silent for 60 s", 1, lambda place, *_: faults.stop_s3(place, 60)),
        ("validate", 1, "node drained, of the controller too", 1, faults.drain),
        ("evaluate", None, "helm upgrade", 1, faults.upgrade),
    ],
    "cluster": [
        ("validate", 0, "kubelet killed, away for 30 s", 1, lambda *_: faults.restart("kubelet", 30)),
        ("judge", 1, "API server killed, away for 10 s", 1, lambda *_: faults.restart("kube-apiserver", 10)),
        ("mine", 1, "S3 silent for 60 s as it ends", 1, faults.stop_s3_as_a_step_ends),
        ("finetune", 1, "API server killed, away for 10 s", 1, lambda *_: faults.restart("kube-apiserver", 10)),
        ("validate", 1, "node lost until the run told of it", 1, faults.lose_the_node),
    ],
}


@pytest.mark.parametrize("name", STORMS)
def test_a_run_among_faults_gives_an_undisturbed_runs_tables(
    place: Place, spec: Object, calm: dict[str, str], measured: Callable[..., None], name: str
) -> None:
    run = f"storm-{name}"
    place.apply(run, spec)
    for stage, iteration, what, times, fault in STORMS[name]:
        status = place.wait_stage(run, stage)
        assert status.get("iteration") == iteration, f"{what} came too late: {status}"
        fault(place, run, stage)
        row = stage if iteration is None else f"{stage}-{iteration}"
        measured(table="cluster", row=row, fault=what, times=times)
    place.wait(run)
    assert tables(place, run) == calm
    measured(table="same", tables=len(calm))


def test_the_controller_killed_at_every_stage(
    place: Place, spec: Object, calm: dict[str, str], measured: Callable[..., None]
) -> None:
    place.apply("orphan", spec)
    stages = ["prepare", "validate", "retrieve", "judge", "mine", "finetune", "evaluate"]
    for stage in stages:
        place.wait_stage("orphan", stage)
        faults.kill_controller(place)
    place.wait("orphan")
    assert tables(place, "orphan") == calm
    measured(table="cluster", row="each stage", fault="controller killed (SIGKILL)", times=len(stages))


def test_two_controllers_at_once(
    place: Place, spec: Object, calm: dict[str, str], measured: Callable[..., None]
) -> None:
    """Each acts on what it sees, and no step has two Jobs."""
    with faults.two_controllers(place):
        place.apply("doubled", spec)
        place.wait("doubled")
    labels = [job["metadata"]["labels"] for job in place.jobs("doubled")]
    steps = Counter((one["pyrite.dev/stage"], one.get("pyrite.dev/iteration")) for one in labels)
    assert len(steps) == 8
    assert set(steps.values()) == {1}
    assert tables(place, "doubled") == calm
    measured(table="cluster", row="all", fault="two controllers at once", times=1)
