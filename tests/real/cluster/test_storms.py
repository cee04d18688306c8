"""A run among faults of the cluster ends with the tables of an undisturbed one."""

import random
from collections.abc import Callable

import pytest

from real.cluster import faults
from real.cluster.place import Object, Place

pytestmark = [pytest.mark.real, pytest.mark.slow]
VALUES: Object = {"judge": {"parallelism": 4}}


def tables(place: Place, run: str) -> dict[str, str]:
    """Digests of all tables and weights; not of the report and the model cards, in which times stand."""
    return {key: value for key, value in place.digests(run).items() if key.endswith((".parquet", ".safetensors"))}


Storm = list[tuple[str, int | None, str, Callable[[Place, str], object]]]


def kill(stage: str, times: int) -> Callable[[Place, str], object]:
    dice = random.Random(times)
    return lambda place, run: faults.kill_pods(place, run, stage, times, dice)


#: What happens to a run: at which step, what, and how.
STORMS: dict[str, Storm] = {
    "pods": [
        ("prepare", None, "controller killed", lambda place, _: faults.kill_controller(place)),
        ("validate", 0, "pod killed", kill("validate", 1)),
        ("retrieve", 1, "pod evicted", lambda place, run: faults.evict(place, run, "retrieve")),
        ("judge", 1, "judge pods killed", kill("judge", 30)),
        ("mine", 1, "Job and pods deleted unseen", lambda place, run: faults.finished_job_vanishes(place, run, "mine")),
        ("finetune", 1, "running Job deleted", lambda place, run: faults.delete_running_job(place, run, "finetune")),
        ("finetune", 1, "S3 silent for 60 s", lambda place, _: faults.stop_s3(place, 60)),
        ("validate", 1, "node drained", lambda place, run: faults.drain(place, run, "validate")),
        ("evaluate", None, "helm upgrade", lambda place, _: place.helm("upgrade", worker=_changed(place))),
    ],
    "cluster": [
        ("validate", 0, "kubelet killed, away for 30 s", lambda *_: faults.restart("kubelet", 30)),
        ("judge", 1, "API server killed, away for 10 s", lambda *_: faults.restart("kube-apiserver", 10)),
        ("finetune", 1, "API server killed, away for 10 s", lambda *_: faults.restart("kube-apiserver", 10)),
    ],
}


@pytest.mark.parametrize("name", STORMS)
def test_a_run_among_faults_gives_an_undisturbed_runs_tables(
    place: Place, small: Callable[..., Object], measured: Callable[..., None], name: str
) -> None:
    storm = STORMS[name]
    spec = small(iterations=max(iteration or 1 for _, iteration, _, _ in storm), judge={"shards": 10})
    calm, run = f"calm-{name}", f"storm-{name}"
    place.apply(calm, spec)
    place.wait(calm)
    place.apply(run, spec)
    for stage, iteration, what, fault in storm:
        status = place.wait_stage(run, stage)
        assert status.get("iteration") == iteration, f"{what} came too late: {status}"
        did = fault(place, run)
        times = did if isinstance(did, int) else 1
        assert times >= 1, f"{what} did not happen"
        row = stage if iteration is None else f"{stage}-{iteration}"
        measured(table="cluster", row=row, fault=what, times=times)
    place.wait(run)
    assert tables(place, run) == tables(place, calm)
    assert len(tables(place, run)) > 10
    measured(table="same", tables=len(tables(place, run)))


def _changed(place: Place) -> Object:
    return {**place.values["worker"], "extraEnv": [{"name": "UPGRADED", "value": "1"}]}


def test_the_controller_killed_at_every_stage(
    place: Place, small: Callable[..., Object], measured: Callable[..., None]
) -> None:
    place.apply("orphan", small())
    stages = ["prepare", "validate", "retrieve", "judge", "mine", "finetune", "evaluate"]
    for stage in stages:
        place.wait_stage("orphan", stage)
        faults.kill_controller(place)
    place.wait("orphan")
    assert tables(place, "orphan")["model/model.safetensors"]
    measured(table="cluster", row="each stage", fault="controller killed", times=len(stages))
