"""Questions and judgments of an LLM, which are saved every few seconds, on a real S3 server.

Despite faults, the tables contain every pair once and equal those of a run in a folder, and no saved reply is requested
again. The LLM is a stub, because a real one needs a GPU. The S3 server is real.
"""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pyrite.store import Store, open_store
from real.proxy import Fault, Kind, Proxy, eventually
from real.s3_run import RUN, faults_by_step, outputs
from stub_judge import MODEL
from stub_writer import Writer

pytestmark = pytest.mark.real

Pyrite = Callable[..., subprocess.CompletedProcess[str]]

#: Seconds per reply of the stub. A shard takes about 15 s, so it writes several parts.
DELAY = 0.1
LLM_RUN = """\
source: {{kind: jsonl, path: {questions}, topic: topic, type: type}}
model: {{base: {model}}}
iterations: 1
prepare: {{min_chars: 40, max_chars: 400}}
generate: {{queries: 16}}
retrieve: {{range_max: 12}}
judge: {{kind: llm, model: {llm}, rank_window: null}}
mine: {{num_negatives: 2, relative_margin: null}}
finetune: {{batch_size: 8, learning_rate: 1.0e-3}}
evaluate: {{blends: [], resamples: 200}}
resources: {{judge_urls: ["{url}"], judge_concurrency: 2}}
"""


class Results(NamedTuple):
    """A run's results: digests of outputs, and judgments without their latencies."""

    outputs: dict[str, str]
    judgments: pa.Table


def read_tables(store: Store, keys: Iterable[str]) -> pa.Table:
    return pa.concat_tables(pq.read_table(io.BytesIO(store.read(key))) for key in keys)


def pairs(judgments: pa.Table) -> list[tuple[str, str]]:
    return list(zip(judgments["query_id"].to_pylist(), judgments["passage_id"].to_pylist(), strict=True))


def results_of(store: Store) -> Results:
    digests = outputs(store)
    shards = sorted(key for key in digests if "/judgments/shard-" in key)
    judgments = read_tables(store, (f"{RUN}/{key}" for key in shards))
    return Results({key: digests[key] for key in digests if key not in shards}, judgments.drop_columns(["latency"]))


def count_parts(store: Store) -> int:
    """The number of parts that the judge's shards have saved so far."""
    return sum(f"/{RUN.removeprefix('runs/')}/1." in key for key in store.keys("judgments"))


@pytest.fixture
def llm() -> Iterator[Writer]:
    with Writer() as server:
        server.delay = DELAY
        yield server


def write_run(folder: Path, questions: Path, model: Path, llm: Writer) -> Path:
    path = folder / "small.yaml"
    path.write_text(LLM_RUN.format(questions=questions, model=model, llm=MODEL, url=llm.url))
    return path


@pytest.fixture
def run_file(tmp_path: Path, questions: Path, tiny_model: Path, llm: Writer) -> Path:
    return write_run(tmp_path, questions, tiny_model, llm)


@pytest.fixture(scope="session")
def fault_free(tmp_path_factory: pytest.TempPathFactory, questions: Path, tiny_model: Path) -> Results:
    """Results of the run in a folder, without faults."""
    folder = tmp_path_factory.mktemp("without-faults")
    with Writer() as server:
        path = write_run(folder, questions, tiny_model, server)
        command = [sys.executable, "-m", "pyrite", "train", str(path), "--store", str(folder / "store")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    results = results_of(open_store(str(folder / "store")))
    assert len(set(pairs(results.judgments))) == results.judgments.num_rows > 500
    return results


def check(store: Store, fault_free: Results, llm: Writer) -> int:
    """Compare the results with ``fault_free``. Returns how often the LLM repeated a reply."""
    assert results_of(store) == fault_free
    parts = store.keys("judgments")
    assert len(parts) == 4, (
        "each shard's parts must be merged: two shards of judge, and two of generate, which grades its own passages"
    )
    saved_pairs = pairs(read_tables(store, parts))
    assert len(set(saved_pairs)) == len(saved_pairs), "a pair was saved twice"
    return llm.settled().graded.total() - len(llm.graded)


@pytest.fixture
def start_on_s3(s3: str, run_file: Path, tmp_path: Path) -> Iterator[Callable[[], "subprocess.Popen[str]"]]:
    """Starts the run on S3, in its own process group."""
    started: list[subprocess.Popen[str]] = []

    def start() -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-m", "pyrite", "train", str(run_file), "--store", s3],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


#: HTTP methods of the operations on saved parts.
OPERATIONS = {"put": "PUT", "list": "GET", "read": "GET", "delete": "DELETE"}


def part_faults_of(kind: Kind, store: Store, folder: str) -> dict[str, Fault]:
    """Faults that break every second request of each operation on the parts in ``folder``."""
    root = store.url.partition("//")[2].partition("/")[2]
    faults = {}
    for operation, method in OPERATIONS.items():
        part = f"prefix={root}/{folder}/" if operation == "list" else f"/{root}/{folder}/"
        faults[f"{folder}, {operation}"] = Fault(kind, method, part=part, every=2)
    return faults


@pytest.mark.parametrize("kind", ["503 SlowDown", "body cut", "response lost"])
def test_no_pair_is_requested_twice_despite_faults(
    kind: Kind, s3: str, proxy: Proxy, pyrite: Pyrite, run_file: Path, llm: Writer, fault_free: Results,
    measured: Callable[..., None],
) -> None:  # fmt: skip
    store = open_store(s3)
    part_faults = part_faults_of(kind, store, "generated") | part_faults_of(kind, store, "judgments")
    step_faults = [Fault(kind, part=part, every=3) for part in ("/queries/generated", "/judgments/shard-", "/steps/")]
    proxy.faults += [*part_faults.values(), *step_faults]
    began = time.monotonic()
    done = pyrite("train", run_file, "--store", s3, timeout=900)
    seconds = time.monotonic() - began
    proxy.faults.clear()
    assert done.returncode == 0, done.stderr + done.stdout
    assert check(store, fault_free, llm) == 0
    fired = {name: fault.fired for name, fault in part_faults.items()}
    # A shard of generate may or may not find parts of another to read.
    assert all(times for name, times in fired.items() if name != "generated, read"), fired
    by_step = faults_by_step(proxy, store)
    fired |= {step: by_step[step] for step in ("generate.0", "generate.1", "judge-1.0", "judge-1.1")}
    assert all(fault.fired for fault in step_faults)
    for row, times in fired.items():
        measured(table="llm", row=row, column=kind, fired=times)
    broken = sum(request.fault is not None for request in proxy.requests)
    measured(table="llm runs", column=kind, fired=broken, seconds=seconds, repeated=0)


def test_a_killed_run_resumes_on_another_machine(
    s3: str, start_on_s3: Callable[[], "subprocess.Popen[str]"], llm: Writer, fault_free: Results, tmp_path: Path,
    measured: Callable[..., None],
) -> None:  # fmt: skip
    store, began = open_store(s3), time.monotonic()
    process = start_on_s3()
    assert eventually(lambda: count_parts(store) >= 2, 300), "no part was saved"
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert not any("judge-1" in key for key in store.keys(f"{RUN}/steps")), "judging finished before the kill"
    shutil.rmtree(tmp_path / "cache")
    again = start_on_s3()
    _, stderr = again.communicate(timeout=600)
    assert again.returncode == 0, stderr
    repeated = check(store, fault_free, llm)
    # Five seconds' work of two shards, and the requests in flight.
    assert repeated < 200
    measured(
        table="llm runs",
        column="killed (SIGKILL), and its machine lost",
        seconds=time.monotonic() - began,
        repeated=repeated,
    )


def test_judging_survives_an_endpoint_down_for_a_minute(
    s3: str, proxy: Proxy, start_on_s3: Callable[[], "subprocess.Popen[str]"], llm: Writer, fault_free: Results,
    measured: Callable[..., None],
) -> None:  # fmt: skip
    store, began = open_store(s3), time.monotonic()
    process = start_on_s3()
    assert eventually(lambda: count_parts(store) >= 2, 300), "no part was saved"
    proxy.down(60)
    time.sleep(55)
    assert process.poll() is None, "the run failed, or finished too early"
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, stderr
    logs = [store.local_path(f"{RUN}/logs/judge-1.{shard}.log").read_text() for shard in (0, 1)]
    assert any("trying again" in log for log in logs), "no shard was affected"
    assert check(store, fault_free, llm) == 0
    measured(table="llm runs", column="endpoint down for 60 s", seconds=time.monotonic() - began, repeated=0)


def test_judging_resumes_after_credentials_expire(
    s3: str, proxy: Proxy, start_on_s3: Callable[[], "subprocess.Popen[str]"], llm: Writer, fault_free: Results,
    measured: Callable[..., None],
) -> None:  # fmt: skip
    store, began = open_store(s3), time.monotonic()
    process = start_on_s3()
    assert eventually(lambda: count_parts(store) >= 2, 300), "no part was saved"
    fault = Fault("expired", every=1)
    proxy.faults.append(fault)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 2, stderr
    assert fault.fired
    assert "the AWS credentials have expired: get new ones, then run the same command again" in " ".join(stderr.split())
    assert "Traceback" not in stderr
    proxy.faults.clear()
    again = start_on_s3()
    _, stderr = again.communicate(timeout=600)
    assert again.returncode == 0, stderr
    repeated = check(store, fault_free, llm)
    assert repeated < 200
    measured(
        table="llm runs",
        column="credentials expired",
        fired=fault.fired,
        seconds=time.monotonic() - began,
        repeated=repeated,
    )


def test_missing_pairs_of_a_stopped_shard_are_listed(s3: str, pyrite: Pyrite, run_file: Path, llm: Writer) -> None:
    llm.delay, llm.fault = 0.0, lambda number, _pair: "banana" if number > 100 else None
    done = pyrite("train", run_file, "--store", s3, timeout=300)
    assert done.returncode == 1, done.stderr
    assert llm.faults["banana"]
    match = re.search(r"Missing pairs: (\S+)\.", done.stderr.replace("\n", " "))
    assert match, done.stderr
    store = open_store(s3)
    lines = store.read(match[1].removeprefix(f"{store}/")).splitlines()
    assert {json.loads(line)["reason"] for line in lines} == {
        "the model's reply is none of the grades 1 to 4: 'banana'"
    }
