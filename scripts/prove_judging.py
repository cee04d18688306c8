"""Fault test of judging: four shards use a real vLLM server while workers and server are killed repeatedly.

    make real-vllm ARGS=--install-only
    python scripts/prove_judging.py [--pairs N] [--signal KILL|TERM] [--every SECONDS]

Every --every seconds a random worker gets the signal and is restarted, as Kubernetes would do. The server is killed
with SIGKILL when a third and when two thirds of the pairs are judged. At the end the shards' tables must contain every
pair exactly once. A proxy between workers and server counts the responses per pair, which shows repeated requests.
Requests that only test the server's capabilities do not count. The last line of the output is JSON.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pyarrow.parquet as pq
import real_vllm
from aiohttp import web

from pyrite import tables
from pyrite.judges.prompt import load_prompt

ROOT = Path(__file__).resolve().parents[1]
SHARDS = 4
TOP_K = 40


class Server:
    """The vLLM server in its own process group, so that all its processes can be killed."""

    def __init__(self, port: int, log: Path):
        self._port, self._log = port, log
        self.kills = 0
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                real_vllm.command(self._port),
                env=real_vllm.environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_until_up(self) -> None:
        while not real_vllm.is_up(self._port):
            if self._process.poll() is not None:
                raise SystemExit(f"the server ended with exit code {self._process.returncode}; its log: {self._log}")
            time.sleep(0.5)

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        assert self._process.wait() == -signal.SIGKILL
        self.kills += 1

    def stop(self) -> None:
        """Kill the server, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class CountingProxy:
    """Forwards requests to the server at ``port`` and counts its responses by message. Runs in its own thread."""

    def __init__(self, port: int):
        self.responses: Counter[str] = Counter()
        self._server = f"http://127.0.0.1:{port}"
        ready: Future[int] = Future()
        threading.Thread(target=lambda: asyncio.run(self._serve(ready)), daemon=True).start()
        self.url = f"http://127.0.0.1:{ready.result(10)}"

    async def _serve(self, ready: Future[int]) -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as self._session:
            server = await asyncio.get_running_loop().create_server(web.Server(self._forward), "127.0.0.1", 0)
            ready.set_result(server.sockets[0].getsockname()[1])
            await server.serve_forever()

    async def _forward(self, request: web.BaseRequest) -> web.Response:
        body = await request.read()
        headers = {"Content-Type": "application/json"}
        try:
            async with self._session.request(
                request.method, self._server + request.path, data=body, headers=headers
            ) as reply:
                content = await reply.read()
        except (aiohttp.ClientError, OSError):
            assert request.transport
            request.transport.abort()  # as a killed server does
            return web.Response()
        if reply.status == 200 and request.path == "/v1/chat/completions":
            self.responses[json.loads(body)["messages"][0]["content"]] += 1
        return web.Response(body=content, status=reply.status, content_type="application/json")


@dataclass
class Worker:
    """One shard's worker, restarted until it is finished."""

    command: list[str]
    environment: dict[str, str]
    log: Path
    starts: int = 0
    exits: list[int] = field(default_factory=list)
    seconds_to_exit: list[float] = field(default_factory=list)
    finished: bool = False

    def start(self) -> None:
        self.starts += 1
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, env=self.environment, stdout=log, stderr=log)

    def restart_if_ended(self) -> None:
        """Restart the worker if it ended before it finished."""
        if not self.finished and self.process.poll() is not None:
            self.finished = self.process.returncode == 0
            if not self.finished:
                self.exits.append(self.process.returncode)
                self.start()

    def interrupt(self, number: int) -> None:
        """Send a signal and wait until the process ends."""
        sent = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(120)
        self.seconds_to_exit.append(round(time.monotonic() - sent, 2))


def count_judgments(store: Path) -> int:
    """The number of judgments in the store so far."""
    total = 0
    for path in store.glob("judgments/*/*/*.parquet"):
        try:
            total += pq.read_metadata(path).num_rows
        except FileNotFoundError:
            continue  # deleted by a merge
    return total


def render_prompts(run: Path, pairs: Iterable[tuple[str, str]]) -> set[str]:
    """The prompts for ``pairs``."""
    queries, passages = (pq.read_table(run / name) for name in ("queries/queries.parquet", "corpus/passages.parquet"))
    texts = dict(zip(queries["query_id"].to_pylist(), queries["text"].to_pylist(), strict=True))
    texts |= dict(zip(passages["passage_id"].to_pylist(), tables.in_context(passages), strict=True))
    prompt = load_prompt("medical")
    return {prompt.render(texts[query], texts[passage]) for query, passage in pairs}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--signal", choices=["KILL", "TERM"], default="KILL")
    parser.add_argument("--every", type=float, default=15.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if not real_vllm.READY.exists():
        print("vLLM is not installed; run `make real-vllm ARGS=--install-only` (3.4 GB)", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as temporary:
        result = prove(Path(temporary), arguments)
    print(json.dumps(result))
    return 0 if result["exactly_once"] == result["pairs"] and not result["missing"] and not result["unexpected"] else 1


def prove(folder: Path, arguments: argparse.Namespace) -> dict[str, object]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    proxy = CountingProxy(port)
    store, rng = folder / "store", random.Random(arguments.seed)
    environment = {**os.environ, "PYRITE_STORE": str(store), "OMP_NUM_THREADS": "1"}
    run = [
        str(ROOT / "src/pyrite/examples/sample.yaml"), "judge.kind=llm", "judge.model=judge", "judge.prompt=medical",
        f"judge.shards={SHARDS}", "judge.rank_window=null", f"retrieve.range_max={TOP_K}",
        f"prepare.max_train_queries={arguments.pairs // TOP_K}",
        f"resources.judge_urls=[{proxy.url}]", "resources.judge_concurrency=8", "iterations=1",
    ]  # fmt: skip
    pyrite = [sys.executable, "-m", "pyrite"]
    for command in (["prepare", *run], ["embed", *run, "-i", "0", "--shard", "0"], ["retrieve", *run, "-i", "1"]):
        subprocess.run([*pyrite, *command], env=environment, check=True, stdout=subprocess.DEVNULL)
    iteration = store / "runs/sample/iterations/1"
    candidates = pq.read_table(iteration / "candidates.parquet", columns=["query_id", "passage_id"]).to_pylist()
    wanted = Counter((row["query_id"], row["passage_id"]) for row in candidates)
    print(f"{wanted.total()} pairs; starting the server", flush=True)
    server = Server(port, folder / "server.log")
    server.wait_until_up()
    started = time.monotonic()
    workers = [
        Worker([*pyrite, "judge", *run, "-i", "1", "--shard", str(shard)], environment, folder / f"worker-{shard}.log")
        for shard in range(SHARDS)
    ]
    for worker in workers:
        worker.start()
    signals, next_signal = 0, started + arguments.every
    try:
        while not all(worker.finished for worker in workers):
            time.sleep(0.25)
            for worker in workers:
                worker.restart_if_ended()
            done = count_judgments(store)
            if server.kills < 2 and done > wanted.total() * (server.kills + 1) / 3:
                server.kill()
                print(f"{time.monotonic() - started:5.0f} s: server killed at {done} pairs", flush=True)
                server.start()
            alive = [worker for worker in workers if not worker.finished and worker.process.poll() is None]
            if alive and time.monotonic() > next_signal:
                rng.choice(alive).interrupt(getattr(signal, f"SIG{arguments.signal}"))
                signals, next_signal = signals + 1, time.monotonic() + arguments.every
                print(f"{time.monotonic() - started:5.0f} s: worker interrupted at {done} pairs", flush=True)
        seconds = time.monotonic() - started
    finally:
        for worker in workers:
            worker.process.kill()
        server.stop()
    assert signals, "no worker was interrupted"
    assert server.kills == 2, "the server was not killed twice"
    rows = [
        row for path in sorted(iteration.glob("judgments/shard-*.parquet")) for row in pq.read_table(path).to_pylist()
    ]
    prompts = render_prompts(store / "runs/sample", wanted)
    responses = sum(proxy.responses[prompt] for prompt in prompts)
    found = Counter((row["query_id"], row["passage_id"]) for row in rows)
    exits = [code for worker in workers for code in worker.exits]
    waits = [wait for worker in workers for wait in worker.seconds_to_exit]
    return {
        "pairs": wanted.total(),
        "exactly_once": sum(times == 1 and pair in wanted for pair, times in found.items()),
        "missing": sum(pair not in found for pair in wanted),
        "unexpected": sum(pair not in wanted for pair in found),
        "grades": dict(sorted(Counter(str(row["grade"]) for row in rows).items())),
        "signal": arguments.signal,
        "worker_signals": signals,
        "server_kills": server.kills,
        "exit_codes": dict(Counter(map(str, exits))),
        "seconds_to_exit_max": max(waits),
        "worker_starts": sum(worker.starts for worker in workers),
        "responses": responses,
        "repeated_responses": responses - sum(prompt in proxy.responses for prompt in prompts),
        "seconds": round(seconds),
    }


if __name__ == "__main__":
    sys.exit(main())
