"""What people get wrong on a cluster ends in words that say what to do, and loses nothing."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyrite.config import load
from pyrite.controller.crd import RULES
from pyrite.errors import UserError
from real.cluster import faults
from real.cluster.place import Object, Place, kubectl, until

pytestmark = [pytest.mark.real, pytest.mark.slow]
SAMPLE: Object = {"source": {"kind": "sample"}}


def said(place: Place, run: str, words: str, seconds: float = 60) -> Object:
    """The run's status, once its message holds ``words``."""
    return until(
        f"{run} says {words!r}", lambda: s if words in (s := place.status(run)).get("message", "") else None, seconds
    )


@pytest.mark.parametrize(
    ("spec", "name", "words"),
    [
        ({**SAMPLE, "finetune": {"loss": "triplet"}, "mine": {"num_negatives": 2}}, "r", "triplet takes one negative"),
        ({**SAMPLE, "generate": {}}, "r", "generate needs generate.model"),
        ({**SAMPLE, "generate": {"model": "m"}}, "r", "tied to no passage"),
        ({**SAMPLE, "generate": {"model": "m", "share_from_passages": 1, "min_words": 50}}, "r", "min_words is above"),
        ({"source": {"kind": "jsonl"}}, "r", "needs path"),
        ({"source": {"kind": "huggingface"}}, "r", "needs id"),
        ({**SAMPLE, "judge": {"kind": "llm"}}, "r", "kind llm needs model"),
        ({**SAMPLE, "judge": {"kind": "llm", "model": ""}}, "r", "kind llm needs model"),
        ({**SAMPLE, "prepare": {"min_chars": 2000}}, "r", "min_chars is above max_chars"),
        ({**SAMPLE, "prepare": {"split": {"train": 0.8}}}, "r", "must add up to 1"),
        ({**SAMPLE, "mine": {"negative_grade": 3}}, "r", "can never be a negative"),
        ({**SAMPLE, "seed": -1}, "r", "spec.seed"),
        ({**SAMPLE, "iteration": 3}, "r", 'unknown field "spec.iteration"'),
        (SAMPLE, "a" * 40, "letters, digits and dashes"),
    ],
)
def test_the_api_server_refuses_what_the_run_file_refuses(
    place: Place, spec: Object, name: str, words: str, tmp_path: Any
) -> None:
    """Every CEL rule, tried on a real server; the RunSpec's own validators agree."""
    manifest = {"apiVersion": "pyrite.dev/v1alpha1", "kind": "TrainingRun", "metadata": {"name": name}, "spec": spec}
    answer = kubectl("-n", place.namespace, "create", "-f", "-", stdin=json.dumps(manifest), check=False)
    assert words in answer, answer
    if len(name) == 1:
        run_file = tmp_path / "run.yaml"
        run_file.write_text(json.dumps({**spec, "name": "r"}))
        with pytest.raises(UserError):
            load(run_file)
    assert sum(len(rules) for rules in RULES.values()) == 11, "a rule without a case here"


def test_a_bucket_that_is_not_there(place: Place, small: Callable[..., Object]) -> None:
    place.helm("upgrade", store={**place.values["store"], "url": "s3://no-such-bucket/x"})
    place.apply("nobucket", small())
    status = said(place, "nobucket", "no-such-bucket", 120)
    assert "bucket" in status["message"]
    place.helm("upgrade")
    place.wait("nobucket")


def test_an_image_that_is_not_there_then_the_right_one(place: Place, small: Callable[..., Object]) -> None:
    """Within a minute it says so; once the chart is right, the run goes on by itself."""
    worker = {**place.values["worker"], "image": {**place.values["worker"]["image"], "tag": "no-such-tag"}}
    place.helm("upgrade", worker=worker)
    place.apply("noimage", small())
    began = time.monotonic()
    status = said(place, "noimage", "no-such-tag")
    assert time.monotonic() - began < 60
    assert any(c["type"] == "Degraded" and c["status"] == "True" for c in status["conditions"])
    place.helm("upgrade")
    place.wait("noimage")


def test_a_gpu_that_no_node_has(place: Place, small: Callable[..., Object]) -> None:
    gpus = {"resources": {"limits": {"cpu": "1", "memory": "1Gi", "nvidia.com/gpu": 8}}}
    stages = {**place.values["worker"]["stages"], "prepare": gpus}
    place.helm("upgrade", worker={**place.values["worker"], "stages": stages})
    place.apply("nogpu", small())
    status = said(place, "nogpu", "finds no node")
    assert "nvidia.com/gpu" in status["message"]
    place.helm("upgrade")
    place.wait("nogpu")


def test_an_upgrade_while_some_shards_wait_for_room(place: Place, small: Callable[..., Object]) -> None:
    """That they wait is told, and is no reason to stop those that run."""
    most_of_it = f"{(os.cpu_count() or 1) * 600}m"
    large = {"resources": {"requests": {"cpu": most_of_it}, "limits": {"memory": "1Gi"}}}
    stages = {**place.values["worker"]["stages"], "judge": large}
    place.helm("upgrade", worker={**place.values["worker"], "stages": stages})
    place.apply("crowded", small())
    with faults.frozen(faults.processes(place.running("crowded", "judge"))):
        said(place, "crowded", "finds no node")
        faults.upgrade(place, "crowded", "judge")
    place.wait("crowded")


def test_bad_data_says_file_and_line_and_is_tried_again_when_asked(
    place: Place, small: Callable[..., Object], questions: Path
) -> None:
    address = place.put("bad.jsonl", b'{"question": "What is gout?", "answer": "A disease."}\n{"question": 7}\n')
    place.apply("baddata", small(source={"kind": "jsonl", "path": address}))
    status = place.wait("baddata", "Failed", seconds=120)
    assert "bad.jsonl:2" in status["message"]
    assert len(place.pods("baddata", "prepare")) == 1, "a mistake of the user's is not tried again by itself"
    place.put("bad.jsonl", questions.read_bytes())
    place.edit("baddata", retry=1)
    until("it begins again", lambda: place.status("baddata")["phase"] != "Failed", 60)
    place.wait("baddata")


def test_an_edit_in_the_middle_does_again_what_it_changes_and_no_more(
    place: Place, small: Callable[..., Object]
) -> None:
    place.apply("edited", small())
    place.wait_stage("edited", "finetune")
    before = place.digests("edited")
    place.edit("edited", mine={"num_negatives": 1, "relative_margin": None})
    place.wait("edited")
    after = place.digests("edited")
    kept = [
        key for key in before if key.startswith(("corpus/", "queries/", "iterations/1/candidates", "iterations/1/judg"))
    ]
    assert kept
    assert all(before[key] == after[key] for key in kept)
    assert before["iterations/1/examples.parquet"] != after["iterations/1/examples.parquet"]


def test_two_runs_at_once_and_one_deleted_while_it_judges(place: Place, small: Callable[..., Object]) -> None:
    place.apply("one", small(judge={"shards": 20}))
    place.apply("two", small(seed=1))
    place.wait_stage("one", "judge")
    kubectl("-n", place.namespace, "delete", "trainingrun", "one")
    until("its pods are gone", lambda: not place.pods("one"), 90)
    left = place.digests("one")
    assert any(key.startswith("corpus/") for key in left), "deleting a run took what it had made in the store"
    place.wait("two")
    place.apply("one", small(judge={"shards": 20}))
    place.wait("one")
    assert left.items() <= place.digests("one").items(), "it did not go on from what was there"


def test_deleted_and_submitted_again_at_once(place: Place, small: Callable[..., Object]) -> None:
    """The Jobs of the deleted run are still there when the new one is seen, and are not taken for its own."""

    def owners() -> set[str]:
        return {job["metadata"]["ownerReferences"][0]["uid"] for job in place.jobs("twice")}

    def uid() -> str:
        return str(place.get("trainingrun", "twice")["metadata"]["uid"])

    place.apply("twice", small(judge={"shards": 10}))
    place.wait_stage("twice", "judge")
    old = uid()
    with faults.frozen([faults.component("kube-controller-manager")]):  # it is what removes them
        kubectl("-n", place.namespace, "delete", "trainingrun", "twice")
        assert owners() == {old}
        place.apply("twice", small(judge={"shards": 10}))
        until("the controller has seen it", lambda: place.status("twice").get("phase"), 60)
    place.wait("twice")
    assert owners() == {uid()}


def test_the_name_of_an_old_run(place: Place, small: Callable[..., Object]) -> None:
    place.apply("again", small())
    place.wait("again")
    made = place.digests("again")
    kubectl("-n", place.namespace, "delete", "trainingrun", "again")
    place.apply("again", small(prepare={"min_chars": 30, "max_chars": 300}))
    status = place.wait("again", "Failed", seconds=60)
    assert "already holds a run again" in status["message"]
    assert "another name" in status["message"]
    assert place.digests("again") == made
