"""Runs ``python -m pyrite`` in a fork of a process that has imported the slow packages once.

It replaces starting Python, which imports for 2 to 8 seconds per command. Pyrite's own modules are not
imported in advance, so commands read their environment as usual. As a program, this file is the server that forks.
"""

import atexit
import functools
import gc
import json
import multiprocessing.util
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

#: Torch before pyarrow, as in a step's process.
_SLOW = ("torch", "transformers.trainer", "sentence_transformers", "scipy.stats", "pyarrow.parquet", "aiohttp", "boto3")
_SLOW += ("datasets", "rich.console", "rich.progress", "typer", "pydantic", "jinja2")


@functools.cache
def _server() -> tuple[Path, subprocess.Popen[bytes]]:
    """The server's folder and process. It ends with this process, which is the only writer to its standard input."""
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    process = subprocess.Popen(
        [sys.executable, __file__, str(folder / "socket")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    assert process.stdout
    assert process.stdout.readline() == b"ready\n"
    return folder, process


def pyrite(
    arguments: Sequence[object], cwd: Path, timeout: float = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m pyrite`` with these arguments; like ``subprocess.run`` with captured text."""
    folder, _ = _server()
    arguments = [*map(str, arguments)]
    files = Path(tempfile.mkdtemp(dir=folder))
    request = {"arguments": arguments, "cwd": str(cwd), "env": {**os.environ, **environment}, "files": str(files)}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(folder / "socket"))
        replies = connection.makefile("rw")
        replies.write(json.dumps(request) + "\n")
        replies.flush()
        process = int(replies.readline())
        connection.settimeout(timeout)
        try:
            code = int(replies.readline())
        except TimeoutError:
            os.kill(process, signal.SIGKILL)
            raise subprocess.TimeoutExpired(arguments, timeout) from None
    out, err = ((files / name).read_text() for name in ("out", "err"))
    return subprocess.CompletedProcess(arguments, code, out, err)


def _serve(address: str) -> dict[str, object]:
    """Fork for each request. Returns the request in the process that is to run it; ends with standard input."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the children
    print("ready", flush=True)
    if os.fork() == 0:  # ends the server with its parent, however that ends
        sys.stdin.buffer.read()
        with suppress(ProcessLookupError):
            os.kill(os.getppid(), signal.SIGKILL)
        os._exit(0)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            replies = connection.makefile("rw")
            request = json.loads(replies.readline())
            process = os.fork()
            if process == 0:
                replies.close()
                connection.close()
                return request
            replies.write(f"{process}\n")
            replies.flush()
            _, status = os.waitpid(process, 0)
            replies.write(f"{os.waitstatus_to_exitcode(status)}\n")
            replies.flush()
            os._exit(0)
        connection.close()


def _fork_instead(_path: bytes, arguments: Sequence[str], keep: Sequence[int]) -> int:
    """For multiprocessing's own servers: run their program in a fork, with the given file descriptors only."""
    if process := os.fork():
        return process
    start = 3
    for descriptor in sorted({*keep} - {0, 1, 2}):
        os.closerange(start, descriptor)
        start = descriptor + 1
    os.closerange(start, 4096)
    code = 1
    try:
        exec(arguments[-1], {})
        code = 0
    finally:
        os._exit(code)


def _run(request: dict[str, object]) -> None:
    os.environ.clear()
    os.environ.update(request["env"])  # type: ignore[arg-type]
    os.chdir(str(request["cwd"]))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for target, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{request['files']}/{name}", os.O_WRONLY | os.O_CREAT, 0o644), target)
    multiprocessing.util.spawnv_passfds = _fork_instead
    sys.argv = ["pyrite", *request["arguments"]]  # type: ignore[misc]
    try:
        runpy.run_module("pyrite", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        # Freeing all modules would copy the server's memory, which takes two seconds.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else 0)


if __name__ == "__main__":
    for name in _SLOW:
        import_module(name)
    gc.freeze()  # a collection in a fork would copy this memory
    _run(_serve(sys.argv[1]))
