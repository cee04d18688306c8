"""Why a pod does not run is shown in the status of its run."""

from typing import Any

import pytest

from controller.fake_cluster import now
from controller.harness import LABELS, LLM, Harness
from controller.pod_status import AN_HOUR_AGO, UNSCHEDULABLE, event, pod, waiting
from pyrite.controller.settings import Settings


def test_waiting_for_a_node_costs_one_extra_api_call(chart: Settings) -> None:
    """It reads the events of one pod. Regression: each sync created the run's ConfigMap again, though only pods on a
    node can wait for it."""
    harness = Harness(chart, small=LABELS)
    job = harness.start_judging("small")
    calls = []
    for status in ({"phase": "Running"}, UNSCHEDULABLE):
        harness.cluster.pod_list = [pod(job, status)] * 3
        harness.sync()
        before = harness.cluster.calls
        harness.sync()
        calls.append(harness.cluster.calls - before)
    assert calls[1] == calls[0] + 1 > 3


SCALE_UP = event("TriggeredScaleUp", "pod triggered scale-up: [{eks-gpu 0->1 (max: 1)}]")
NOMINATED = event("Nominated", "Pod should schedule on: nodeclaim/gpu-x7k2p")


@pytest.mark.parametrize("on_its_way", [SCALE_UP, NOMINATED], ids=["Cluster Autoscaler", "Karpenter"])
def test_node_on_its_way_is_reported_and_no_fault(chart: Settings, on_its_way: dict[str, Any]) -> None:
    """Regression: the message was "Add a node" for the minutes in which the autoscaler was adding one."""
    training, judging = Harness(chart, r=LABELS), Harness(chart, r=LLM)
    training.sync()
    (job,) = training.cluster.unfinished()
    training.cluster.pod_list = [pod(job, UNSCHEDULABLE)]
    judging.finish_steps("r", before="judge")
    judging.sync()
    judging.cluster.server_pod_list = [pod(job, UNSCHEDULABLE)]
    for harness in (training, judging):
        events = harness.cluster.event_lists["pod-1"] = [on_its_way, event("FailedScheduling", "0/1 nodes.")]
        harness.sync()
        message = harness.status("r").message
        assert f"pod pod-1 waits for a node, which is on its way ({on_its_way['message']})" in message
        assert "Add a node" not in message
        assert "running" not in message
        assert not harness.degraded("r")
        events.append(event("NotTriggerScaleUp", "max node group size reached"))
        harness.sync()
        assert "max node group size reached. Add a node" in harness.degraded("r")


def test_node_that_does_not_arrive_is_a_fault(chart: Settings) -> None:
    """An instance type without capacity: the autoscaler's event remains, but no node joins."""
    harness = Harness(chart, small=LABELS)
    harness.sync()
    (job,) = harness.cluster.unfinished()
    harness.cluster.pod_list = [pod(job, UNSCHEDULABLE)]
    harness.cluster.event_lists["pod-1"] = [{**SCALE_UP, "lastTimestamp": AN_HOUR_AGO}]
    harness.sync()
    assert "the autoscaler requested a node" in harness.degraded("small")


def test_deleted_run_config_is_reported_and_restored(chart: Settings) -> None:
    """Regression: a run waited for days, without a message, after its ConfigMap had been deleted."""
    harness = Harness(chart, small=LABELS)
    harness.sync()
    (job,) = harness.cluster.unfinished()
    run_configs = dict(harness.cluster.run_configs)
    harness.cluster.run_configs.clear()
    failed = {"type": "Warning", "reason": "FailedMount", "message": "configmap not found", "lastTimestamp": now()}
    pulls = {"type": "Normal", "reason": "Pulling", "message": "a large image", "lastTimestamp": now()}
    harness.cluster.pod_list = [pod(job, waiting("ContainerCreating"))]
    harness.cluster.event_lists["pod-1"] = [{**failed, "lastTimestamp": AN_HOUR_AGO}, pulls]
    harness.sync()
    assert not harness.degraded("small"), "a first mount may fail, and a large image takes long"
    harness.cluster.event_lists["pod-1"] = [{**pulls, "lastTimestamp": AN_HOUR_AGO}, failed]
    harness.sync()
    assert "configmap not found" in harness.status("small").message
    assert "configmap not found" in harness.degraded("small")
    assert harness.cluster.run_configs == run_configs


def test_lost_node_is_reported_while_pods_end(chart: Settings) -> None:
    harness = Harness(chart, small=LABELS)
    harness.sync()
    (job,) = harness.cluster.unfinished()
    harness.cluster.pod_list = [pod(job, {"phase": "Running"}, deletionTimestamp=AN_HOUR_AGO)]
    harness.cluster.edit("small", suspend=True)
    for _ in range(2):
        harness.sync()
        assert "stopping" in harness.status("small").message
        assert "its node may be lost" in harness.status("small").message
    harness.cluster.edit("small", suspend=False)
    harness.sync()
    assert "waiting for the pods" in harness.status("small").message
    assert "its node may be lost" in harness.degraded("small")


def test_out_of_memory_names_the_setting_to_raise(chart: Settings) -> None:
    harness = Harness(chart, small=LABELS)
    harness.sync()
    (job,) = harness.cluster.unfinished()
    harness.cluster.end(job, "Failed")
    killed = {"exitCode": 137, "reason": "OOMKilled", "finishedAt": now()}
    status = {"phase": "Failed", "containerStatuses": [{"state": {"terminated": killed}}]}
    harness.cluster.pod_list = [pod(job, status)]
    harness.sync()
    assert "resources.limits.memory" in harness.status("small").message


@pytest.mark.parametrize(
    ("pods", "events", "message"),
    [
        ([], [("pyrite-vllm", "FailedCreate", "exceeded quota: gpus")], "exceeded quota: gpus"),
        ([waiting("ContainerCreating")], [("vllm-0", "FailedMount", "no PersistentVolume")], "no PersistentVolume"),
        ([waiting("CrashLoopBackOff", "a line\nno GPU is visible")], [], "no GPU is visible"),
        ([waiting("ErrImagePull", "old message")], [], "does not start: ErrImagePull. Are the image's name"),
    ],
    ids=["no pod", "no containers", "crash", "no image"],
)
def test_server_that_cannot_start_is_reported(
    chart: Settings, pods: list[Any], events: list[tuple[str, str, str]], message: str
) -> None:
    """Regression: the message was "none of 2 replicas is ready" without the reason."""
    harness = Harness(chart, judging=LLM)
    harness.finish_steps("judging", before="judge")
    harness.sync()
    assert harness.cluster.replicas == 2
    harness.cluster.server_pod_list = [{"metadata": {"name": "vllm-0"}, "status": status} for status in pods]
    for name, reason, text in events:
        event = {"type": "Warning", "reason": reason, "message": text, "lastTimestamp": AN_HOUR_AGO}
        harness.cluster.event_lists[name] = [event]
    harness.sync()
    assert harness.status("judging").phase == "Waiting"
    assert message in harness.status("judging").message
    assert message in harness.degraded("judging")
