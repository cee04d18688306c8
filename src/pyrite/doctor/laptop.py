"""Checks of this machine: Python, PyTorch, memory, disk, the base model, the store, the judge's servers, the clock."""

import json
import os
import platform
import shutil
import urllib.error
import urllib.request
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from pyrite.doctor import Check
from pyrite.errors import PyriteError
from pyrite.spec import JudgeServers, ModelSpec
from pyrite.store import Store

_GIB = 1 << 30
_MIN_PYTHON = (3, 11)
#: A run of the built-in sample needs 2 GiB; training a model of 110M parameters about 6.
_MIN_MEMORY, _GOOD_MEMORY = 2 * _GIB, 8 * _GIB
_MIN_DISK, _GOOD_DISK = 2 * _GIB, 20 * _GIB
#: S3 rejects requests whose time is off by 15 minutes.
_WARN_SKEW, _MAX_SKEW = 60.0, 900.0
_TIMEOUT = 10.0
_TEST_KEY = "probe/doctor"


class Machine(NamedTuple):
    """What is known about this machine without loading PyTorch."""

    python: tuple[int, int]
    torch: str  # version, with its build after a plus sign
    has_gpu: bool
    system: str
    memory: int  # bytes
    disk: int  # free bytes


class ServerReply(NamedTuple):
    """The reply of a judge's server: the names of its models or an error, and its Date header."""

    url: str
    models: tuple[str, ...] = ()
    error: str = ""
    date: str = ""


def check_machine(machine: Machine) -> list[Check]:
    """Python, the build of PyTorch, memory and disk."""
    return [_python(machine.python), _torch(machine), _memory(machine.memory), _disk(machine.disk)]


def _python(found: tuple[int, int]) -> Check:
    text = f"{found[0]}.{found[1]}"
    if found < _MIN_PYTHON:
        return Check("Python", "fail", text, "Install Python 3.11 or newer, and run `make setup PYTHON=python3.11`.")
    return Check("Python", "ok", text)


def _torch(machine: Machine) -> Check:
    number, _, build = machine.torch.partition("+")
    is_cpu = build == "cpu" or machine.system != "Linux"  # on Linux the build without a suffix is that for CUDA
    text = f"{number}, {build or ('CUDA' if machine.system == 'Linux' else machine.system)} build"
    if not machine.torch:
        return Check("PyTorch", "fail", "not installed", "Run `make setup`.")
    if machine.has_gpu and is_cpu:
        fix = "Training would not use the GPU. Run `uv pip install --torch-backend=auto torch`."
        return Check("PyTorch", "warn", f"{text}, but this machine has a GPU", fix)
    if not machine.has_gpu and not is_cpu:
        fix = "It works, and wastes several GB. `uv pip install --torch-backend=cpu torch` installs the small one."
        return Check("PyTorch", "warn", f"{text}, but this machine has no GPU", fix)
    return Check("PyTorch", "ok", text)


def _memory(size: int) -> Check:
    text = f"{size / _GIB:.1f} GiB"
    if size < _MIN_MEMORY:
        return Check("memory", "fail", text, "Use a machine with 2 GiB or more.")
    if size < _GOOD_MEMORY:
        return Check("memory", "warn", text, "Enough for all-MiniLM-L6-v2. Larger models need 8 GiB.")
    return Check("memory", "ok", text)


def _disk(free: int) -> Check:
    text = f"{free / _GIB:.0f} GiB free"
    if free < _MIN_DISK:
        return Check("disk", "fail", text, "Free 2 GiB, or choose another disk with --store.")
    if free < _GOOD_DISK:
        return Check("disk", "warn", text, "Enough for a small run; each model of a run needs its size on disk.")
    return Check("disk", "ok", text)


def check_server(reply: ServerReply, servers: JudgeServers, model: str | None) -> Check:
    """One of a judge's ``servers`` responds and serves the judge's model."""
    name = f"judge {reply.url}"
    if reply.error:
        return Check(name, "fail", reply.error, f"Start the server, or correct {servers.urls_setting} and the API key.")
    served = ", ".join(reply.models) or "no model"
    if model and model not in reply.models:
        return Check(
            name, "fail", f"serves {served}, not {model}", f"Set {servers.model_setting} to the name that it serves."
        )
    return Check(name, "ok", f"serves {served}")


def check_clock(dates: Sequence[str], now: float) -> Check:
    """This machine's clock agrees with the Date headers of the store or the judge's servers."""
    skews = [now - parsedate_to_datetime(date).timestamp() for date in dates if date]
    if not skews:
        return Check("clock", "skip", "no server to compare it with")
    skew = max(skews, key=abs)
    text = f"{abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'}"
    if abs(skew) >= _MAX_SKEW:
        return Check("clock", "fail", text, "S3 rejects requests. Synchronize the clock: `timedatectl set-ntp true`.")
    if abs(skew) >= _WARN_SKEW:
        return Check("clock", "warn", text, "Synchronize the clock: `timedatectl set-ntp true`.")
    return Check("clock", "ok", f"within {_WARN_SKEW:.0f} s of the server's")


def check_store(store: Store) -> Check:
    """Write, read and delete an object."""
    name = f"store {store}"
    try:
        store.ensure_writable()
        store.write(_TEST_KEY, b"pyrite")
        same = store.read(_TEST_KEY) == b"pyrite"
        store.delete(_TEST_KEY)
    except PyriteError as error:
        return Check(name, "fail", str(error), "Fix the cause that the message names.")
    if not same:
        return Check(name, "fail", "it returned other data than was written", "Use another server.")
    return Check(name, "ok", "readable and writable")


def check_model(spec: ModelSpec) -> Check:
    """The base model is here, or can be downloaded."""
    from pyrite.embedding.models import base_folder  # slow to import

    try:
        folder = base_folder(spec.base, spec.revision)
    except PyriteError as error:
        return Check("model", "fail", str(error), "Set model.base to a model that exists.")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return Check("model", "ok", f"{spec.base}, {size / 1e6:.0f} MB")


def read_machine(folder: Path) -> Machine:
    """Read this machine; ``folder``: where the store is, or will be."""
    while not folder.exists():
        folder = folder.parent
    try:
        torch = version("torch")
    except ModuleNotFoundError:
        torch = ""
    return Machine(
        python=(int(platform.python_version_tuple()[0]), int(platform.python_version_tuple()[1])),
        torch=torch,
        has_gpu=Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None,
        system=platform.system(),
        memory=_memory_limit(),
        disk=shutil.disk_usage(folder).free,
    )


def _memory_limit() -> int:
    """This machine's memory, or the limit of the container."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no cgroup, or "max"
        return total


def read_server(url: str, key: str | None) -> ServerReply:
    """Request the names of the models at ``url``."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        request = urllib.request.Request(f"{url}/v1/models", headers=headers)
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as reply:
            names = tuple(str(model["id"]) for model in json.load(reply)["data"])
            return ServerReply(url, names, date=reply.headers.get("Date") or "")
    except urllib.error.HTTPError as error:
        return ServerReply(url, error=f"replied HTTP {error.code} {error.reason}", date=error.headers.get("Date") or "")
    except (OSError, HTTPException) as error:
        return ServerReply(url, error=f"does not respond ({getattr(error, 'reason', error)})")
    except (ValueError, KeyError, TypeError):
        return ServerReply(url, error="is not an OpenAI-compatible server: /v1/models has no list of models")


def read_date(url: str) -> str:
    """The Date header of ``url``'s reply, whatever the reply is; "" without a reply."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_TIMEOUT) as reply:
            return str(reply.headers.get("Date") or "")
    except urllib.error.HTTPError as error:
        return error.headers.get("Date") or ""
    except (OSError, HTTPException, ValueError):
        return ""


def store_address(store: str) -> str:
    """The HTTP address of an S3 store's server; "" for a folder."""
    if not store.startswith("s3://"):
        return ""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    return endpoint or f"https://s3.{region}.amazonaws.com"
