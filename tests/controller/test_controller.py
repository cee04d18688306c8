"""The reconcile loop: despite kills, edits and failed Jobs, each run succeeds, one step at a time."""

import socket
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from kubernetes.client.exceptions import ApiException

from controller.harness import LABELS, LLM, Harness
from pyrite.controller.__main__ import HEALTHZ_TIMEOUT, STORE_RETRY_POLICY
from pyrite.controller.controller import Controller
from pyrite.controller.settings import Settings, StageSettings
from pyrite.errors import PyriteError
from pyrite.store import open_store

RUNS = st.sampled_from(["one", "two", "three"])
JOBS = st.integers(0, 5)


class OneController(RuleBasedStateMachine):
    """Three runs, and random faults, edits and syncs. At the end every run must succeed."""

    def __init__(self, chart: Settings, single_controller: bool = True) -> None:
        super().__init__()
        self.harness = Harness(chart, single_controller, one=LABELS, two=LLM, three={**LLM, "queue": "gpus"})
        self.cluster = self.harness.cluster

    @rule()
    def sync(self) -> None:
        self.harness.sync()

    @rule(calls=st.integers(0, 12))
    def sync_killed(self, calls: int) -> None:
        self.harness.sync(kill_after=calls)

    @rule(times=st.integers(1, 12))
    def advance(self, times: int) -> None:
        for _ in range(times):
            self.harness.advance()

    @rule(number=JOBS, outcome=st.sampled_from(["complete", "fail", "delete"]))
    def end_job(self, number: int, outcome: str) -> None:
        if jobs := self.cluster.unfinished():
            job = jobs[number % len(jobs)]
            match outcome:
                case "complete":
                    self.cluster.complete(job)
                case "fail":
                    self.cluster.end(job, "Failed")
                case "delete":
                    self.cluster.delete_job(job["metadata"]["name"])

    @rule()
    def remove_ended_jobs(self) -> None:
        self.cluster.remove_ended()

    @rule()
    def remove_deleted_jobs(self) -> None:
        self.cluster.remove_deleted()

    @rule(suspend=st.booleans())
    def queue_or_admit(self, suspend: bool) -> None:
        for job in self.cluster.unfinished("three"):
            job["spec"]["suspend"] = suspend

    @rule()
    def start_or_end_server_pods(self) -> None:
        self.cluster.scale_pods()

    @rule(replicas=st.integers(0, 2))
    def scale_server_by_hand(self, replicas: int) -> None:
        self.cluster.replicas = replicas

    @rule(run=RUNS, suspend=st.booleans())
    def suspend_or_resume(self, run: str, suspend: bool) -> None:
        self.cluster.edit(run, suspend=suspend)

    @rule(run=RUNS)
    def retry(self, run: str) -> None:
        self.cluster.edit(run, retry=self.cluster.resources[run]["spec"].get("retry", 0) + 1)

    @rule(run=RUNS, negatives=st.integers(1, 3))
    def edit(self, run: str, negatives: int) -> None:
        self.cluster.edit(run, mine={"num_negatives": negatives})

    @invariant()
    def no_violations(self) -> None:
        """Never two Jobs of a run, no GPU Job while the server is up, no judging without a server."""
        assert not self.cluster.violations, self.cluster.violations

    def teardown(self) -> None:
        for run in self.cluster.resources:
            self.cluster.edit(run, suspend=True)
        for _ in range(4):
            self.harness.sync()
            self.cluster.remove_deleted()
            self.cluster.scale_pods()
        assert self.cluster.replicas == 0, "the server is up while all runs are suspended"
        assert_all_succeed(self.harness)


class TwoControllers(OneController):
    """As in a rolling update: a second controller acts on lists that the first has made stale."""

    def __init__(self, chart: Settings) -> None:
        super().__init__(chart, single_controller=False)

    @rule()
    def refresh_second(self) -> None:
        self.harness.stale_view.refresh()

    @rule()
    def sync_second(self) -> None:
        self.harness.second_controller.sync()

    def teardown(self) -> None:
        assert_all_succeed(self.harness)


STEPS = settings(max_examples=25, stateful_step_count=30, deadline=None)


def test_runs_succeed_despite_random_faults(chart: Settings) -> None:
    run_state_machine_as_test(lambda: OneController(chart), settings=STEPS)  # type: ignore[arg-type]


@pytest.mark.slow
def test_runs_succeed_with_two_controllers(chart: Settings) -> None:
    run_state_machine_as_test(lambda: TwoControllers(chart), settings=STEPS)  # type: ignore[arg-type]


def assert_all_succeed(harness: Harness) -> None:
    cluster = harness.cluster
    for job in cluster.unfinished():
        job["spec"]["suspend"] = False
    for name in cluster.resources:
        cluster.edit(name, suspend=False, retry=cluster.resources[name]["spec"].get("retry", 0) + 1)
    harness.run_to_end()
    phases = {name: harness.status(name).phase for name in cluster.resources}
    assert phases == dict.fromkeys(cluster.resources, "Succeeded")
    harness.sync()
    assert cluster.replicas == 0, "the server is up though no run needs it"


def test_job_completed_after_an_edit_used_its_own_config(chart: Settings) -> None:
    """A Job mounts the spec with which it was created. After an edit its results are stale and its step is repeated."""
    harness = Harness(chart, small=LABELS)
    harness.finish_steps("small", before="mine")
    harness.sync()
    (job,) = harness.cluster.unfinished()
    harness.cluster.edit("small", mine={"num_negatives": 3})
    harness.cluster.complete(job)
    harness.sync()
    assert harness.status("small").step == "mine, iteration 1"
    harness.run_to_end()
    assert harness.status("small").phase == "Succeeded"


def test_two_controllers_do_not_deadlock_on_gpus(chart: Settings) -> None:
    """Regression: a Job waited for the server's GPUs, and the run with the server waited for that Job, forever."""
    harness = Harness(chart, single_controller=False, training=LABELS)
    harness.finish_steps("training", before="finetune")
    harness.stale_view.refresh()
    harness.cluster.edit("training", suspend=True)
    harness.cluster.add("judging", dict(LLM))
    harness.finish_steps("judging", before="judge")
    harness.sync()
    harness.cluster.scale_pods()
    harness.second_controller.sync()
    assert harness.cluster.present
    assert harness.cluster.unfinished("training")
    harness.cluster.edit("training", suspend=False)
    harness.run_to_end()


def test_status_shows_each_step_and_the_result(chart: Settings) -> None:
    harness = Harness(chart, small=LABELS)
    history: list[tuple[str, str]] = []
    for _ in range(60):
        harness.sync()
        status = harness.status("small")
        if not history or history[-1] != (status.phase, status.step):
            history.append((status.phase, status.step))
        for job in harness.cluster.unfinished():
            harness.cluster.complete(job)
    assert [step for phase, step in history if phase == "Running"] == [
        "prepare",
        "embed, base",
        "validate, base",
        "retrieve, iteration 1",
        "judge, iteration 1",
        "mine, iteration 1",
        "finetune, iteration 1",
        "embed, iteration 1",
        "validate, iteration 1",
        "evaluate",
    ]
    status = harness.status("small")
    assert (status.phase, status.best, status.best_mrr, status.gate_passed) == (
        "Succeeded",
        "iteration-1",
        "0.600 (+20%)",
        True,
    )
    assert status.progress == "12/12"
    assert status.model_uri == "s3://bucket/store/runs/small/model"
    conditions = {condition.type: condition.status for condition in status.conditions}
    expected = {"Progressing": "False", "Degraded": "False", "TargetReached": "True", "Complete": "True"}
    assert conditions == {**expected, "JudgeAccepted": "Unknown", "OverBudget": "False"}


def test_unreachable_store_is_read_once_a_sync(chart: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: a sync waited for the store once per run, until /healthz failed and the controller was restarted."""
    harness = Harness(chart, one=LABELS, two=LABELS)
    requests = []

    def unreachable(prefix: str) -> Sequence[str]:
        requests.append(prefix)
        raise PyriteError("no response")

    monkeypatch.setattr(harness.store, "keys", unreachable)
    harness.cluster.add("stopped", {**LABELS, "cancel": True})
    harness.sync()
    assert len(requests) == 1
    assert all("the store cannot be read" in harness.status(run).message for run in ("one", "two"))
    assert harness.degraded("one")
    assert harness.status("stopped").phase == "Cancelled"
    monkeypatch.undo()
    harness.store.files["runs/one/steps/prepare.json"] = b"{"
    harness.sync()
    assert "runs/one/steps/prepare.json" in harness.status("one").message
    assert harness.status("two").phase == "Running"


@pytest.mark.slow
def test_silent_store_does_not_fail_healthz(chart: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A sync uses at most half of the time limit, because the metrics may read the store too."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("PYRITE_CACHE", str(tmp_path))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
            monkeypatch.setenv(name, "us-east-1")
        harness = Harness(chart, one=LABELS, two=LABELS)
        store = open_store("s3://bucket/store", STORE_RETRY_POLICY)
        start = time.monotonic()
        Controller(harness.cluster, store, lambda: chart).sync()  # type: ignore[arg-type]
    assert time.monotonic() - start < HEALTHZ_TIMEOUT / 2
    assert "15 seconds" in harness.status("two").message


@pytest.mark.parametrize("error", [ApiException(status=500, reason="a webhook failed"), KeyError("a controller bug")])
def test_error_of_one_run_does_not_stop_others(chart: Settings, error: Exception) -> None:
    harness = Harness(chart, broken=LABELS, judging=LLM)
    harness.cluster.errors["broken"] = error
    harness.finish_steps("judging", before="judge")
    harness.sync()
    assert harness.cluster.replicas == 2, "the server is not scaled for the other run"
    assert (getattr(error, "reason", "") or "a controller bug") in harness.status("broken").message
    assert harness.degraded("broken")
    harness.cluster.errors.clear()
    harness.run_to_end()
    assert harness.status("broken").phase == "Succeeded"


def test_run_continues_if_its_event_is_refused(chart: Settings) -> None:
    harness = Harness(chart, small=LABELS)
    harness.cluster.errors["event"] = ApiException(status=403)
    harness.sync()
    assert harness.status("small").message == "prepare: started."


def test_chart_that_replaces_containers_is_reported(chart: Settings) -> None:
    harness = Harness(chart, small=LABELS)
    harness.use_chart(chart, stages={"prepare": StageSettings(pod={"containers": [{"name": "mine"}]})})
    harness.sync()
    assert "worker.stages.prepare.pod replaces the containers" in harness.status("small").message


def test_server_lost_while_judging_is_restored(chart: Settings) -> None:
    """Regression: for hours, the status showed "0 of 2 shards done" while no server was ready."""
    crash = {"waiting": {"reason": "CrashLoopBackOff"}}
    status = {"phase": "Pending", "containerStatuses": [{"state": crash}]}
    harness = Harness(chart, judging=LLM)
    harness.start_judging("judging")
    harness.cluster.server_pod_list = [{"metadata": {"name": "vllm-1"}, "status": status}]
    harness.cluster.present = 1
    harness.sync()
    assert "vllm-1" in harness.status("judging").message
    assert not harness.degraded("judging"), "the other server is ready"
    harness.cluster.present = 0
    harness.sync()
    assert "no replica of the vLLM server is ready" in harness.status("judging").message
    assert "vllm-1" in harness.degraded("judging")
    harness.cluster.replicas = 0
    harness.sync()
    assert harness.cluster.replicas == 2, "the server stays down after a manual scale-down"


def test_server_is_scaled_down_when_no_run_needs_it(chart: Settings) -> None:
    """Regression: the server held its GPUs after the judging run had failed, while a run without an LLM continued."""
    harness = Harness(chart, judging=LLM, other=LABELS)
    job = harness.start_judging("judging")
    harness.cluster.end(job, "Failed")
    harness.sync()
    assert harness.status("judging").phase == "Failed"
    assert harness.status("other").phase == "Running"
    assert harness.cluster.replicas == 0


def test_server_is_scaled_down_after_its_last_step(chart: Settings) -> None:
    """Regression: four GPUs idled from the last judging to the end of a run whose training claims no GPU."""
    harness = Harness(chart, judging=LLM)
    harness.use_chart(chart, stages={})
    replicas: dict[str, int] = {}
    while harness.status("judging").phase != "Succeeded":
        harness.advance()
        replicas[harness.status("judging").step] = harness.cluster.replicas
    assert replicas.pop("") == 0, "the run has ended"
    steps = list(replicas)
    last = steps.index("judge, iteration 2")
    assert {replicas[step] for step in steps[:3]} == {0}, "before the first judging"
    assert {replicas[step] for step in steps[steps.index("judge, iteration 1") : last + 1]} == {2}
    assert {replicas[step] for step in steps[last + 1 :]} == {0}
