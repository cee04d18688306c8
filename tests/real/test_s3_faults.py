"""Single operations on a real S3 server with faults. Transient faults only cost time; permanent ones are reported."""

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
from pyrite.store.local_files import list_files
from pyrite.store.s3 import S3Store
from pyrite.store.s3_errors import RetryPolicy
from real.proxy import Fault, Kind, Proxy, Request

pytestmark = pytest.mark.real

#: Short waits, so that the tests are fast. The server needs a few seconds for a part of 32 MiB.
SHORT_WAITS = RetryPolicy(connect_timeout=2, read_timeout=2, max_wait=0.3, total_timeout=60)
FOR_LARGE_FILES = RetryPolicy(connect_timeout=2, read_timeout=6, max_wait=0.3, total_timeout=180)

SMALL, LARGE = b"some bytes " * 500, os.urandom(40 << 20)
OLD = b"earlier contents"
KEY = "runs/r/steps/prepare.json"


def checksum_of(data: bytes) -> Checksum:
    return Checksum(len(data), hashlib.sha256(data).hexdigest())


def publish(store: S3Store, data: bytes) -> None:
    local = store.scratch("runs/r/scratch") / "file"
    local.write_bytes(data)
    store.publish(local, KEY)


def fetch_without_cache(store: S3Store) -> bytes:
    store.local_path(KEY).unlink(missing_ok=True)
    return store.fetch(KEY).read_bytes()


def put_conditionally(store: S3Store, replace: bool) -> bool:
    current = store.read_versioned(KEY) if replace else None
    return store.conditional_put(KEY, SMALL, current) == store.read_versioned(KEY)


#: By operation: the method to break, the contents before, the call, and its expected result.
OPERATIONS: dict[str, tuple[str, bytes | None, Callable[[S3Store], object], object]] = {
    "write": ("PUT", None, lambda store: store.write(KEY, SMALL), None),
    "publish": ("PUT", OLD, lambda store: publish(store, SMALL), None),
    "publish, 40 MiB: upload parts": ("PUT", None, lambda store: publish(store, LARGE), None),
    "publish, 40 MiB: complete upload": ("POST", None, lambda store: publish(store, LARGE), None),
    "conditional put, create": ("PUT", None, lambda store: put_conditionally(store, replace=False), True),
    "conditional put, replace": ("PUT", OLD, lambda store: put_conditionally(store, replace=True), True),
    "read": ("GET", SMALL, lambda store: store.read(KEY), SMALL),
    "fetch": ("GET", SMALL, fetch_without_cache, SMALL),
    "fetch, 40 MiB": ("GET", LARGE, fetch_without_cache, LARGE),
    "checksum": ("HEAD", SMALL, lambda store: store.checksum(KEY), checksum_of(SMALL)),
    "list": ("GET", SMALL, lambda store: store.keys("runs"), [KEY]),
    "delete": ("DELETE", OLD, lambda store: store.delete(KEY), None),
}

#: How many consecutive requests are broken: more than boto3's own four attempts, unless the fault takes long.
FAULTS: dict[Kind, int] = {
    "500": 6,
    "503 SlowDown": 6,
    "429": 6,
    "409": 2,
    "request cut": 6,
    "headers cut": 6,
    "body cut": 6,
    "response lost": 6,
    "stall": 2,
}


@pytest.fixture
def store(s3: str, proxy: Proxy) -> S3Store:
    del proxy
    return S3Store(s3, SHORT_WAITS)


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_transient_fault_only_costs_time(
    operation: str,
    kind: Kind,
    s3: str,
    proxy: Proxy,
    measured: Callable[..., None],
) -> None:
    method, before, call, expected = OPERATIONS[operation]
    if kind == "409" and method not in ("PUT", "POST"):
        pytest.skip("409 is a response to a write")
    retry_policy = FOR_LARGE_FILES if "40 MiB" in operation else SHORT_WAITS
    store = S3Store(s3, retry_policy)
    if before is not None:
        publish(store, before)
    proxy.stall = 3 * retry_policy.read_timeout
    fault = Fault(kind, method, times=FAULTS[kind], part="list-type" if operation == "list" else "")
    proxy.faults.append(fault)
    requests_before, began = len(proxy.requests), time.monotonic()
    result = call(store)
    seconds, requests = time.monotonic() - began, len(proxy.requests) - requests_before
    proxy.faults.clear()
    # If only the response is lost, a retry may find the operation done before the last fault.
    minimum = 1 if kind in ("headers cut", "body cut", "response lost") else FAULTS[kind]
    assert fault.fired >= minimum, "the fault did not happen"
    assert result == expected
    if method in ("PUT", "POST"):
        data = LARGE if "40 MiB" in operation else SMALL
        assert store.read(KEY) == data
        assert store.checksum(KEY) == checksum_of(data)
    if operation == "delete":
        assert store.checksum(KEY) is None
    measured(
        table="operations", row=operation, column=kind, fired=fault.fired,
        requests=requests, seconds=seconds,
    )  # fmt: skip


def test_a_put_whose_response_is_lost_finds_the_winner(store: S3Store, proxy: Proxy, s3: str) -> None:
    fault = Fault("response lost", "PUT", conditional=True)
    proxy.faults.append(fault)
    ours = store.conditional_put(KEY, b"ours", None)
    assert ours is not None
    assert ours.data == b"ours"
    assert fault.fired == 1
    assert [r.fault for r in proxy.requests if r.conditional] == ["response lost", None], "the second must get 412"
    # A later writer loses, and gets the winner's contents.
    fault = Fault("response lost", "PUT", conditional=True)
    proxy.faults.append(fault)
    late = S3Store(s3, SHORT_WAITS).conditional_put(KEY, b"theirs", None)
    assert late == ours
    assert fault.fired == 1
    assert store.read(KEY) == b"ours"


def test_an_upload_with_a_lost_response_is_not_repeated(s3: str, proxy: Proxy) -> None:
    store = S3Store(s3, FOR_LARGE_FILES)
    fault = Fault("response lost", "POST", part="uploadId", times=4)
    proxy.faults.append(fault)
    publish(store, LARGE)
    assert fault.fired == 4
    sent = sum(request.length for request in proxy.requests if request.method == "PUT")
    assert len(LARGE) <= sent < 1.1 * len(LARGE)


def test_the_store_waits_for_an_endpoint_down_for_a_minute(
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


def test_a_stalled_request_is_retried_after_15_seconds(s3: str, proxy: Proxy, measured: Callable[..., None]) -> None:
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


def test_a_cached_model_is_not_downloaded_again(
    store: S3Store, s3: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("config.json", "model.safetensors"):
        local = store.scratch("runs/r/scratch") / name
        local.write_bytes(name.encode() * 1000)
        store.publish(local, f"runs/r/model/{name}")
    keys = ["runs/r/model/config.json", "runs/r/model/model.safetensors"]
    store.fetch_folder("runs/r/model", keys)
    assert proxy.count("GET", "/model/") == 0, "files published here are cached"
    monkeypatch.setenv("PYRITE_CACHE", str(tmp_path / "elsewhere"))
    for _ in range(3):
        S3Store(s3, SHORT_WAITS).fetch_folder("runs/r/model", keys)
    assert proxy.count("GET", "/model/") == 2
    # Other contents of the same size are fetched again.
    store.write(keys[0], b"x" * len(b"config.json" * 1000))
    folder = S3Store(s3, SHORT_WAITS).fetch_folder("runs/r/model", keys)
    assert proxy.count("GET", "/model/") == 3
    assert (folder / "config.json").read_bytes().startswith(b"xxx")


def test_objects_of_other_tools_are_cached_by_version(s3: str, proxy: Proxy, tmp_path: Path) -> None:
    bucket, prefix = s3.removeprefix("s3://").split("/")
    client = boto3.client("s3", endpoint_url=proxy.url)
    (tmp_path / "docs").mkdir()
    for name, data in (("one.jsonl", SMALL), ("deep/two.jsonl", OLD), ("empty.txt", b""), ("", b"")):
        # The last key is how consoles create a folder.
        client.put_object(Bucket=bucket, Key=f"{prefix}/docs/{name}", Body=data)
    files = ["deep/two.jsonl", "empty.txt", "one.jsonl"]

    def fetch_documents() -> tuple[Path, Counter[str]]:
        before = len(proxy.requests)
        folder = Path(local_path(f"{s3}/docs", "source.path"))
        assert sorted(path.relative_to(folder).as_posix() for path in list_files(folder)) == files
        return folder, Counter(r.method for r in proxy.requests[before:] if "list-type" not in r.target)

    folder, first = fetch_documents()
    assert first["GET"] >= len(files)
    folder, again = fetch_documents()
    assert again == {"HEAD": 1 + len(files)}, "one for the folder and one for each file"
    # Other contents of the same size are fetched again.
    client.put_object(Bucket=bucket, Key=f"{prefix}/docs/one.jsonl", Body=SMALL[::-1])
    assert (fetch_documents()[0] / "one.jsonl").read_bytes() == SMALL[::-1]
    # A damaged cached copy is fetched again.
    (folder / "one.jsonl").write_bytes(b"damaged")
    assert (fetch_documents()[0] / "one.jsonl").read_bytes() == SMALL[::-1]
    assert fetch_documents()[1] == {"HEAD": 1 + len(files)}


def test_all_objects_are_encrypted_with_the_kms_key(s3: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYRITE_S3_KMS_KEY", "alias/ours")
    store = S3Store(s3, SHORT_WAITS)
    (store.scratch("runs/r/scratch/checkpoints") / "state").write_bytes(SMALL)
    for call in (
        lambda: store.ensure_writable(),
        lambda: store.write("a", SMALL),
        lambda: publish(store, SMALL),
        lambda: publish(store, LARGE),
        lambda: store.conditional_put("b", SMALL, None),
        lambda: store.save_scratch("runs/r/scratch/checkpoints"),
    ):
        requests_before = len(proxy.requests)
        call()
        creations = [r for r in proxy.requests[requests_before:] if r.target.endswith("?uploads") or _puts_an_object(r)]
        assert creations
        for request in creations:
            assert request.headers["x-amz-server-side-encryption"] == "aws:kms"
            assert request.headers["x-amz-server-side-encryption-aws-kms-key-id"] == "alias/ours"
    assert any(request.target.endswith("?uploads") for request in proxy.requests)
    assert store.read(KEY) == LARGE


def _puts_an_object(request: Request) -> bool:
    return request.method == "PUT" and "uploadId" not in request.target


def test_a_failed_probe_leaves_no_files(s3: str, proxy: Proxy) -> None:
    fault = Fault("denied", "PUT", first=3)
    proxy.faults.append(fault)
    store = S3Store(s3, SHORT_WAITS)
    with pytest.raises(UserError, match="not authorized to perform: s3:PutObject"):
        store.ensure_writable()
    assert fault.fired == 1
    assert store.keys(".probe") == []
    assert proxy.count("DELETE", ".probe") == 1


def test_a_store_without_conditional_writes_is_reported(
    s3: str, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    store = S3Store(s3)  # the default timeouts: a retry would be counted twice
    store.ensure_writable()
    assert "writers create the same file" not in caplog.text
    assert sum(request.conditional for request in proxy.requests) == 4
    # SeaweedFS supports conditional writes. The proxy reports success to each loser, as a server without them would.
    fault = Fault("412 as 200", "PUT", conditional=True, every=1)
    proxy.faults.append(fault)
    store.ensure_writable()
    assert fault.fired == 4
    assert "let 4 of 4 writers create the same file" in caplog.text
    assert store.keys(".probe") == []
    # Even then the loser of a conditional put gets the winner's contents.
    first = store.conditional_put(KEY, b"first", None)
    assert first is not None
    assert store.conditional_put(KEY, b"second", None) == first


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing bucket", "the bucket does not exist"),
        ("forbidden", "access is denied"),
        ("wrong key", "access key is unknown"),
        ("wrong secret", "secret key does not match"),
        ("expired", "credentials have expired"),
        ("none", "no AWS credentials were found"),
    ],
)
def test_a_permanent_fault_is_reported_at_once(
    case: str,
    message: str,
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
        "conditional put": lambda store: store.conditional_put(KEY, SMALL, None),
        "publish": lambda store: publish(store, SMALL),
        "read": lambda store: store.read(KEY),
        "checksum": lambda store: store.checksum(KEY),
        "list": lambda store: store.keys("runs"),
    }
    for operation, call in operations.items():
        if case == "forbidden" and operation in ("read", "checksum", "list"):
            continue  # the reader may do these
        began = time.monotonic()
        with pytest.raises(UserError) as raised:
            call(S3Store(url))
        seconds = time.monotonic() - began
        assert message in str(raised.value)
        assert seconds < 5
        for name in ("AWS_SECRET_ACCESS_KEY", "READER_SECRET_ACCESS_KEY"):
            assert os.environ.get(name, "-none-") not in str(raised.value)
        measured(table="permanent", row=operation, column=case, seconds=seconds, message=str(raised.value))
    if case == "expired":
        assert fault.fired >= len(operations)
