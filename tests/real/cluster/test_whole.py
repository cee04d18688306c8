"""A whole run on a real cluster, from `make train ON=cluster` to its report."""

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
from real.cluster.place import ROOT, Object, Place, kubectl, until

pytestmark = [pytest.mark.real, pytest.mark.slow]


def test_the_sample_on_the_cluster_gives_what_it_gives_here(place: Place, tmp_path: Path) -> None:
    """`make train ITER=2 ON=cluster`, with 4 shards, against the same run on this machine.

    On one machine, with as many threads, all is equal: tables, weights, scores. Another number of threads adds up in
    another order, so embeddings differ in their last digits, two passages change places, training sees other examples.
    """
    settings = "judge.shards=4 name=sample"
    command = ["make", "train", "ITER=2", "ON=cluster", f"ARGS={settings} -n {place.namespace}"]
    # Under a make of its own, as in `make test-cluster`, it would say which folder it enters and leaves.
    person = {name: value for name, value in os.environ.items() if name not in ("MAKELEVEL", "MAKEFLAGS", "MFLAGS")}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500, env=person, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"report: s3://pyrite/\S+/runs/sample/report/report.html$", done.stdout.strip()), done.stdout
    assert "judge, iteration 2" in done.stdout
    here = place.pyrite(
        "train", str(ROOT / "src/pyrite/examples/sample.yaml"), "judge.shards=4", f"--store={tmp_path}/store"
    )
    assert here.returncode == 0, here.stderr
    ours = json.loads((tmp_path / "store/runs/sample/report/report.json").read_text())
    theirs = json.loads(
        place.s3().get_object(Bucket="pyrite", Key=f"{place.namespace}/runs/sample/report/report.json")["Body"].read()
    )
    assert theirs["means"] == ours["means"]
    local = {
        output["key"]: output["sha256"]
        for path in (tmp_path / "store/runs/sample/steps").glob("*.json")
        for output in json.loads(path.read_text())["outputs"]
    }
    # Reports and cards tell of seconds and places.
    same = {key: digest for key, digest in local.items() if key.endswith((".parquet", ".safetensors"))}
    remote = place.digests("sample")
    assert {key.partition("/")[0] for key in same} >= {"corpus", "queries", "iterations", "model", "report"}
    assert {key: remote[key] for key in same} == same


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core: no limit is less")
def test_a_worker_starts_as_many_threads_as_its_limit_has_cores(place: Place) -> None:
    """The bug: as many as the node has cores took turns at what the limit leaves."""
    program = """
import sys, pyrite.cli
sys.argv = ["pyrite", "--version"]
try: pyrite.cli.main()
except SystemExit: import torch; print(torch.get_num_threads(), "threads")
"""
    pod = yaml.safe_load((ROOT / "jobs/finetune.yaml").read_text())["spec"]["template"]["spec"]
    (worker,) = pod["containers"]
    worker |= {"image": place.values["worker"]["image"]["repository"] + ":" + __version__}
    worker |= {"command": ["python", "-c", program], "args": []}
    worker["resources"] = {"limits": {"cpu": "1", "memory": "1Gi"}}
    pod["volumes"][0] = {"name": "run", "emptyDir": {}}  # its ConfigMap is made for a run
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "threads"}, "spec": pod}
    kubectl("-n", place.namespace, "apply", "-f", "-", stdin=json.dumps(manifest))
    until("it ends", lambda: place.get("pod", "threads")["status"]["phase"] == "Succeeded")
    assert kubectl("-n", place.namespace, "logs", "threads").splitlines()[-1] == "1 threads"


def test_a_person_detaches_comes_back_suspends_and_deletes(
    place: Place, small: Callable[..., Object], tmp_path: Path
) -> None:
    """Ctrl-C leaves the run alone; suspend stops its pods and keeps what they did; deleting it leaves S3."""
    run_file = tmp_path / "steered.yaml"
    run_file.write_text(json.dumps(small()))  # JSON is YAML
    process = subprocess.Popen(
        [sys.executable, "-m", "pyrite", "submit", str(run_file), "-n", place.namespace],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env={**os.environ},
    )
    place.wait_stage("steered", "validate")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "detached" in out
    place.edit("steered", suspend=True)
    place.wait("steered", "Suspended", seconds=120)
    assert not [pod for pod in place.pods("steered") if pod["status"]["phase"] == "Running"]
    before = place.digests("steered")
    assert before, "nothing was finished before it was suspended"
    time.sleep(5)
    place.edit("steered", suspend=False)
    attached = place.pyrite("attach", "steered", "-n", place.namespace)
    assert attached.returncode == 0, attached.stderr
    assert "done  evaluate" in attached.stdout
    after = place.digests("steered")
    assert before.items() <= after.items(), "a finished step was done again"
    place.get("trainingrun", "steered")
    place.edit("steered", iterations=1)
    done = place.pyrite("submit", str(run_file), "iterations=2", "-n", place.namespace)
    assert done.returncode == 2
    assert "described otherwise" in done.stderr
