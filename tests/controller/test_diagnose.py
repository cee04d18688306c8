"""What holds a run up is told with it, in words, and holds up no other run."""

import socket
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client.exceptions import ApiException

from controller.fake_cluster import names, now
from controller.harness import LABELS, VLLM, Harness
from pyrite.controller.__main__ import STORE_RETRY_POLICY
from pyrite.controller.api import JOB_LABEL
from pyrite.controller.controller import Controller
from pyrite.controller.health import LONGEST_TURN
from pyrite.controller.settings import Settings, StageSettings
from pyrite.errors import PyriteError
from pyrite.plan import Step
from pyrite.store import open_store

AN_HOUR_AGO = (datetime.now(UTC) - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
UNSCHEDULABLE = {
    "phase": "Pending",
    "conditions": [
        {"type": "PodScheduled", "status": "False", "message": "0/1 nodes.", "lastTransitionTime": AN_HOUR_AGO}
    ],
}


def pod(job: dict[str, Any], status: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    labels = {JOB_LABEL: job["metadata"]["name"]}
    return {"metadata": {"name": "pod-1", "labels": labels, **metadata}, "status": status}


def waiting(reason: str, before: str = "") -> dict[str, Any]:
    containers = [{"state": {"waiting": {"reason": reason}}, "lastState": {"terminated": {"message": before}}}]
    return {"phase": "Pending", "startTime": AN_HOUR_AGO, "containerStatuses": containers}


def degraded(world: Harness, run: str) -> str:
    """Why the run is, or nothing where it is not."""
    (found,) = [each for each in world.status(run).conditions if each.type == "Degraded"]
    return found.message if found.status == "True" else ""


def mended(world: Harness, chart: Settings, **worker: Any) -> None:
    """The chart is upgraded."""
    changed = chart.model_copy(update={"worker": chart.worker.model_copy(update=worker)})
    world.loop = Controller(world.cluster, world.store, lambda: changed)  # type: ignore[arg-type]


def test_a_store_that_is_away_is_asked_once_a_turn_and_each_run_says_so(
    chart: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bug: a turn that waits for the store once a run, until the controller is taken for stuck and started anew."""
    world = Harness(chart, one=LABELS, two=LABELS)
    asked = []

    def away(prefix: str) -> Sequence[str]:
        asked.append(prefix)
        raise PyriteError("no answer")

    monkeypatch.setattr(world.store, "keys", away)
    world.cluster.add("stopped", {**LABELS, "cancel": True})
    world.sync()
    assert len(asked) == 1
    assert all("the store cannot be read" in world.status(run).message for run in ("one", "two"))
    assert degraded(world, "one")
    assert world.status("stopped").phase == "Cancelled"
    monkeypatch.undo()
    world.store.files["runs/one/steps/prepare.json"] = b"{"
    world.sync()
    assert "runs/one/steps/prepare.json" in world.status("one").message
    assert world.status("two").phase == "Running"


@pytest.mark.slow
def test_a_silent_store_takes_less_of_a_turn_than_healthz_allows(
    chart: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Twice: the metrics may ask it too."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("PYRITE_CACHE", str(tmp_path))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
            monkeypatch.setenv(name, "us-east-1")
        world = Harness(chart, one=LABELS, two=LABELS)
        store = open_store("s3://bucket/store", STORE_RETRY_POLICY)
        began = time.monotonic()
        Controller(world.cluster, store, lambda: chart).sync()  # type: ignore[arg-type]
    assert time.monotonic() - began < LONGEST_TURN / 2
    assert "has failed for 15 seconds" in world.status("two").message


@pytest.mark.parametrize("error", [ApiException(status=500, reason="a webhook of theirs"), KeyError("a bug of ours")])
def test_what_is_wrong_with_one_run_stops_no_other(chart: Settings, error: Exception) -> None:
    world = Harness(chart, broken=LABELS, well=VLLM)
    world.cluster.refuses["broken"] = error
    world.has_done("well", before="judge")
    world.sync()
    assert world.cluster.replicas == 2, "the server is not scaled for the other run"
    said = getattr(error, "reason", "") or "a bug of ours"
    assert said in world.status("broken").message
    assert degraded(world, "broken")
    world.cluster.refuses.clear()
    world.go_on()
    assert world.status("broken").phase == "Succeeded"


def test_an_event_that_cannot_be_written_holds_up_nothing(chart: Settings) -> None:
    world = Harness(chart, small=LABELS)
    world.cluster.refuses["event"] = ApiException(status=403)
    world.sync()
    assert world.status("small").message == "prepare: started."


def test_a_chart_that_takes_the_workers_container_away_is_told(chart: Settings) -> None:
    world = Harness(chart, small=LABELS)
    mended(world, chart, stages={"prepare": StageSettings(pod={"containers": [{"name": "mine"}]})})
    world.sync()
    assert "worker.stages.prepare.pod replaces the containers" in world.status("small").message


def test_the_judges_job_keeps_its_name_while_its_shards_finish(chart: Settings) -> None:
    """The bug: it was named by digests that the controller reads from finished shards. One done, it was another Job's:
    the running one was stopped as if somebody had edited the run, and one that had failed began anew."""
    world = Harness(chart, small=VLLM)
    job = world.judging("small")
    spec = world.cluster.run("small").spec
    assert spec
    world.store.finish(spec, [Step("judge", 1, 0)])
    world.cluster.pods_seen = [pod(job, UNSCHEDULABLE)]
    world.sync()
    assert "finds no node" in world.status("small").message, "so the store was read"
    assert world.cluster.unfinished("small") == [job]
    world.cluster.pods_seen = []
    world.cluster.end(job, "Failed")
    world.sync()
    world.sync()
    assert world.status("small").phase == "Failed"
    assert list(world.cluster.made.values()) == [job]


def test_a_job_that_makes_progress_is_left_alone_and_says_what_waits(chart: Settings) -> None:
    """The bug: a helm upgrade deleted a judge at work, since one of its pods found no node."""
    world = Harness(chart, small=LABELS)
    job = world.judging("small")
    mended(world, chart, image="pyrite-worker:other")
    job["status"]["succeeded"] = 1
    world.cluster.pods_seen = [pod(job, {"phase": "Running"}), pod(job, UNSCHEDULABLE)]
    world.sync()
    assert "deletionTimestamp" not in job["metadata"]
    message = world.status("small").message
    assert "1 of 3 shards done" in message
    assert "finds no node" in message
    assert not degraded(world, "small")
    world.cluster.pods_seen = world.cluster.pods_seen[1:]
    world.sync()
    assert "deletionTimestamp" in job["metadata"], "where nothing runs the chart may have been mended for it"


def test_a_run_that_waits_for_a_node_asks_no_more_of_the_api_server_than_one_that_runs(chart: Settings) -> None:
    """The bug: its ConfigMap was made again at every turn, which only pods with a node can wait for."""
    world = Harness(chart, small=LABELS)
    job = world.judging("small")
    calls = []
    for status in ({"phase": "Running"}, UNSCHEDULABLE):
        world.cluster.pods_seen = [pod(job, status)]
        world.sync()
        before = world.cluster.calls
        world.sync()
        calls.append(world.cluster.calls - before)
    assert calls[0] == calls[1] > 2


def test_a_pod_that_is_not_made_is_told_and_its_description_made_anew(chart: Settings) -> None:
    """The bug: days of silence after somebody had deleted a ConfigMap."""
    world = Harness(chart, small=LABELS)
    world.sync()
    (job,) = world.cluster.unfinished()
    described = dict(world.cluster.described)
    world.cluster.described.clear()
    failed = {"type": "Warning", "reason": "FailedMount", "message": "configmap not found", "lastTimestamp": now()}
    pulls = {"type": "Normal", "reason": "Pulling", "message": "a large image", "lastTimestamp": now()}
    world.cluster.pods_seen = [pod(job, waiting("ContainerCreating"))]
    world.cluster.events_seen["pod-1"] = [{**failed, "lastTimestamp": AN_HOUR_AGO}, pulls]
    world.sync()
    assert not degraded(world, "small"), "a first mount may fail, and an image takes its time"
    world.cluster.events_seen["pod-1"] = [{**pulls, "lastTimestamp": AN_HOUR_AGO}, failed]
    world.sync()
    assert "configmap not found" in world.status("small").message
    assert "configmap not found" in degraded(world, "small")
    assert world.cluster.described == described


def test_a_lost_node_is_told_while_its_pods_are_waited_for(chart: Settings) -> None:
    world = Harness(chart, small=LABELS)
    world.sync()
    (job,) = world.cluster.unfinished()
    world.cluster.pods_seen = [pod(job, {"phase": "Running"}, deletionTimestamp=AN_HOUR_AGO)]
    world.cluster.edit("small", suspend=True)
    for _ in range(2):
        world.sync()
        assert "stopping" in world.status("small").message
        assert "its node may be lost" in world.status("small").message
    world.cluster.edit("small", suspend=False)
    world.sync()
    assert "waiting for the pods" in world.status("small").message
    assert "its node may be lost" in degraded(world, "small")


def test_a_pod_that_ran_out_of_memory_says_where_to_raise_it(chart: Settings) -> None:
    world = Harness(chart, small=LABELS)
    world.sync()
    (job,) = world.cluster.unfinished()
    world.cluster.end(job, "Failed")
    killed = {"exitCode": 137, "reason": "OOMKilled", "finishedAt": now()}
    status = {"phase": "Failed", "containerStatuses": [{"state": {"terminated": killed}}]}
    world.cluster.pods_seen = [pod(job, status)]
    world.sync()
    assert "resources.limits.memory" in world.status("small").message


def test_a_job_in_kueues_queue_waits_and_is_not_stuck(chart: Settings) -> None:
    world = Harness(chart, small={**LABELS, "queue": "gpus"})
    world.sync()
    (job,) = world.cluster.unfinished()
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    job["metadata"]["creationTimestamp"] = AN_HOUR_AGO
    job["spec"]["suspend"] = True  # by Kueue's webhook
    for _ in range(2):
        world.sync()
        assert world.status("small").phase == "Waiting"
        assert "queue gpus" in world.status("small").message
        assert not degraded(world, "small")
    job["spec"]["suspend"] = False
    world.go_on()


def test_a_run_made_anew_does_not_take_its_predecessors_job_for_its_own(chart: Settings) -> None:
    """The bug: it followed the old Job, which then went with the old run, and showed what the old one came to."""
    world = Harness(chart, small=LABELS)
    world.sync()
    (old,) = world.cluster.unfinished()
    world.behind.look()
    world.cluster.add("small", dict(LABELS))
    world.second.sync()
    assert world.status("small").phase == "Pending", "the old run's status is shown with the new one"
    world.sync()
    assert "an earlier run of this name" in world.status("small").message
    assert "deletionTimestamp" in old["metadata"]
    world.cluster.reap()
    world.sync()
    (new,) = world.cluster.unfinished()
    assert names([new]) != names([old])
    world.cluster.resources["small"]["metadata"]["deletionTimestamp"] = now()
    world.cluster.end(new, "Failed")
    before = world.status("small")
    world.sync()
    assert world.status("small") == before, "a run that is being deleted is looked after"


def test_a_job_that_is_deleted_as_its_step_is_done_is_waited_for(chart: Settings) -> None:
    """The bug: the status told that the run was edited, which nobody had done."""
    world = Harness(chart, small=LABELS)
    world.sync()
    (job,) = world.cluster.unfinished()
    world.store.finish(world.cluster.run("small").spec, [Step("prepare", None, None)])
    job["metadata"]["deletionTimestamp"] = now()
    world.sync()
    assert world.status("small").message == f"waiting for the pods of {job['metadata']['name']} to end."
    world.cluster.reap()
    world.sync()
    assert world.status("small").step == "validate, base"


def test_a_stuck_job_is_made_anew_once_the_chart_is_mended_and_a_running_one_is_left_alone(chart: Settings) -> None:
    """The bug: a Job whose image has a wrong tag waits for ever, though the chart has been right for hours."""
    world = Harness(chart, small=LABELS)
    world.sync()
    (job,) = world.cluster.unfinished()
    mended(world, chart, image="pyrite-worker:right")
    world.sync()
    assert world.cluster.unfinished() == [job]
    assert "deletionTimestamp" not in job["metadata"]
    world.cluster.pods_seen = [pod(job, waiting("ErrImagePull"))]
    world.sync()
    assert "deletionTimestamp" in job["metadata"]
    world.cluster.reap()
    world.cluster.pods_seen = []
    world.sync()
    (again,) = world.cluster.unfinished()
    assert again["spec"]["template"]["spec"]["containers"][0]["image"] == "pyrite-worker:right"


def test_a_server_that_is_lost_while_a_run_judges_is_told_and_brought_back(chart: Settings) -> None:
    """The bug: hours of "0 of 2 shards done" while nobody answers the judges."""
    world = Harness(chart, asking=VLLM)
    world.judging("asking")
    world.cluster.server_pods_seen = [{"metadata": {"name": "vllm-1"}, "status": waiting("CrashLoopBackOff")}]
    world.cluster.present = 1
    world.sync()
    assert "vllm-1" in world.status("asking").message
    assert not degraded(world, "asking"), "the other server answers"
    world.cluster.present = 0
    world.sync()
    assert "the vLLM server does not answer" in world.status("asking").message
    assert "vllm-1" in degraded(world, "asking")
    world.cluster.replicas = 0
    world.sync()
    assert world.cluster.replicas == 2, "somebody scaled it down, and it stays down"


@pytest.mark.parametrize(
    ("pods", "events", "said"),
    [
        ([], [("pyrite-vllm", "FailedCreate", "exceeded quota: gpus")], "exceeded quota: gpus"),
        ([waiting("ContainerCreating")], [("vllm-0", "FailedMount", "no PersistentVolume")], "no PersistentVolume"),
        ([waiting("CrashLoopBackOff", "a line\nno GPU is visible")], [], "no GPU is visible"),
        ([waiting("ErrImagePull", "of another start")], [], "does not start: ErrImagePull. Is the image's name"),
    ],
    ids=["no pod", "no containers", "crashes", "no image any more"],
)
def test_a_server_that_cannot_start_is_told(
    chart: Settings, pods: list[Any], events: list[tuple[str, str, str]], said: str
) -> None:
    """The bug: "none of 2 replicas answers yet", for ever."""
    world = Harness(chart, asking=VLLM)
    world.has_done("asking", before="judge")
    world.sync()
    assert world.cluster.replicas == 2
    world.cluster.server_pods_seen = [{"metadata": {"name": "vllm-0"}, "status": status} for status in pods]
    for name, reason, message in events:
        event = {"type": "Warning", "reason": reason, "message": message, "lastTimestamp": AN_HOUR_AGO}
        world.cluster.events_seen[name] = [event]
    world.sync()
    assert world.status("asking").phase == "Waiting"
    assert said in world.status("asking").message
    assert said in degraded(world, "asking")


def test_the_pods_of_a_job_that_a_person_deleted_end_before_it_is_made_anew(chart: Settings) -> None:
    """The bug: `kubectl delete job` takes the Job at once and its pods a minute later: two at the same work."""
    world = Harness(chart, small=LABELS)
    job = world.judging("small")
    world.cluster.made.clear()
    world.cluster.pods_seen = [pod(job, {"phase": "Running"}, deletionTimestamp=now())]
    for _ in range(3):
        world.sync()
    assert not world.cluster.made
    assert "waiting for pod pod-1 to end" in world.status("small").message
    world.cluster.pods_seen = []
    world.go_on()
    assert world.status("small").phase == "Succeeded"


def test_the_server_goes_when_no_run_that_goes_on_asks_it(chart: Settings) -> None:
    """The bug: paid for by the hour while the run that asked it had failed, and another, on CPUs alone, went on."""
    world = Harness(chart, asking=VLLM, other=LABELS)
    job = world.judging("asking")
    world.cluster.end(job, "Failed")
    world.sync()
    assert world.status("asking").phase == "Failed"
    assert world.status("other").phase == "Running"
    assert world.cluster.replicas == 0
