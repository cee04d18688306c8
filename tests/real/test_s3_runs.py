"""Complete runs on a real S3 server: despite faults, the outputs equal those of a run in a folder."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest

from pyrite.errors import PyriteError
from pyrite.store import ObjectCorrupted, Store, open_store
from real.proxy import Fault, Kind, Proxy, eventually
from real.s3_run import RUN, faults_by_step, manifests, outputs, step_of
from small_data import PASSAGE, found_first

pytestmark = pytest.mark.real

Pyrite = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def folder_outputs(tmp_path_factory: pytest.TempPathFactory, questions: Path, tiny_model: Path) -> dict[str, str]:
    """Outputs of the small run in a folder, without faults."""
    folder = tmp_path_factory.mktemp("without-faults")
    path = folder / "small.yaml"
    path.write_text(SMALL_RUN.format(questions=questions, model=tiny_model))
    command = [sys.executable, "-m", "pyrite", "train", str(path), "--store", str(folder / "store")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    return outputs(open_store(str(folder / "store")))


SMALL_RUN = """\
source: {{kind: jsonl, path: {questions}, topic: topic, type: type}}
model: {{base: {model}}}
iterations: 1
prepare: {{min_chars: 40, max_chars: 400}}
retrieve: {{range_max: 20}}
mine: {{num_negatives: 2, relative_margin: null}}
finetune: {{batch_size: 8, checkpoint_every: 2, learning_rate: 1.0e-3}}
evaluate: {{blends: [0.5], resamples: 200}}
"""


@pytest.fixture
def small(tmp_path: Path, questions: Path, tiny_model: Path) -> Path:
    """The file of a run of one iteration that takes seconds."""
    path = tmp_path / "small.yaml"
    path.write_text(SMALL_RUN.format(questions=questions, model=tiny_model))
    return path


def test_a_run_on_s3_equals_one_in_a_folder(
    s3: str, proxy: Proxy, pyrite: Pyrite, small: Path, folder_outputs: dict[str, str], tmp_path: Path
) -> None:
    done = pyrite("train", small, "--store", s3)
    assert done.returncode == 0, done.stderr + done.stdout
    store = open_store(s3)
    assert outputs(store) == folder_outputs
    assert not store.keys(f"{RUN}/scratch"), "scratch must be deleted when the run is finished"
    page = Path(done.stdout.rstrip().splitlines()[-1])
    assert page.is_file()
    assert f"model: {s3}/{RUN}/model" in done.stdout
    assert proxy.count("GET", ".safetensors") == 0, "this machine wrote the model and has it in its cache"

    elsewhere = {"PYRITE_CACHE": str(tmp_path / "elsewhere"), "PYRITE_STORE": s3}
    assert "finished; nothing to do" in pyrite("train", small, **elsewhere).stdout
    for _ in range(2):
        found = pyrite("search", "small", PASSAGE, COLUMNS="1000", **elsewhere)
        assert found.returncode == 0, found.stderr
        assert found_first(found.stdout)
    assert proxy.count("GET", f"{RUN}/model/model.safetensors") == 1
    assert "evaluate" in pyrite("status", "small", **elsewhere).stdout
    assert "MRR@5" in pyrite("report", "small", **elsewhere).stdout
    unknown = pyrite("status", "nothing", **elsewhere)
    assert unknown.returncode == 2
    assert "Its runs: small." in unknown.stderr.replace("\n", " ")
    # Contents that do not match the digest in the metadata.
    bucket, _, prefix = s3.removeprefix("s3://").partition("/")
    checksum = store.checksum(f"{RUN}/run.yaml")
    assert checksum
    client = boto3.client("s3")
    client.put_object(
        Bucket=bucket, Key=f"{prefix}/{RUN}/run.yaml", Body=b"other", Metadata={"sha256": checksum.sha256}
    )
    with pytest.raises(ObjectCorrupted, match="does not match its"):
        store.read(f"{RUN}/run.yaml")
    with pytest.raises(PyriteError, match="does not match its"):
        store.fetch(f"{RUN}/run.yaml")
    assert pyrite("train", small, **elsewhere).returncode == 0
    # A damaged output is reported by its reader, and --force repairs it.
    key = f"{RUN}/iterations/1/candidates.parquet"
    content = bytearray(store.read(key))
    content[len(content) // 2] ^= 1
    store.write(key, bytes(content))
    damaged = pyrite("mine", small, "-i", 1, "--force", **elsewhere)
    assert damaged.returncode == 1
    assert "does not match its manifest" in damaged.stderr.replace("\n", " ")
    assert pyrite("retrieve", small, "-i", 1, "--force", **elsewhere).returncode == 0
    assert pyrite("mine", small, "-i", 1, "--force", **elsewhere).returncode == 0


@pytest.fixture
def run_with_faults(
    s3: str, proxy: Proxy, pyrite: Pyrite, small: Path, folder_outputs: dict[str, str]
) -> Callable[..., tuple[Store, int, float]]:
    """Trains the small run with faults and compares its outputs with ``folder_outputs``.

    Returns the store, the number of requests, and the seconds.
    """

    def call(*faults: Fault) -> tuple[Store, int, float]:
        proxy.faults += faults
        began = time.monotonic()
        done = pyrite("train", small, "--store", s3, timeout=900)
        seconds = time.monotonic() - began
        requests = len(proxy.requests)  # before the comparison's own requests
        proxy.faults.clear()
        assert done.returncode == 0, done.stderr + done.stdout
        store = open_store(s3)
        assert outputs(store) == folder_outputs
        return store, requests, seconds

    return call


#: Every n-th request is broken, by fault. A stall costs 15 s, so stalls are rarer.
FAULT_INTERVALS: dict[Kind, int] = {
    "500": 5,
    "503 SlowDown": 5,
    "429": 5,
    "request cut": 5,
    "body cut": 5,
    "response lost": 5,
    "stall": 40,
}


@pytest.mark.parametrize("kind", FAULT_INTERVALS)
def test_a_run_with_faults_has_the_same_outputs(
    kind: Kind, run_with_faults: Callable[..., tuple[Store, int, float]], proxy: Proxy, measured: Callable[..., None]
) -> None:
    fault = Fault(kind, every=FAULT_INTERVALS[kind])
    store, requests, seconds = run_with_faults(fault)
    assert fault.fired > 3, "the fault did not happen"
    for step, fired in faults_by_step(proxy, store).items():
        measured(table="steps", row=step, column=kind, fired=fired)
    measured(table="runs", column=kind, fired=fault.fired, requests=requests, seconds=seconds)


@pytest.mark.parametrize("kind", ["response lost", "503 SlowDown"])
def test_each_step_survives_faults_of_its_manifest(
    kind: Kind, run_with_faults: Callable[..., tuple[Store, int, float]], proxy: Proxy, measured: Callable[..., None]
) -> None:
    judge = ("judge-1.0", "judge-1.1")
    steps = ("prepare", "validate-0", "retrieve-1", *judge, "mine-1", "finetune-1", "validate-1", "evaluate")
    faults = [Fault(kind, "PUT", part=f"/steps/{step}.json", times=5, conditional=True) for step in steps]
    run_with_faults(*faults)
    # If only the response is lost, the second attempt finds the manifest written, and there is no third.
    minimum = 1 if kind == "response lost" else 5
    for step, fault in zip(steps, faults, strict=True):
        assert fault.fired >= minimum, f"the fault did not happen to {step}"
        measured(table="manifests", row=step, column=kind, fired=fault.fired)
    puts = Counter(step_of(r, {}) for r in proxy.requests if r.method == "PUT" and r.conditional and not r.fault)
    assert all(puts[step] >= 1 for step in steps)


def test_a_checkpoint_survives_the_loss_of_its_machine(s3: str, small: Path, pyrite: Pyrite, tmp_path: Path) -> None:
    arguments = [str(small), "finetune.epochs=8", "finetune.checkpoint_every=1", "--store", s3]
    process = subprocess.Popen(
        [sys.executable, "-m", "pyrite", "train", *arguments], cwd=tmp_path, start_new_session=True
    )
    store = open_store(s3)
    assert eventually(lambda: any(".saved/index" in key for key in store.keys(f"{RUN}/scratch")), 180), (
        "no checkpoint was saved"
    )
    os.kill(process.pid, signal.SIGKILL)
    process.wait(60)
    assert f"{RUN}/steps/finetune-1.json" not in store.keys(f"{RUN}/steps")
    shutil.rmtree(tmp_path / "cache")
    again = pyrite("train", *arguments)
    assert again.returncode == 0, again.stderr
    assert "resuming from checkpoint-" in again.stdout
    without_kill = pyrite("train", *arguments[:-1], tmp_path / "folder")
    assert without_kill.returncode == 0, without_kill.stderr
    assert outputs(store) == outputs(open_store(str(tmp_path / "folder")))
    assert not store.keys(f"{RUN}/scratch")


def test_two_machines_running_one_run_publish_one_result(
    s3: str, small: Path, folder_outputs: dict[str, str], tmp_path: Path
) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "pyrite", "train", str(small), "--store", s3],
            env={**os.environ, "PYRITE_CACHE": str(tmp_path / name)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name in ("one", "another")
    ]
    output = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], output
    store = open_store(s3)
    assert outputs(store) == folder_outputs
    assert len({manifest["attempt"] for manifest in manifests(store).values()}) == len(manifests(store))


@pytest.mark.parametrize("case", ["missing bucket", "wrong secret", "forbidden"])
def test_an_unusable_store_is_reported_without_a_traceback(
    case: str, s3: str, small: Path, pyrite: Pyrite, monkeypatch: pytest.MonkeyPatch
) -> None:
    if case == "wrong secret":
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-this-one")
    if case == "forbidden":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", os.environ["READER_ACCESS_KEY_ID"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", os.environ["READER_SECRET_ACCESS_KEY"])
    url = s3.replace("//pyrite", "//no-such-bucket") if case == "missing bucket" else s3
    began = time.monotonic()
    result = pyrite("train", small, "--store", url)
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert url in result.stderr.replace("\n", " ")
    assert time.monotonic() - began < 30
