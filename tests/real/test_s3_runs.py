"""Whole runs on a real S3 server through the front door: as on a folder, whatever befalls."""

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
from real.s3_run import RUN, by_step, manifests, outputs, step_of
from small_data import PASSAGE, found_first

pytestmark = pytest.mark.real

Pyrite = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def on_a_folder(tmp_path_factory: pytest.TempPathFactory, questions: Path, tiny_model: Path) -> dict[str, str]:
    """What the small run gives in a folder, undisturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
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


def test_a_run_on_s3_gives_what_it_gives_in_a_folder_and_can_be_looked_at_from_anywhere(
    s3: str, proxy: Proxy, pyrite: Pyrite, small: Path, on_a_folder: dict[str, str], tmp_path: Path
) -> None:
    done = pyrite("train", small, "--store", s3)
    assert done.returncode == 0, done.stderr + done.stdout
    store = open_store(s3)
    assert outputs(store) == on_a_folder
    assert not store.keys(f"{RUN}/scratch"), "what was kept of work in progress is gone when it is finished"
    page = Path(done.stdout.rstrip().splitlines()[-1])
    assert page.is_file()
    assert f"model: {s3}/{RUN}/model" in done.stdout
    assert proxy.count("GET", ".safetensors") == 0, "this machine made the model, and need not fetch it"

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
    assert "It has: small." in unknown.stderr.replace("\n", " ")
    # Other bytes under the digest that was put there.
    bucket, _, prefix = s3.removeprefix("s3://").partition("/")
    checksum = store.checksum(f"{RUN}/run.yaml")
    assert checksum
    client = boto3.client("s3")
    client.put_object(
        Bucket=bucket, Key=f"{prefix}/{RUN}/run.yaml", Body=b"other", Metadata={"sha256": checksum.sha256}
    )
    with pytest.raises(ObjectCorrupted, match="is not what was put there"):
        store.read(f"{RUN}/run.yaml")
    with pytest.raises(PyriteError, match="is not what was put there"):
        store.fetch(f"{RUN}/run.yaml")
    assert pyrite("train", small, **elsewhere).returncode == 0
    # ObjectCorrupted in the store: who reads it says so, and --force mends it.
    key = f"{RUN}/iterations/1/candidates.parquet"
    content = bytearray(store.read(key))
    content[len(content) // 2] ^= 1
    store.write(key, bytes(content))
    damaged = pyrite("judge", small, "-i", 1, "--shard", 0, "--force", **elsewhere)
    assert damaged.returncode == 1
    assert "is not what its manifest says" in damaged.stderr.replace("\n", " ")
    assert pyrite("retrieve", small, "-i", 1, "--force", **elsewhere).returncode == 0
    assert pyrite("judge", small, "-i", 1, "--shard", 0, "--force", **elsewhere).returncode == 0


@pytest.fixture
def run_among(
    s3: str, proxy: Proxy, pyrite: Pyrite, small: Path, on_a_folder: dict[str, str]
) -> Callable[..., tuple[Store, int, float]]:
    """Does the small run among faults, and proves that it gives what it gives in peace.

    Returns its store, its requests and its seconds.
    """

    def call(*faults: Fault) -> tuple[Store, int, float]:
        proxy.faults += faults
        began = time.monotonic()
        done = pyrite("train", small, "--store", s3, timeout=900)
        seconds = time.monotonic() - began
        requests = len(proxy.requests)  # before this test's own
        proxy.faults.clear()
        assert done.returncode == 0, done.stderr + done.stdout
        store = open_store(s3)
        assert outputs(store) == on_a_folder
        return store, requests, seconds

    return call


#: By kind of fault: each how many-th request meets it. A stall takes 15 s of the run's time, so there are fewer.
SPRINKLED: dict[Kind, int] = {
    "500": 5,
    "503 SlowDown": 5,
    "429": 5,
    "cut request": 5,
    "cut answer": 5,
    "answer lost": 5,
    "stall": 40,
}


@pytest.mark.parametrize("kind", SPRINKLED)
def test_a_run_among_faults_gives_what_it_gives_in_peace(
    kind: Kind, run_among: Callable[..., tuple[Store, int, float]], proxy: Proxy, measured: Callable[..., None]
) -> None:
    fault = Fault(kind, every=SPRINKLED[kind])
    store, requests, seconds = run_among(fault)
    assert fault.fired > 3, "the fault did not happen"
    for step, fired in by_step(proxy, store).items():
        measured(table="steps", row=step, column=kind, fired=fired)
    measured(table="runs", column=kind, fired=fault.fired, requests=requests, seconds=seconds)


@pytest.mark.parametrize("kind", ["answer lost", "503 SlowDown"])
def test_every_manifests_put_is_broken_and_each_step_is_done_once(
    kind: Kind, run_among: Callable[..., tuple[Store, int, float]], proxy: Proxy, measured: Callable[..., None]
) -> None:
    judged = ("judge-1.0", "judge-1.1")
    steps = ("prepare", "validate-0", "retrieve-1", *judged, "mine-1", "finetune-1", "validate-1", "evaluate")
    faults = [Fault(kind, "PUT", part=f"/steps/{step}.json", times=5, conditional=True) for step in steps]
    run_among(*faults)
    # An answer that is lost is the answer of a store that has acted: the second try is told so, and there is no third.
    expected = 1 if kind == "answer lost" else 5
    for step, fault in zip(steps, faults, strict=True):
        assert fault.fired >= expected, f"the fault did not happen to {step}"
        measured(table="manifests", row=step, column=kind, fired=fault.fired)
    puts = Counter(step_of(r, {}) for r in proxy.requests if r.method == "PUT" and r.conditional and not r.fault)
    assert all(puts[step] >= 1 for step in steps)


def test_a_checkpoint_outlives_its_machine(s3: str, small: Path, pyrite: Pyrite, tmp_path: Path) -> None:
    words = [str(small), "finetune.epochs=8", "finetune.checkpoint_every=1", "--store", s3]
    process = subprocess.Popen([sys.executable, "-m", "pyrite", "train", *words], cwd=tmp_path, start_new_session=True)
    store = open_store(s3)
    assert eventually(lambda: any(".kept/list" in key for key in store.keys(f"{RUN}/scratch")), 180), "none was kept"
    os.kill(process.pid, signal.SIGKILL)
    process.wait(60)
    assert f"{RUN}/steps/finetune-1.json" not in store.keys(f"{RUN}/steps")
    shutil.rmtree(tmp_path / "cache")
    again = pyrite("train", *words)
    assert again.returncode == 0, again.stderr
    assert "resuming from checkpoint-" in again.stdout
    undisturbed = pyrite("train", *words[:-1], tmp_path / "folder")
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert outputs(store) == outputs(open_store(str(tmp_path / "folder")))
    assert not store.keys(f"{RUN}/scratch")


def test_two_machines_that_do_the_same_steps_end_with_one_result(
    s3: str, small: Path, on_a_folder: dict[str, str], tmp_path: Path
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
    said = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    store = open_store(s3)
    assert outputs(store) == on_a_folder
    assert len({manifest["attempt"] for manifest in manifests(store).values()}) == len(manifests(store))


@pytest.mark.parametrize("case", ["missing bucket", "wrong secret", "forbidden"])
def test_a_store_that_cannot_be_used_is_told_at_once_and_without_a_traceback(
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
