"""A complete run on a real cluster, from `make train ON=cluster` to its report."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pyrite import __version__
from real.cluster.release import ROOT, Object, Release, kubectl, wait_until

pytestmark = [pytest.mark.real, pytest.mark.slow]


def test_sample_gives_the_same_results_as_a_local_run(release: Release, tmp_path: Path) -> None:
    """`make train ITER=2 ON=cluster`, with 4 shards, compared with the same run with 1 shard on this machine.

    On one machine with the same number of threads, tables, weights and scores are equal. With another number,
    floating-point sums have another order, so embeddings, ranks and training examples differ.
    """
    fewer = ["prepare.max_train_queries=64", "evaluate.smaller=false", "evaluate.retention=null"]  # to take less time
    settings = " ".join(["retrieve.shards=4", "judge.shards=4", "name=sample", *fewer])
    command = ["make", "train", "ITER=2", "ON=cluster", f"ARGS={settings} -n {release.namespace}"]
    # With these variables, make would also print the folders that it enters.
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MAKELEVEL", "MAKEFLAGS", "MFLAGS")
    }
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=2400, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"report: s3://pyrite/\S+/runs/sample/report/report.html$", done.stdout.strip()), done.stdout
    assert "judge, iteration 2" in done.stdout
    local_run = release.pyrite(
        "train",
        str(ROOT / "src/pyrite/examples/sample.yaml"),
        "judge.shards=1",
        *fewer,
        f"--store={tmp_path}/store",
        seconds=2400,
    )
    assert local_run.returncode == 0, local_run.stderr
    local_report = json.loads((tmp_path / "store/runs/sample/report/report.json").read_text())
    report = json.loads(
        release.s3()
        .get_object(Bucket="pyrite", Key=f"{release.namespace}/runs/sample/report/report.json")["Body"]
        .read()
    )
    assert report["means"] == local_report["means"]
    local = {
        output["key"]: output["sha256"]
        for path in (tmp_path / "store/runs/sample/steps").glob("*.json")
        for output in json.loads(path.read_text())["outputs"]
    }
    # Reports and model cards contain times and paths. The files of single shards have other rows.
    expected = {
        key: digest
        for key, digest in local.items()
        if key.endswith((".parquet", ".safetensors")) and not re.search(r"-\d{5}\.parquet$", key)
    }
    remote = release.digests("sample")
    assert {key.partition("/")[0] for key in expected} >= {"corpus", "queries", "iterations", "model", "report"}
    assert {"iterations/2/examples.parquet", "iterations/2/model/model.safetensors"} <= expected.keys()
    for shards in ("2/pairs/shard-", "2/judgments/shard-", "2/search/test-"):
        assert len([key for key in remote if key.startswith(f"iterations/{shards}")]) == 4
    assert {key: remote[key] for key in expected} == expected


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores, for a limit of one")
def test_worker_has_as_many_threads_as_its_cpu_limit(release: Release) -> None:
    """Regression: a worker started a thread per core of the node, and they competed for the CPU limit."""
    program = """
import sys, pyrite.cli
sys.argv = ["pyrite", "--version"]
try: pyrite.cli.main()
except SystemExit: import torch; print(torch.get_num_threads(), "threads")
"""
    pod = yaml.safe_load((ROOT / "jobs/finetune.yaml").read_text())["spec"]["template"]["spec"]
    (worker,) = pod["containers"]
    worker |= {"image": release.values["worker"]["image"]["repository"] + ":" + __version__}
    worker |= {"command": ["python", "-c", program], "args": []}
    worker["resources"] = {"limits": {"cpu": "1", "memory": "1Gi"}}
    pod["volumes"][0] = {"name": "run", "emptyDir": {}}  # the ConfigMap exists only for a run
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "threads"}, "spec": pod}
    kubectl("-n", release.namespace, "apply", "-f", "-", stdin=json.dumps(manifest))
    wait_until("the pod ends", lambda: release.get("pod", "threads")["status"]["phase"] == "Succeeded")
    assert kubectl("-n", release.namespace, "logs", "threads").splitlines()[-1] == "1 threads"


def test_run_survives_detach_suspend_resume_and_attach(
    release: Release, small_spec: Callable[..., Object], tmp_path: Path
) -> None:
    """Ctrl-C does not affect the run. Suspending stops its pods, and finished steps are not repeated."""
    run_file = tmp_path / "steered.yaml"
    run_file.write_text(json.dumps(small_spec()))  # JSON is YAML
    process = subprocess.Popen(
        [sys.executable, "-m", "pyrite", "submit", str(run_file), "-n", release.namespace],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env={**os.environ},
    )
    release.wait_stage("steered", "validate")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "detached" in out
    release.edit("steered", suspend=True)
    release.wait("steered", "Suspended", seconds=120)
    assert not [pod for pod in release.pods("steered") if pod["status"]["phase"] == "Running"]
    before = release.digests("steered")
    assert before, "no step was finished before the run was suspended"
    time.sleep(5)
    release.edit("steered", suspend=False)
    attached = release.pyrite("attach", "steered", "-n", release.namespace)
    assert attached.returncode == 0, attached.stderr
    assert "done  evaluate" in attached.stdout
    after = release.digests("steered")
    assert before.items() <= after.items(), "a finished step was repeated"
    release.get("trainingrun", "steered")
    release.edit("steered", iterations=1)
    done = release.pyrite("submit", str(run_file), "iterations=2", "-n", release.namespace)
    assert done.returncode == 2
    assert "with other settings" in done.stderr
