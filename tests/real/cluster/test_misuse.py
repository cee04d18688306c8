"""Common mistakes on a cluster end in a message with the cause and the fix, and lose no results."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pyrite.config import load
from pyrite.errors import UserError
from real.cluster import faults
from real.cluster.release import Object, Release, kubectl, wait_until

pytestmark = [pytest.mark.real, pytest.mark.slow]
SAMPLE: Object = {"source": {"kind": "sample"}}


def wait_message(release: Release, run: str, text: str, seconds: float = 60) -> Object:
    """Wait until the run's message contains ``text``, and return its status."""
    return wait_until(
        f"{run} reports {text!r}", lambda: s if text in (s := release.status(run)).get("message", "") else None, seconds
    )


def create(release: Release, name: str, spec: Object) -> str:
    """Create a run. Returns the response or the error of the API server."""
    manifest = {"apiVersion": "pyrite.dev/v1alpha1", "kind": "TrainingRun", "metadata": {"name": name}, "spec": spec}
    return kubectl("-n", release.namespace, "create", "-f", "-", stdin=json.dumps(manifest), check=False)


def assert_run_file_is_rejected(spec: Object, folder: Path) -> None:
    run_file = folder / "run.yaml"
    run_file.write_text(json.dumps({**spec, "name": "r"}))  # JSON is YAML
    with pytest.raises(UserError):
        load(run_file)


@pytest.mark.parametrize(
    ("spec", "name", "message"),
    [
        ({**SAMPLE, "seed": -1}, "r", "spec.seed"),
        ({**SAMPLE, "mine": {"negative_grade": 3}}, "r", "spec.mine.negative_grade"),
        ({**SAMPLE, "iteration": 3}, "r", 'unknown field "spec.iteration"'),
        ({"source": {"path": "data.jsonl"}}, "r", "spec.source.kind"),
        ({**SAMPLE, "judge": {"kind": "oracle"}}, "r", "spec.judge.kind"),
        (SAMPLE, "a" * 40, "letters, digits and dashes"),
    ],
)
def test_api_server_refuses_what_the_schema_forbids(
    release: Release, spec: Object, name: str, message: str, tmp_path: Path
) -> None:
    """Wrong values, unknown and missing fields, and names that are too long for Jobs."""
    response = create(release, name, spec)
    assert message in response, response
    if len(name) == 1:
        assert_run_file_is_rejected(spec, tmp_path)


@pytest.mark.parametrize(
    ("name", "spec", "message"),
    [
        ("triplet", {**SAMPLE, "finetune": {"loss": "triplet"}, "mine": {"num_negatives": 2}}, "one negative"),
        ("generator", {**SAMPLE, "generate": {}}, "generate.model"),
        ("ungraded", {**SAMPLE, "generate": {"model": "m"}}, "share_from_passages"),
        ("words", {**SAMPLE, "generate": {"model": "m", "share_from_passages": 1, "min_words": 50}}, "min_words"),
        ("nopath", {"source": {"kind": "jsonl"}}, "source.path"),
        ("noid", {"source": {"kind": "huggingface"}}, "source.id"),
        ("nomodel", {**SAMPLE, "judge": {"kind": "llm"}}, "model"),
        ("emptymodel", {**SAMPLE, "judge": {"kind": "llm", "model": ""}}, "model"),
        ("chars", {**SAMPLE, "prepare": {"min_chars": 2000}}, "min_chars"),
        ("split", {**SAMPLE, "prepare": {"split": {"train": 0.8}}}, "add up to"),
    ],
)
def test_controller_refuses_what_the_schema_accepts(
    release: Release, name: str, spec: Object, message: str, tmp_path: Path
) -> None:
    """Rules that the schema cannot express: the controller reports the error of `pyrite check` and starts no Job."""
    release.apply(name, spec)
    status = release.wait(name, "Failed", seconds=60)
    assert message in status["message"]
    assert not release.jobs(name)
    assert_run_file_is_rejected(spec, tmp_path)
    kubectl("-n", release.namespace, "delete", "trainingrun", name)


def test_missing_bucket_is_reported(release: Release, small_spec: Callable[..., Object]) -> None:
    release.helm("upgrade", store={**release.values["store"], "url": "s3://no-such-bucket/x"})
    release.apply("nobucket", small_spec())
    status = wait_message(release, "nobucket", "no-such-bucket", 120)
    assert "bucket" in status["message"]
    release.helm("upgrade")
    release.wait("nobucket")


def test_wrong_image_is_reported_and_recovers(release: Release, small_spec: Callable[..., Object]) -> None:
    """The error is reported within a minute. Once the chart is fixed, the run continues without a retry."""
    worker = {**release.values["worker"], "image": {**release.values["worker"]["image"], "tag": "no-such-tag"}}
    release.helm("upgrade", worker=worker)
    release.apply("noimage", small_spec())
    start = time.monotonic()
    status = wait_message(release, "noimage", "no-such-tag")
    assert time.monotonic() - start < 60
    assert any(c["type"] == "Degraded" and c["status"] == "True" for c in status["conditions"])
    release.helm("upgrade")
    release.wait("noimage")


def test_missing_gpus_are_reported(release: Release, small_spec: Callable[..., Object]) -> None:
    gpus = {"resources": {"limits": {"cpu": "1", "memory": "1Gi", "nvidia.com/gpu": 8}}}
    stages = {**release.values["worker"]["stages"], "prepare": gpus}
    release.helm("upgrade", worker={**release.values["worker"], "stages": stages})
    release.apply("nogpu", small_spec())
    status = wait_message(release, "nogpu", "cannot be scheduled")
    assert "nvidia.com/gpu" in status["message"]
    release.helm("upgrade")
    release.wait("nogpu")


def test_upgrade_does_not_stop_running_shards(release: Release, small_spec: Callable[..., Object]) -> None:
    """Also if other shards cannot be scheduled, which is reported."""
    most_cores = f"{(os.cpu_count() or 1) * 600}m"
    large = {"resources": {"requests": {"cpu": most_cores}, "limits": {"memory": "1Gi"}}}
    stages = {**release.values["worker"]["stages"], "judge": large}
    release.helm("upgrade", worker={**release.values["worker"], "stages": stages})
    release.apply("crowded", small_spec())
    with faults.frozen(faults.processes(release.running("crowded", "judge"))):
        wait_message(release, "crowded", "cannot be scheduled")
        faults.upgrade(release, "crowded", "judge")
    release.wait("crowded")


def test_bad_data_is_located_and_retried_on_request(
    release: Release, small_spec: Callable[..., Object], questions: Path
) -> None:
    url = release.put("bad.jsonl", b'{"question": "What is gout?", "answer": "A disease."}\n{"question": 7}\n')
    release.apply("baddata", small_spec(source={"kind": "jsonl", "path": url}))
    status = release.wait("baddata", "Failed", seconds=120)
    assert "bad.jsonl:2" in status["message"]
    assert len(release.pods("baddata", "prepare")) == 1, "a user error is not retried automatically"
    release.put("bad.jsonl", questions.read_bytes())
    release.edit("baddata", retry=1)
    wait_until("the run is retried", lambda: release.status("baddata")["phase"] != "Failed", 60)
    release.wait("baddata")


def test_edit_repeats_only_affected_steps(release: Release, small_spec: Callable[..., Object]) -> None:
    release.apply("edited", small_spec())
    release.wait_stage("edited", "finetune")
    before = release.digests("edited")
    release.edit("edited", mine={"num_negatives": 1, "relative_margin": None})
    release.wait("edited")
    after = release.digests("edited")
    unaffected = [
        key for key in before if key.startswith(("corpus/", "queries/", "iterations/1/candidates", "iterations/1/judg"))
    ]
    assert unaffected
    assert all(before[key] == after[key] for key in unaffected)
    assert before["iterations/1/examples.parquet"] != after["iterations/1/examples.parquet"]


def test_run_deleted_while_another_runs_keeps_results(release: Release, small_spec: Callable[..., Object]) -> None:
    release.apply("one", small_spec(judge={"shards": 20}))
    release.apply("two", small_spec(seed=1))
    release.wait_stage("one", "judge")
    kubectl("-n", release.namespace, "delete", "trainingrun", "one")
    wait_until("the run's pods are gone", lambda: not release.pods("one"), 90)
    before = release.digests("one")
    assert any(key.startswith("corpus/") for key in before), "deleting the run deleted its results in the store"
    release.wait("two")
    release.apply("one", small_spec(judge={"shards": 20}))
    release.wait("one")
    assert before.items() <= release.digests("one").items(), "the run did not resume from its stored results"


def test_resubmitted_run_does_not_adopt_the_old_jobs(release: Release, small_spec: Callable[..., Object]) -> None:
    """The deleted run's Jobs still exist when the controller observes the new run."""

    def owners() -> set[str]:
        return {job["metadata"]["ownerReferences"][0]["uid"] for job in release.jobs("twice")}

    def uid() -> str:
        return str(release.get("trainingrun", "twice")["metadata"]["uid"])

    release.apply("twice", small_spec(judge={"shards": 10}))
    release.wait_stage("twice", "judge")
    old = uid()
    with faults.frozen([faults.component("kube-controller-manager")]):  # it removes the Jobs
        kubectl("-n", release.namespace, "delete", "trainingrun", "twice")
        assert owners() == {old}
        release.apply("twice", small_spec(judge={"shards": 10}))
        wait_until("the controller has observed the new run", lambda: release.status("twice").get("phase"), 60)
    release.wait("twice")
    assert owners() == {uid()}


def test_name_of_an_old_run_is_refused(release: Release, small_spec: Callable[..., Object]) -> None:
    release.apply("again", small_spec())
    release.wait("again")
    before = release.digests("again")
    kubectl("-n", release.namespace, "delete", "trainingrun", "again")
    release.apply("again", small_spec(prepare={"min_chars": 30, "max_chars": 300}))
    status = release.wait("again", "Failed", seconds=60)
    assert "already holds a run again" in status["message"]
    assert "another name" in status["message"]
    assert release.digests("again") == before
