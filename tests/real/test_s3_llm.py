"""An LLM's questions and judgments, which are paid for and kept in parts as they come, on a real S3 server.

Whatever befalls: every pair stands in the tables once, what was kept is not asked again, and the tables are those of an
undisturbed run in a folder. The LLM is a stub; the S3 server is real.
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
from real.s3_run import RUN, by_step, outputs
from stub_judge import MODEL
from stub_writer import Writer

pytestmark = pytest.mark.real

Pyrite = Callable[..., subprocess.CompletedProcess[str]]

#: A shard takes some 15 s with the stub's delay, so that it is in several parts.
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


class GeneratedQuestion(NamedTuple):
    """What a run has made: digests of outputs, and its judgments without what tells of times."""

    outputs: dict[str, str]
    judgments: pa.Table


def together(store: Store, keys: Iterable[str]) -> pa.Table:
    return pa.concat_tables(pq.read_table(io.BytesIO(store.read(key))) for key in keys)


def pairs(judgments: pa.Table) -> list[tuple[str, str]]:
    return list(zip(judgments["query_id"].to_pylist(), judgments["passage_id"].to_pylist(), strict=True))


def made(store: Store) -> GeneratedQuestion:
    found = outputs(store)
    shards = sorted(key for key in found if "/judgments/shard-" in key)
    judgments = together(store, (f"{RUN}/{key}" for key in shards))
    return GeneratedQuestion(
        {key: found[key] for key in found if key not in shards}, judgments.drop_columns(["latency"])
    )


def kept(store: Store) -> int:
    """How many parts the judge's shards have put away so far."""
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
def undisturbed(tmp_path_factory: pytest.TempPathFactory, questions: Path, tiny_model: Path) -> GeneratedQuestion:
    """What the run gives in a folder, in peace."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with Writer() as server:
        path = write_run(folder, questions, tiny_model, server)
        command = [sys.executable, "-m", "pyrite", "train", str(path), "--store", str(folder / "store")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    found = made(open_store(str(folder / "store")))
    assert len(set(pairs(found.judgments))) == found.judgments.num_rows > 500
    return found


def check(store: Store, undisturbed: GeneratedQuestion, llm: Writer) -> int:
    """The run has given what it gives in peace. How many pairs the LLM has answered more than once."""
    assert made(store) == undisturbed
    parts = store.keys("judgments")
    assert len(parts) == 4, "each shard's parts are merged: two of judge, and two of generate with own passages' grades"
    found = pairs(together(store, parts))
    assert len(set(found)) == len(found), "what is kept is kept once"
    return llm.settled().answered.total() - len(llm.answered)


@pytest.fixture
def on_s3(s3: str, run_file: Path, tmp_path: Path) -> Iterator[Callable[[], "subprocess.Popen[str]"]]:
    """Starts the run on S3, in a process group of its own."""
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


#: What is done with kept parts, by the method that tells it.
OPERATIONS = {"put": "PUT", "list": "GET", "read": "GET", "delete": "DELETE"}


def faults_of_parts(kind: Kind, store: Store, kept: str) -> dict[str, Fault]:
    """Every other doing of each operation on the parts below ``kept`` is broken."""
    root = store.url.partition("//")[2].partition("/")[2]
    faults = {}
    for operation, method in OPERATIONS.items():
        part = f"prefix={root}/{kept}/" if operation == "list" else f"/{root}/{kept}/"
        faults[f"{kept}, {operation}"] = Fault(kind, method, part=part, every=2)
    return faults


@pytest.mark.parametrize("kind", ["503 SlowDown", "cut answer", "answer lost"])
def test_among_faults_every_pair_is_asked_once(
    kind: Kind, s3: str, proxy: Proxy, pyrite: Pyrite, run_file: Path, llm: Writer, undisturbed: GeneratedQuestion,
    measured: Callable[..., None],
) -> None:  # fmt: skip
    store = open_store(s3)
    of_parts = faults_of_parts(kind, store, "generated") | faults_of_parts(kind, store, "judgments")
    of_steps = [Fault(kind, part=part, every=3) for part in ("/queries/generated", "/judgments/shard-", "/steps/")]
    proxy.faults += [*of_parts.values(), *of_steps]
    began = time.monotonic()
    done = pyrite("train", run_file, "--store", s3, timeout=900)
    seconds = time.monotonic() - began
    proxy.faults.clear()
    assert done.returncode == 0, done.stderr + done.stdout
    assert check(store, undisturbed, llm) == 0
    fired = {name: fault.fired for name, fault in of_parts.items()}
    # Whether a shard that makes questions finds another's answers to read is chance.
    assert all(times for name, times in fired.items() if name != "generated, read"), fired
    met = by_step(proxy, store)
    fired |= {step: met[step] for step in ("generate.0", "generate.1", "judge-1.0", "judge-1.1")}
    assert all(fault.fired for fault in of_steps)
    for row, times in fired.items():
        measured(table="llm", row=row, column=kind, fired=times)
    broken = sum(request.fault is not None for request in proxy.requests)
    measured(table="llm runs", column=kind, fired=broken, seconds=seconds, twice=0)


def test_killed_mid_way_it_goes_on_from_what_is_kept_on_another_machine(
    s3: str, on_s3: Callable[[], "subprocess.Popen[str]"], llm: Writer, undisturbed: GeneratedQuestion, tmp_path: Path,
    measured: Callable[..., None],
) -> None:  # fmt: skip
    store, began = open_store(s3), time.monotonic()
    process = on_s3()
    assert eventually(lambda: kept(store) >= 2, 300), "nothing was kept"
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert not any("judge-1" in key for key in store.keys(f"{RUN}/steps")), "it was finished before the kill"
    shutil.rmtree(tmp_path / "cache")
    again = on_s3()
    _, said = again.communicate(timeout=600)
    assert again.returncode == 0, said
    twice = check(store, undisturbed, llm)
    # Five seconds' work of two shards, and what was in flight.
    assert twice < 200
    measured(
        table="llm runs", column="killed (SIGKILL), and its machine lost", seconds=time.monotonic() - began, twice=twice
    )


def test_an_endpoint_that_is_down_for_a_minute_while_an_llm_judges(
    s3: str, proxy: Proxy, on_s3: Callable[[], "subprocess.Popen[str]"], llm: Writer, undisturbed: GeneratedQuestion,
    measured: Callable[..., None],
) -> None:  # fmt: skip
    store, began = open_store(s3), time.monotonic()
    process = on_s3()
    assert eventually(lambda: kept(store) >= 2, 300), "nothing was kept"
    proxy.down(60)
    time.sleep(55)
    assert process.poll() is None, "it gave up, or was finished before"
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    logs = [store.local_path(f"{RUN}/logs/judge-1.{shard}.log").read_text() for shard in (0, 1)]
    assert any("trying again" in log for log in logs), "no shard met the fault"
    assert check(store, undisturbed, llm) == 0
    measured(table="llm runs", column="endpoint down for 60 s", seconds=time.monotonic() - began, twice=0)


def test_credentials_that_expire_while_an_llm_judges_are_told_and_with_new_ones_it_goes_on(
    s3: str, proxy: Proxy, on_s3: Callable[[], "subprocess.Popen[str]"], llm: Writer, undisturbed: GeneratedQuestion,
    measured: Callable[..., None],
) -> None:  # fmt: skip
    store, began = open_store(s3), time.monotonic()
    process = on_s3()
    assert eventually(lambda: kept(store) >= 2, 300), "nothing was kept"
    fault = Fault("expired", every=1)
    proxy.faults.append(fault)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 2, said
    assert fault.fired
    assert "the AWS credentials have expired: get new ones, and give the same command again" in " ".join(said.split())
    assert "Traceback" not in said
    proxy.faults.clear()
    again = on_s3()
    _, said = again.communicate(timeout=600)
    assert again.returncode == 0, said
    twice = check(store, undisturbed, llm)
    assert twice < 200
    measured(
        table="llm runs", column="credentials expired", fired=fault.fired, seconds=time.monotonic() - began, twice=twice
    )


def test_what_is_missing_when_a_shard_stops_is_listed_on_s3(
    s3: str, pyrite: Pyrite, run_file: Path, llm: Writer
) -> None:
    llm.delay, llm.fault = 0.0, lambda number, _pair: "banana" if number > 100 else None
    done = pyrite("train", run_file, "--store", s3, timeout=300)
    assert done.returncode == 1, done.stderr
    assert llm.faults["banana"]
    told = re.search(r"Missing pairs: (\S+)\.", done.stderr.replace("\n", " "))
    assert told, done.stderr
    store = open_store(s3)
    lines = store.read(told[1].removeprefix(f"{store}/")).splitlines()
    assert {json.loads(line)["reason"] for line in lines} == {"the model's reply is none of the grades 1 to 4"}
