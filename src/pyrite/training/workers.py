"""Starts the training processes, one per GPU of this machine, and reports the error of the first that fails."""

import logging
import multiprocessing
import os
import signal
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pyrite.errors import PyriteError, UserError, to_pyrite_error
from pyrite.processes import die_with_parent
from pyrite.training.parallel import PeerLost

#: How long a process waits for the others. The first one may save a checkpoint in a store that is unreachable for
#: hours. A process that has ended is noticed at once, so a short time has no use.
_TIMEOUT = timedelta(days=1)

#: How long the cause is awaited after a process has lost another one.
_CAUSE_SECONDS = 10

#: Sends an event to the parent: its name and its arguments.
Send = Callable[..., None]

_log = logging.getLogger(__name__)


@dataclass
class _Worker:
    """A training process, and the pipe from which its events are read."""

    name: str
    process: BaseProcess
    events: Connection
    lost: bool = False  # it failed because another one had ended


def require_gpus(count: int) -> list[str]:
    """The first ``count`` GPUs of this machine, as values of CUDA_VISIBLE_DEVICES.

    Raises:
        UserError: there are fewer.
    """
    found = torch.cuda.device_count()
    if found < count:
        raise UserError(f"finetune.gpus is {count}, but this machine has {found} for torch. Set it to {max(1, found)}.")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[:count] if visible else [str(number) for number in range(count)]


def run_workers(
    devices: Sequence[str],
    function: Callable[..., None],
    arguments: tuple[Any, ...],
    handlers: Mapping[str, Callable[..., Any]],
) -> None:
    """Run ``function(send, *arguments)`` in a process per device, and wait for all. All form a process group.

    If one fails, or if this process is interrupted, all are killed.

    Args:
        devices: CUDA_VISIBLE_DEVICES of each process; empty: it uses the CPU.
        handlers: the function to call for each event that a process sends, by the event's name.

    Raises:
        UserError, PyriteError: as raised in a process, or a process was killed.
        RuntimeError: another error in a process, which has printed the traceback.
    """
    context = multiprocessing.get_context("spawn")  # a fork cannot use CUDA
    workers: list[_Worker] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for rank, device in enumerate(devices):
                receiver, sender = context.Pipe(duplex=False)
                group = (rank, len(devices), str(Path(folder) / "group"))
                process = context.Process(
                    target=_run_worker, args=(os.getpid(), group, device, sender, function, arguments)
                )
                process.start()
                sender.close()
                workers.append(_Worker(f"training process {rank + 1} of {len(devices)}", process, receiver))
            _wait(workers, {**handlers, "warning": _log.warning})
        finally:
            for worker in workers:
                worker.process.kill()
                worker.process.join()
                worker.events.close()


def _wait(workers: Sequence[_Worker], handlers: Mapping[str, Callable[..., Any]]) -> None:
    """Handle events until all workers have ended. Raises the error of the first that failed."""
    running = {worker.events: worker for worker in workers}
    lost: PyriteError | None = None
    while running:
        ready = wait(list(running), _CAUSE_SECONDS if lost else None)
        if lost and not ready:
            raise lost
        for pipe in ready:
            assert isinstance(pipe, Connection)
            worker = running[pipe]
            try:
                name, *arguments = pipe.recv()
            except (EOFError, OSError):  # OSError: killed while it sent
                del running[pipe]
                worker.process.join()
                if not worker.lost:
                    _check_exit(worker)
                continue
            if name == "lost":
                worker.lost = True
                lost = PyriteError(f"{worker.name} lost its connection to the others: {arguments[0]}")
            elif name == "failed":
                raise _to_error(worker, *arguments)
            else:
                handlers[name](*arguments)
    if lost:
        raise lost


def _to_error(worker: _Worker, text: str, code: int | None) -> Exception:
    """The error that a worker sent. ``code``: its exit code if it is a PyriteError, else None."""
    if code is None:
        return RuntimeError(f"{worker.name} failed: {text}")
    return UserError(text) if code == UserError.exit_code else PyriteError(text)


def _check_exit(worker: _Worker) -> None:
    """Raise PyriteError if a worker that has ended, and sent no error, did not finish."""
    code = worker.process.exitcode or 0
    hint = " (out of memory?)" if code == -signal.SIGKILL else ""
    if code:
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        raise PyriteError(f"{worker.name} {how}{hint}.")


def _run_worker(
    parent: int,
    group: tuple[int, int, str],
    device: str,
    events: Connection,
    function: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    """The main function of a worker. ``group``: its rank, the number of workers, and the file by which they meet."""
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends Ctrl-C to every process; the parent handles it
    # With one visible GPU, libraries use it, and start nothing for several GPUs by themselves.
    os.environ["CUDA_VISIBLE_DEVICES"] = device
    rank, count, file = group

    lock = threading.Lock()

    def send(*event: Any) -> None:
        with lock:
            events.send(event)

    logging.getLogger("pyrite").addHandler(_Warnings(send))
    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    if rank:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # all print the same
    try:
        dist.init_process_group(
            "nccl" if device else "gloo", init_method=f"file://{file}", rank=rank, world_size=count, timeout=_TIMEOUT
        )
        function(send, *arguments)
        dist.destroy_process_group()
    except PeerLost as error:
        send("lost", str(error))
        os._exit(1)  # not sys.exit: the process group would wait for the others
    except Exception as error:
        known = to_pyrite_error(error)
        if not known:
            traceback.print_exc()
        send("failed", str(known or f"{type(error).__name__}: {error}"), known.exit_code if known else None)
        os._exit(1)


class _Warnings(logging.Handler):
    """Sends the warnings of a worker to the parent, which shows them."""

    def __init__(self, send: Send):
        super().__init__(logging.WARNING)
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        arguments = record.args if isinstance(record.args, tuple) else ()
        plain = [value if isinstance(value, int | float) else str(value) for value in arguments]
        self._send("warning", record.msg, *plain)
