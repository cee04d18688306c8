"""Faults of a real S3 server, one operation at a time: what passes costs time and nothing else, the rest is told."""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest

from pyrite.errors import UserError
from pyrite.sources.files import local_path
from pyrite.store import Checksum
from pyrite.store.files import below
from pyrite.store.s3 import S3Store
from pyrite.store.s3_faults import RetryPolicy
from real.proxy import Fault, Kind, Proxy, Request

pytestmark = pytest.mark.real

#: Waits scaled down: a stall that outlives two reads, and pauses of tenths of a second. 32 MiB take the server a while.
SCALED = RetryPolicy(connect=2, read=2, between=0.3, total=60)
FOR_LARGE = RetryPolicy(connect=2, read=6, between=0.3, total=180)

SMALL, LARGE = b"some bytes " * 500, os.urandom(40 << 20)
OLD = b"what stood there before"
KEY = "runs/r/steps/prepare.json"


def checksum_of(data: bytes) -> Checksum:
    return Checksum(len(data), hashlib.sha256(data).hexdigest())


def publish(store: S3Store, data: bytes) -> None:
    local = store.scratch("runs/r/scratch") / "file"
    local.write_bytes(data)
    store.publish(local, KEY)


def fetched(store: S3Store) -> bytes:
    store.local_path(KEY).unlink(missing_ok=True)
    return store.fetch(KEY).read_bytes()


def committed(store: S3Store, over: bool) -> bool:
    current = store.read_versioned(KEY) if over else None
    return store.conditional_put(KEY, SMALL, current) == store.read_versioned(KEY)


#: By operation: the method that is broken, whether something stands before, what is done, and what must come of it.
OPERATIONS: dict[str, tuple[str, bytes | None, Callable[[S3Store], object], object]] = {
    "write": ("PUT", None, lambda store: store.write(KEY, SMALL), None),
    "publish": ("PUT", OLD, lambda store: publish(store, SMALL), None),
    "publish, 40 MiB in parts": ("PUT", None, lambda store: publish(store, LARGE), None),
    "publish, joining the parts": ("POST", None, lambda store: publish(store, LARGE), None),
    "commit, new": ("PUT", None, lambda store: committed(store, over=False), True),
    "commit, over another": ("PUT", OLD, lambda store: committed(store, over=True), True),
    "read": ("GET", SMALL, lambda store: store.read(KEY), SMALL),
    "fetch": ("GET", SMALL, fetched, SMALL),
    "fetch, 40 MiB in parts": ("GET", LARGE, fetched, LARGE),
    "checksum": ("HEAD", SMALL, lambda store: store.checksum(KEY), checksum_of(SMALL)),
    "list": ("GET", SMALL, lambda store: store.keys("runs"), [KEY]),
    "delete": ("DELETE", OLD, lambda store: store.delete(KEY), None),
}

#: How many requests in a row are broken: more than boto3's own four tries where they are cheap.
FAULTS: dict[Kind, int] = {
    "500": 6,
    "503 SlowDown": 6,
    "429": 6,
    "409": 2,
    "cut request": 6,
    "cut head": 6,
    "cut answer": 6,
    "answer lost": 6,
    "stall": 2,
}


@pytest.fixture
def store(s3: str, proxy: Proxy) -> S3Store:
    del proxy
    return S3Store(s3, SCALED)


def prepare(store: S3Store, before: bytes | None) -> None:
    if before is not None:
        publish(store, before)


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_fault_that_passes_costs_time_and_nothing_else(
    operation: str,
    kind: Kind,
    s3: str,
    proxy: Proxy,
    measured: Callable[..., None],
) -> None:
    method, before, act, result = OPERATIONS[operation]
    if kind == "409" and method not in ("PUT", "POST"):
        pytest.skip("409 is an answer to a write")
    retry_policy = FOR_LARGE if "parts" in operation else SCALED
    store = S3Store(s3, retry_policy)
    prepare(store, before)
    proxy.stall = 3 * retry_policy.read
    fault = Fault(kind, method, times=FAULTS[kind], part="list-type" if operation == "list" else "")
    proxy.faults.append(fault)
    asked, began = len(proxy.requests), time.monotonic()
    answer = act(store)
    seconds, requests = time.monotonic() - began, len(proxy.requests) - asked
    proxy.faults.clear()
    # What the store has done though its answer was lost may be found done before the last of the faults.
    expected = 1 if kind in ("cut head", "cut answer", "answer lost") else FAULTS[kind]
    assert fault.fired >= expected, "the fault did not happen"
    assert answer == result
    if method in ("PUT", "POST"):
        data = LARGE if "parts" in operation else SMALL
        assert store.read(KEY) == data
        assert store.checksum(KEY) == checksum_of(data)
    if operation == "delete":
        assert store.checksum(KEY) is None
    measured(
        table="operations", row=operation, column=kind, fired=fault.fired,
        requests=requests, seconds=seconds,
    )  # fmt: skip


def test_a_commit_whose_answer_is_lost_knows_its_own_work_from_anothers(store: S3Store, proxy: Proxy, s3: str) -> None:
    fault = Fault("answer lost", "PUT", conditional=True)
    proxy.faults.append(fault)
    mine = store.conditional_put(KEY, b"mine", None)
    assert mine is not None
    assert mine.data == b"mine"
    assert fault.fired == 1
    assert [r.fault for r in proxy.requests if r.conditional] == ["answer lost", None], "the second was refused: 412"
    # The same for another, who comes too late: refused, and told whose it is.
    fault = Fault("answer lost", "PUT", conditional=True)
    proxy.faults.append(fault)
    late = S3Store(s3, SCALED).conditional_put(KEY, b"theirs", None)
    assert late == mine
    assert fault.fired == 1
    assert store.read(KEY) == b"mine"


def test_an_upload_whose_answer_is_lost_is_not_sent_twice(s3: str, proxy: Proxy) -> None:
    store = S3Store(s3, FOR_LARGE)
    fault = Fault("answer lost", "POST", part="uploadId", times=4)
    proxy.faults.append(fault)
    publish(store, LARGE)
    assert fault.fired == 4
    sent = sum(request.length for request in proxy.requests if request.method == "PUT")
    assert len(LARGE) <= sent < 1.1 * len(LARGE)


def test_an_endpoint_that_is_down_for_a_minute(
    s3: str, proxy: Proxy, measured: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    store = S3Store(s3)
    store.write(KEY, OLD)
    proxy.down(60)
    began = time.monotonic()
    store.write(KEY, SMALL)
    seconds = time.monotonic() - began
    assert seconds > 55, "the endpoint was not down"
    assert "trying again" in caplog.text
    assert store.read(KEY) == SMALL
    measured(table="down", seconds=seconds, messages=len(caplog.records))


def test_a_stall_of_30_s_is_left_after_15(s3: str, proxy: Proxy, measured: Callable[..., None]) -> None:
    store = S3Store(s3)
    store.write(KEY, SMALL)
    fault = Fault("stall", "GET")
    proxy.faults.append(fault)
    began = time.monotonic()
    assert store.read(KEY) == SMALL
    seconds = time.monotonic() - began
    assert fault.fired == 1
    assert 14 < seconds < 22
    measured(table="stall", seconds=seconds)


def test_a_model_that_is_cached_is_not_downloaded_twice(
    store: S3Store, s3: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("config.json", "model.safetensors"):
        local = store.scratch("runs/r/scratch") / name
        local.write_bytes(name.encode() * 1000)
        store.publish(local, f"runs/r/model/{name}")
    keys = ["runs/r/model/config.json", "runs/r/model/model.safetensors"]
    store.fetch_folder("runs/r/model", keys)
    assert proxy.count("GET", "/model/") == 0, "what this machine published it need not fetch"
    monkeypatch.setenv("PYRITE_CACHE", str(tmp_path / "elsewhere"))
    for _ in range(3):
        S3Store(s3, SCALED).fetch_folder("runs/r/model", keys)
    assert proxy.count("GET", "/model/") == 2
    # Changed in the store under the same size: it is fetched again.
    store.write(keys[0], b"x" * len(b"config.json" * 1000))
    folder = S3Store(s3, SCALED).fetch_folder("runs/r/model", keys)
    assert proxy.count("GET", "/model/") == 3
    assert (folder / "config.json").read_bytes().startswith(b"xxx")


def test_what_another_tool_put_there_is_fetched_once_and_again_when_it_changes(
    s3: str, proxy: Proxy, tmp_path: Path
) -> None:
    bucket, prefix = s3.removeprefix("s3://").split("/")
    client = boto3.client("s3", endpoint_url=proxy.url)
    (tmp_path / "docs").mkdir()
    for name, data in (("one.jsonl", SMALL), ("deep/two.jsonl", OLD), ("empty.txt", b""), ("", b"")):
        client.put_object(Bucket=bucket, Key=f"{prefix}/docs/{name}", Body=data)  # the last as a console shows a folder
    files = ["deep/two.jsonl", "empty.txt", "one.jsonl"]

    def bring() -> tuple[Path, Counter[str]]:
        before = len(proxy.requests)
        folder = Path(local_path(f"{s3}/docs", "source.path"))
        assert sorted(path.relative_to(folder).as_posix() for path in below(folder)) == files
        return folder, Counter(r.method for r in proxy.requests[before:] if "list-type" not in r.target)

    folder, first = bring()
    assert first["GET"] >= len(files)
    folder, again = bring()
    assert again == {"HEAD": 1 + len(files)}, "the folder itself, and each file once"
    # Changed in the store under the same size.
    client.put_object(Bucket=bucket, Key=f"{prefix}/docs/one.jsonl", Body=SMALL[::-1])
    assert (bring()[0] / "one.jsonl").read_bytes() == SMALL[::-1]
    # ObjectCorrupted here: it is fetched anew.
    (folder / "one.jsonl").write_bytes(b"damaged")
    assert (bring()[0] / "one.jsonl").read_bytes() == SMALL[::-1]
    assert bring()[1] == {"HEAD": 1 + len(files)}


def test_everything_is_encrypted_with_the_key_that_is_named(
    s3: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYRITE_S3_KMS_KEY", "alias/ours")
    store = S3Store(s3, SCALED)
    (store.scratch("runs/r/scratch/checkpoints") / "state").write_bytes(SMALL)
    for act in (
        lambda: store.ensure_writable(),
        lambda: store.write("a", SMALL),
        lambda: publish(store, SMALL),
        lambda: publish(store, LARGE),
        lambda: store.conditional_put("b", SMALL, None),
        lambda: store.save_scratch("runs/r/scratch/checkpoints"),
    ):
        asked = len(proxy.requests)
        act()
        makes = [r for r in proxy.requests[asked:] if r.target.endswith("?uploads") or _puts_an_object(r)]
        assert makes
        for request in makes:
            assert request.headers["x-amz-server-side-encryption"] == "aws:kms"
            assert request.headers["x-amz-server-side-encryption-aws-kms-key-id"] == "alias/ours"
    assert any(request.target.endswith("?uploads") for request in proxy.requests)
    assert store.read(KEY) == LARGE


def _puts_an_object(request: Request) -> bool:
    return request.method == "PUT" and "uploadId" not in request.target


def test_a_probe_that_fails_leaves_nothing(s3: str, proxy: Proxy) -> None:
    fault = Fault("denied", "PUT", first=3)
    proxy.faults.append(fault)
    store = S3Store(s3, SCALED)
    with pytest.raises(UserError, match="not authorized to perform: s3:PutObject"):
        store.ensure_writable()
    assert fault.fired == 1
    assert store.keys(".probe") == []
    assert proxy.count("DELETE", ".probe") == 1


def test_a_store_that_lets_two_writers_win_is_named(s3: str, proxy: Proxy, caplog: pytest.LogCaptureFixture) -> None:
    store = S3Store(s3)  # with all its retry_policy: a request that is made twice would be counted twice
    store.ensure_writable()
    assert "writers" not in caplog.text
    assert sum(request.conditional for request in proxy.requests) == 4
    # This server keeps its word; by the proxy each loser hears that it has won, as from a store that does not.
    fault = Fault("412 as 200", "PUT", conditional=True, every=1)
    proxy.faults.append(fault)
    store.ensure_writable()
    assert fault.fired == 4
    assert "lets 4 of 4 writers of one new file win" in caplog.text
    assert store.keys(".probe") == []
    # Even there a commit that did not win knows it.
    first = store.conditional_put(KEY, b"first", None)
    assert first is not None
    assert store.conditional_put(KEY, b"second", None) == first


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("missing bucket", "the bucket does not exist"),
        ("forbidden", "access is denied"),
        ("wrong key", "does not know this access key"),
        ("wrong secret", "secret key is not the one"),
        ("expired", "credentials have expired"),
        ("none", "no AWS credentials were found"),
    ],
)
def test_a_fault_that_does_not_pass_is_told_at_once(
    case: str,
    words: str,
    s3: str,
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    measured: Callable[..., None],
) -> None:
    url = s3.replace("pyrite", "no-such-bucket") if case == "missing bucket" else s3
    if case == "forbidden":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", os.environ["READER_ACCESS_KEY_ID"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", os.environ["READER_SECRET_ACCESS_KEY"])
    if case == "wrong key":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIANOBODY")
    if case == "wrong secret":
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-this-one")
    if case == "none":
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("HOME", str(tmp_path))
    fault = Fault("expired", every=1)
    if case == "expired":
        proxy.faults.append(fault)
    operations: dict[str, Callable[[S3Store], object]] = {
        "ensure_writable": lambda store: store.ensure_writable(),
        "write": lambda store: store.write(KEY, SMALL),
        "commit": lambda store: store.conditional_put(KEY, SMALL, None),
        "publish": lambda store: publish(store, SMALL),
        "read": lambda store: store.read(KEY),
        "checksum": lambda store: store.checksum(KEY),
        "list": lambda store: store.keys("runs"),
    }
    for operation, act in operations.items():
        if case == "forbidden" and operation in ("read", "checksum", "list"):
            continue  # this one may read
        began = time.monotonic()
        with pytest.raises(UserError) as told:
            act(S3Store(url))
        seconds = time.monotonic() - began
        assert words in str(told.value)
        assert seconds < 5
        for name in ("AWS_SECRET_ACCESS_KEY", "READER_SECRET_ACCESS_KEY"):
            assert os.environ.get(name, "-none-") not in str(told.value)
        measured(table="told", row=operation, column=case, seconds=seconds, said=str(told.value))
    if case == "expired":
        assert fault.fired >= len(operations)
