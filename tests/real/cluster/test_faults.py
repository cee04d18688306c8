"""A run with faults of the cluster ends with the same tables as a run without faults."""

import random
from collections import Counter
from collections.abc import Callable

import pytest

from real.cluster import faults
from real.cluster.release import Object, Release

pytestmark = [pytest.mark.real, pytest.mark.slow]
VALUES: Object = {"judge": {"parallelism": 4}}

#: The back-off of a killed shard is 10 s and holds its slot: with 40 shards, 30 kills hit no shard three times.
SHARDS = 40


@pytest.fixture(scope="module")
def spec(small_spec: Callable[..., Object]) -> Object:
    return small_spec(judge={"shards": SHARDS})


@pytest.fixture(scope="module")
def undisturbed(release: Release, spec: Object) -> dict[str, str]:
    """The tables of a run without faults."""
    release.apply("undisturbed", spec)
    release.wait("undisturbed")
    found = tables(release, "undisturbed")
    assert len(found) > SHARDS
    return found


def tables(release: Release, run: str) -> dict[str, str]:
    """Digests of all tables and weights; not of the report and the model cards, which contain times."""
    return {key: value for key, value in release.digests(run).items() if key.endswith((".parquet", ".safetensors"))}


#: The faults of a run: stage, iteration, description, number of times, function.
Faults = list[tuple[str, int | None, str, int, Callable[[Release, str, str], object]]]
KILLS = 30


def kill_judges(release: Release, run: str, stage: str) -> None:
    faults.kill_pods(release, run, stage, KILLS, random.Random(KILLS))


FAULTS: dict[str, Faults] = {
    "pods": [
        ("prepare", None, "controller killed (SIGKILL)", 1, lambda release, *_: faults.kill_controller(release)),
        ("validate", 0, "process killed (SIGKILL)", 1, faults.kill_pod),
        ("retrieve", 1, "pod evicted", 1, faults.evict),
        ("judge", 1, "judge pod evicted", 1, faults.evict),
        ("judge", 1, "judge pods deleted while they ran", KILLS, kill_judges),
        ("mine", 1, "finished Job deleted before the controller observed it", 1, faults.delete_finished_job),
        ("finetune", 1, "running Job deleted", 1, faults.delete_running_job),
        ("finetune", 1, "S3 unresponsive for 60 s", 1, lambda release, *_: faults.stop_s3(release, 60)),
        ("validate", 1, "node drained, including the controller", 1, faults.drain),
        ("evaluate", None, "helm upgrade", 1, faults.upgrade),
    ],
    "cluster": [
        ("validate", 0, "kubelet killed, down for 30 s", 1, lambda *_: faults.restart("kubelet", 30)),
        ("judge", 1, "API server killed, down for 10 s", 1, lambda *_: faults.restart("kube-apiserver", 10)),
        ("mine", 1, "S3 unresponsive for 60 s as the step ends", 1, faults.stop_s3_as_a_step_ends),
        ("finetune", 1, "API server killed, down for 10 s", 1, lambda *_: faults.restart("kube-apiserver", 10)),
        ("validate", 1, "node lost until the run reported it", 1, faults.lose_node),
    ],
}


@pytest.mark.parametrize("name", FAULTS)
def test_run_with_faults_gives_the_same_tables(
    release: Release, spec: Object, undisturbed: dict[str, str], measured: Callable[..., None], name: str
) -> None:
    run = f"faults-{name}"
    release.apply(run, spec)
    for stage, iteration, description, times, fault in FAULTS[name]:
        status = release.wait_stage(run, stage)
        assert status.get("iteration") == iteration, f"{description}: too late: {status}"
        fault(release, run, stage)
        row = stage if iteration is None else f"{stage}-{iteration}"
        measured(table="cluster", row=row, fault=description, times=times)
    release.wait(run)
    assert tables(release, run) == undisturbed
    measured(table="same", tables=len(undisturbed))


def test_run_survives_a_kill_of_the_controller_at_each_stage(
    release: Release, spec: Object, undisturbed: dict[str, str], measured: Callable[..., None]
) -> None:
    release.apply("orphan", spec)
    stages = ["prepare", "embed", "validate", "retrieve", "judge", "mine", "finetune", "evaluate"]
    for stage in stages:
        release.wait_stage("orphan", stage)
        faults.kill_controller(release)
    release.wait("orphan")
    assert tables(release, "orphan") == undisturbed
    measured(table="cluster", row="each stage", fault="controller killed (SIGKILL)", times=len(stages))


def test_two_controllers_create_each_job_once(
    release: Release, spec: Object, undisturbed: dict[str, str], measured: Callable[..., None]
) -> None:
    """Both sync and act, and no step has two Jobs."""
    with faults.two_controllers(release):
        release.apply("doubled", spec)
        release.wait("doubled")
    labels = [job["metadata"]["labels"] for job in release.jobs("doubled")]
    steps = Counter((one["pyrite.dev/stage"], one.get("pyrite.dev/iteration")) for one in labels)
    assert len(steps) == 8
    assert set(steps.values()) == {1}
    assert tables(release, "doubled") == undisturbed
    measured(table="cluster", row="all", fault="two controllers at once", times=1)
