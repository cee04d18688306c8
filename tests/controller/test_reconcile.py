"""Which Job a run has: after failures, edits, retries, deletions and upgrades."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from controller.fake_cluster import names, now
from controller.harness import LABELS, LLM, Harness
from controller.pod_status import AN_HOUR_AGO, UNSCHEDULABLE, pod, running, waiting
from pyrite.controller.api import JOB_LABEL
from pyrite.controller.manifests import DEADLINE_ANNOTATION
from pyrite.controller.settings import Settings, StageSettings
from pyrite.plan import Step


def _ended(end: dict[str, Any]) -> dict[str, Any]:
    return {"phase": "Failed", "containerStatuses": [{"state": {"terminated": end}}]}


def test_failed_job_reports_why_and_retry_resumes(chart: Settings) -> None:
    harness = Harness(chart, small=LABELS)
    harness.sync()
    (job,) = harness.cluster.unfinished()
    harness.cluster.end(job, "Failed")
    end = {"exitCode": 2, "message": "data.jsonl:7: no question", "finishedAt": now()}
    labels = {JOB_LABEL: job["metadata"]["name"]}
    later = {"exitCode": 1, "message": "of another Job", "finishedAt": "2030-01-01T00:00:00Z"}
    harness.cluster.pod_list = [
        {"metadata": {"name": "pod-1", "labels": labels}, "status": _ended(end)},
        {"metadata": {"name": "pod-0", "labels": {JOB_LABEL: "other"}}, "status": _ended(later)},
    ]
    harness.sync()
    status = harness.status("small")
    assert status.phase == "Failed"
    assert "data.jsonl:7: no question" in status.message
    assert "spec.retry" in status.message
    harness.sync()
    assert names(list(harness.cluster.created_jobs.values())) == names([job]), (
        "the Job was retried although spec.retry did not change"
    )
    harness.cluster.edit("small", retry=1)
    harness.cluster.pod_list = []
    harness.run_to_end()
    assert harness.status("small").phase == "Succeeded"


CASCADE = {"kind": "cascade", "first": {"kind": "llm", "model": "a"}, "second": {"kind": "llm", "model": "b"}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": {"kind": "jsonl"}}, "source.path"),
        ({"finetune": {"loss": "triplet"}, "mine": {"num_negatives": 2}}, "triplet takes one negative"),
        ({"judge": CASCADE}, "resources.first_judge_urls is empty: list its servers"),
    ],
    ids=["missing field", "rule across fields", "no server of the first judge"],
)
def test_invalid_spec_fails_with_its_message(chart: Settings, changes: dict[str, Any], message: str) -> None:
    """The CRD's schema accepts these. A correction starts the run."""
    harness = Harness(chart, small={**LABELS, **changes})
    harness.sync()
    status = harness.status("small")
    assert status.phase == "Failed"
    assert message in status.message
    assert "kubectl edit trainingrun small" in status.message
    assert message in harness.degraded("small")
    assert not harness.cluster.created_jobs
    harness.cluster.edit("small", source=LABELS["source"], mine={"num_negatives": 1}, judge=LABELS["judge"])
    harness.run_to_end()
    assert harness.status("small").phase == "Succeeded"


@pytest.mark.parametrize("edits", [{"retry": 1}, {"seed": 7}, {"suspend": False}], ids=str)
def test_reused_name_does_not_replace_the_old_run(chart: Settings, edits: dict[str, Any]) -> None:
    """Regression: the new run was refused only until it was edited or resumed; then it replaced the old run."""
    harness = Harness(chart, small=LABELS)
    harness.run_to_end()
    before = dict(harness.store.files)
    harness.cluster.resources.clear()
    harness.cluster.created_jobs.clear()
    harness.cluster.add("small", {**LABELS, "prepare": {"max_chars": 800}, "suspend": "suspend" in edits})
    harness.sync()
    assert harness.status("small").phase == ("Suspended" if "suspend" in edits else "Failed")
    harness.cluster.edit("small", **edits)
    harness.sync()
    status = harness.status("small")
    assert status.phase == "Failed"
    assert "already holds a run small" in status.message
    assert not harness.cluster.created_jobs
    assert harness.store.files == before
    harness.cluster.resources.clear()
    harness.cluster.add("small", dict(LABELS))
    harness.sync()
    assert harness.status("small").phase == "Succeeded", "an identical run is found finished"
    assert not harness.cluster.created_jobs


def test_status_size_does_not_grow_with_the_run(chart: Settings) -> None:
    sizes = []
    for iterations, shards in ((6, 2), (9, 60)):
        spec = {**LABELS, "iterations": iterations, "judge": {"shards": shards}}
        harness = Harness(chart, small=spec)
        harness.run_to_end()
        sizes.append(len(harness.status("small").model_dump_json()))
    assert abs(sizes[1] - sizes[0]) < 60, f"{sizes}: only numbers may be longer"


def test_judge_job_name_is_stable_while_shards_finish(chart: Settings) -> None:
    """Regression: the name included digests that the controller reads from finished shards. After the first shard the
    running Job was stopped as if the run had been edited, and a failed one was retried."""
    harness = Harness(chart, small=LLM)
    job = harness.start_judging("small")
    spec = harness.cluster.run("small").spec
    assert spec
    assert harness.store.finish(spec, [Step("judge", 1, 0)])
    harness.cluster.pod_list = [pod(job, UNSCHEDULABLE)]
    harness.sync()
    assert "cannot be scheduled" in harness.status("small").message, "the sync must have read the store"
    assert harness.cluster.unfinished("small") == [job]
    harness.cluster.pod_list = []
    harness.cluster.end(job, "Failed")
    harness.sync()
    harness.sync()
    assert harness.status("small").phase == "Failed"
    assert list(harness.cluster.created_jobs.values()) == [job]


def test_upgrade_does_not_stop_a_job_that_makes_progress(chart: Settings) -> None:
    """Regression: a helm upgrade deleted a running judge Job, because one of its pods could not be scheduled."""
    harness = Harness(chart, small=LABELS)
    job = harness.start_judging("small")
    harness.use_chart(chart, image="pyrite-worker:other")
    job["status"]["succeeded"] = 1
    harness.cluster.pod_list = [pod(job, {"phase": "Running"}), pod(job, UNSCHEDULABLE)]
    harness.sync()
    assert "deletionTimestamp" not in job["metadata"]
    message = harness.status("small").message
    assert "1 of 3 shards done" in message
    assert "cannot be scheduled" in message
    assert not harness.degraded("small")
    harness.cluster.pod_list = harness.cluster.pod_list[1:]
    harness.sync()
    assert "deletionTimestamp" in job["metadata"], "no pod runs: the new chart may be the fix"


def test_upgrade_replaces_a_stuck_job(chart: Settings) -> None:
    """Regression: a Job with a wrong image tag waited forever, even after the chart was fixed."""
    harness = Harness(chart, small=LABELS)
    harness.sync()
    (job,) = harness.cluster.unfinished()
    harness.use_chart(chart, image="pyrite-worker:right")
    harness.sync()
    assert harness.cluster.unfinished() == [job]
    assert "deletionTimestamp" not in job["metadata"]
    harness.cluster.pod_list = [pod(job, waiting("ErrImagePull"))]
    harness.sync()
    assert "deletionTimestamp" in job["metadata"]
    harness.cluster.remove_deleted()
    harness.cluster.pod_list = []
    harness.sync()
    (replacement,) = harness.cluster.unfinished()
    assert replacement["spec"]["template"]["spec"]["containers"][0]["image"] == "pyrite-worker:right"


def test_deadline_excludes_time_without_a_node(chart: Settings) -> None:
    """Regression: a Job's deadline counted the hours that its pods waited for a GPU node."""
    harness = Harness(chart, small=LABELS)
    harness.use_chart(chart, stages={"prepare": StageSettings(deadline_seconds=600)})
    harness.sync()
    (job,) = harness.cluster.unfinished()
    assert "activeDeadlineSeconds" not in job["spec"]
    job["metadata"]["creationTimestamp"] = AN_HOUR_AGO
    for status in (UNSCHEDULABLE, waiting("ContainerCreating"), running(now())):
        harness.cluster.pod_list = [pod(job, status)]
        harness.sync()
        assert harness.cluster.unfinished() == [job]
    harness.cluster.pod_list = [pod(job, running(AN_HOUR_AGO)), pod(job, running(now()))]
    harness.sync()
    assert harness.cluster.unfinished() == []
    harness.cluster.pod_list = []
    harness.sync()
    assert harness.status("small").phase == "Failed"
    assert "ran longer than 600 s: raise worker.stages.prepare.deadlineSeconds" in harness.status("small").message
    harness.cluster.edit("small", retry=1)
    harness.run_to_end()
    assert harness.status("small").phase == "Succeeded"


def test_deadline_of_judging_grows_with_its_pairs(chart: Settings) -> None:
    harness = Harness(chart, small=LLM)
    harness.store.candidates = 5_000_000
    job = harness.start_judging("small")
    judged = 5_000_000 * 10 / 50  # rank_window of range_max
    assert job["metadata"]["annotations"][DEADLINE_ANNOTATION] == str(round(172800 + judged))
    started = datetime.now(UTC) - timedelta(days=13)
    harness.cluster.pod_list = [pod(job, running(started.isoformat()))]
    harness.sync()
    assert harness.cluster.unfinished() == [job]
    harness.cluster.pod_list = [pod(job, running((started - timedelta(days=1)).isoformat()))]
    harness.sync()
    assert harness.cluster.unfinished() == []


def test_job_queued_by_kueue_is_waiting_not_degraded(chart: Settings) -> None:
    harness = Harness(chart, small={**LABELS, "queue": "gpus"})
    harness.sync()
    (job,) = harness.cluster.unfinished()
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    job["metadata"]["creationTimestamp"] = AN_HOUR_AGO
    job["spec"]["suspend"] = True  # by Kueue's webhook
    for _ in range(2):
        harness.sync()
        assert harness.status("small").phase == "Waiting"
        assert "queue gpus" in harness.status("small").message
        assert not harness.degraded("small")
    job["spec"]["suspend"] = False
    harness.run_to_end()


@pytest.mark.parametrize("judging", ["a", "z"])
def test_server_starts_when_kueue_admits_the_job(chart: Settings, judging: str) -> None:
    """Regression: the servers' GPUs burned while the Job was queued. A queued Job holds no GPUs of its own either,
    whether its run comes before or after the other one."""
    harness = Harness(chart, **{judging: {**LLM, "queue": "gpus"}, "training": LABELS})
    harness.finish_steps(judging, before="judge")
    harness.finish_steps("training", before="mine")
    harness.sync()
    (job,) = harness.cluster.unfinished(judging)
    job["spec"]["suspend"] = True  # by Kueue's webhook
    harness.cluster.complete(harness.cluster.unfinished("training")[0])
    harness.sync()
    assert harness.status("training").step == "finetune, iteration 1"
    assert harness.cluster.unfinished("training"), "the queued run does not hold the GPUs"
    assert harness.cluster.replicas == 0
    assert harness.status(judging).message == "judge, iteration 1: waiting for admission to the queue gpus."
    job["spec"]["suspend"] = False
    harness.sync()
    assert harness.cluster.replicas == 0
    assert "run training uses the GPUs; the vLLM server starts after it" in harness.status(judging).message
    harness.cluster.complete(harness.cluster.unfinished("training")[0])
    harness.sync()
    harness.sync()
    assert harness.cluster.replicas == 2
    job["spec"]["suspend"] = True
    harness.sync()
    assert harness.cluster.replicas == 0, "the servers run for a Job that Kueue has suspended again"
    job["spec"]["suspend"] = False
    harness.run_to_end()
    assert harness.status(judging).phase == "Succeeded"


def test_server_does_not_wait_for_queued_training(chart: Settings) -> None:
    """Training that Kueue admits while the servers are up waits for them."""
    harness = Harness(chart, training={**LABELS, "queue": "gpus"})
    harness.finish_steps("training", before="finetune")
    harness.sync()
    (job,) = harness.cluster.unfinished("training")
    job["spec"]["suspend"] = True
    harness.cluster.add("judging", dict(LLM))
    harness.start_judging("judging")
    assert harness.cluster.replicas == 2
    job["spec"]["suspend"] = False
    harness.sync()
    assert harness.cluster.replicas == 2
    harness.run_to_end()
    assert harness.status("training").phase == "Succeeded"


def test_job_suspended_without_a_queue_is_named(chart: Settings) -> None:
    """Regression: the message was "waiting for admission to the queue None"."""
    harness = Harness(chart, small=LABELS)
    harness.sync()
    (job,) = harness.cluster.unfinished()
    job["spec"]["suspend"] = True
    harness.sync()
    assert harness.status("small").message == f"prepare: Job {job['metadata']['name']} is suspended; resume it."


def test_recreated_run_does_not_adopt_the_old_job(chart: Settings) -> None:
    """Regression: the new run tracked the old run's Job, which was then deleted, and showed the old run's results."""
    harness = Harness(chart, small=LABELS)
    harness.sync()
    (old,) = harness.cluster.unfinished()
    harness.stale_view.refresh()
    harness.cluster.add("small", dict(LABELS))
    harness.second_controller.sync()
    assert harness.status("small").phase == "Pending", "the new run shows the old run's status"
    harness.sync()
    assert "an earlier run of this name" in harness.status("small").message
    assert "deletionTimestamp" in old["metadata"]
    harness.cluster.remove_deleted()
    harness.sync()
    (new,) = harness.cluster.unfinished()
    assert names([new]) != names([old])
    harness.cluster.resources["small"]["metadata"]["deletionTimestamp"] = now()
    harness.cluster.end(new, "Failed")
    before = harness.status("small")
    harness.sync()
    assert harness.status("small") == before, "a run that is being deleted was reconciled"


def test_deleted_job_of_a_finished_step_is_awaited(chart: Settings) -> None:
    """Regression: the status claimed that the run had been edited."""
    harness = Harness(chart, small=LABELS)
    harness.sync()
    (job,) = harness.cluster.unfinished()
    spec = harness.cluster.run("small").spec
    assert spec
    assert harness.store.finish(spec, [Step("prepare", None, None)])
    job["metadata"]["deletionTimestamp"] = now()
    harness.sync()
    assert harness.status("small").message == f"waiting for the pods of {job['metadata']['name']} to end."
    harness.cluster.remove_deleted()
    harness.sync()
    assert harness.status("small").step == "validate, base"


def test_pods_of_a_deleted_job_end_before_the_next(chart: Settings) -> None:
    """Regression: after `kubectl delete job`, its pods run for up to a minute, and two pods did the same work."""
    harness = Harness(chart, small=LABELS)
    job = harness.start_judging("small")
    harness.cluster.created_jobs.clear()
    harness.cluster.pod_list = [pod(job, {"phase": "Running"}, deletionTimestamp=now())]
    for _ in range(3):
        harness.sync()
    assert not harness.cluster.created_jobs
    assert "waiting for pod pod-1" in harness.status("small").message
    harness.cluster.pod_list = []
    harness.run_to_end()
    assert harness.status("small").phase == "Succeeded"
