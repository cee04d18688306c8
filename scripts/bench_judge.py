"""Benchmark of the judge: the client's overhead, and the effect of the order of pairs on the server's prefix cache.

    python scripts/bench_judge.py                                             the client, with a stub server
    python scripts/bench_judge.py --whole                                     the judge stage, with a stub server
    python scripts/bench_judge.py --servers 8                                 the judge stage, with 1 to 8 slow stubs
    python scripts/bench_judge.py --url http://localhost:8000 --model judge   with a real server

With a stub server, it prints pairs per second, CPU seconds and memory for 200,000 pairs with passages of 1,000
characters. --whole runs the judge stage on one shard with as many pairs, including tables and store, without cached
judgments and again with all of them. It prints the peak memory of each process.

--servers runs the judge stage with 1, 2, 4, ... stubs in processes of their own. Each works on 16 pairs at a time for
0.4 seconds, so 40 pairs per second are the ideal. The script prints the speed in the middle of each run, its share of
the ideal, the pairs of each server, and the share of requests that went to their query's main server. Then a quarter of
the servers is killed half-way. At the end of each run, every pair must be in the table exactly once.

With a real server, the judge and a minimal client (asyncio and aiohttp only) take turns at the same concurrency. Then
the minimal client sends pairs grouped by query, shuffled, and shuffled with the rubric last. For each order, the script
prints the tokens that the server reports as computed: prompt tokens minus cached tokens. With several servers (repeat
--url), grouped pairs are routed by query, as the judge does; shuffled pairs are distributed in turn.
"""

import argparse
import asyncio
import json
import multiprocessing
import random
import resource
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from bench_stub import LATENCY, SLOTS, memory, stub, tables_of, texts

from pyrite import tables
from pyrite.identity import passage_ids, query_ids
from pyrite.judges import Judgment, Pair
from pyrite.judges.grading import LABELS
from pyrite.judges.llm import LlmJudge
from pyrite.judges.prompt import Prompt, load_prompt
from pyrite.judges.session import Block, JudgingSession, QueryPassages
from pyrite.llm.capabilities import detect_capabilities
from pyrite.llm.pool import Pool, rank_servers
from pyrite.plan import Step
from pyrite.progress import NullProgress
from pyrite.spec import JudgeServers, LlmJudgeSpec, ResourcesSpec, RunSpec, SampleSource
from pyrite.stages import judge as judge_stage
from pyrite.stages.context import StepContext
from pyrite.stages.pairs import PART, pairs_key
from pyrite.store import open_store, sha256_file

T = TypeVar("T")


class CountingSession(JudgingSession):
    """Counts pairs and tokens, and stores nothing."""

    def __init__(self, judge: LlmJudge):
        super().__init__(judge, None, 0, 1.0, NullProgress(), few_missing=sys.maxsize)
        self.pairs = self.prompt = self.cached_tokens = 0

    def on_judged(self, judgment: Judgment) -> None:
        self.pairs += 1
        self.prompt += judgment.prompt_tokens
        self.cached_tokens += judgment.cached_tokens


# --- against a stub ---------------------------------------------------------------------------------------------------


def against_stub(pairs: int, concurrency: int) -> dict[str, Any]:
    with stub() as (url, _):
        return asyncio.run(_against_stub(url, pairs, concurrency))


async def _against_stub(url: str, pairs: int, concurrency: int) -> dict[str, Any]:
    each, passages = 50, 2000
    queries, stored = tables_of(texts(pairs // each, 60, 0), texts(passages, 1000, 1))
    pool = Pool(JudgeServers([url], concurrency), "stub")
    draw, memory_samples = random.Random(0), []

    def blocks() -> Iterator[Block]:
        size = max(1, pairs // each // 20)
        for start in range(0, pairs // each, size):
            memory_samples.append(round(memory(), 1))
            numbers = range(start, min(start + size, pairs // each))
            yield Block([(f"q{i}", [f"c{n}" for n in draw.sample(range(passages), each)]) for i in numbers])

    async with LlmJudge(pool, load_prompt("medical")) as judge:
        judge.load(queries, stored)
        await CountingSession(judge).judge_all([("q0", [f"c{i}"]) for i in range(500)])  # warm-up
        session = CountingSession(judge)
        wall, cpu = time.perf_counter(), time.process_time()
        await session.judge_blocks(blocks())
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "pairs": session.pairs,
        "missing": len(session.missing),
        "seconds": round(wall, 2),
        "pairs_per_second": round(session.pairs / wall),
        "worker_cpu_seconds": round(cpu, 2),
        "pairs_per_cpu_second": round(session.pairs / cpu),
        "concurrency": concurrency,
        "memory_mb": {"start": memory_samples[0], "after_a_tenth": memory_samples[2], "end": round(memory(), 1)},
        "decoding_mode": judge.decoding_mode,
    }


# --- the judge stage --------------------------------------------------------------------------------------------------


def judge_stage_run(pairs: int, concurrency: int) -> dict[str, Any]:
    """One shard of ``pairs``, 100 per query, without cached judgments, and again with all of them."""
    with tempfile.TemporaryDirectory() as folder, stub() as (url, _):
        # In processes of their own, so that each memory is measured alone.
        _in_process(_write_pairs, folder, pairs, 100)
        results = {name: _in_process(_judge, folder, url, concurrency) for name in ("cold", "warm")}
    return {"pairs": pairs, "concurrency": concurrency, **results}


def _in_process(function: Callable[..., T], *arguments: Any) -> T:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _judge(folder: str, url: str, concurrency: int) -> dict[str, Any]:
    ctx = _step(folder, [url], concurrency)
    started, wall, cpu = memory(), time.perf_counter(), time.process_time()
    summary = judge_stage.run(ctx)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "judged": summary["judged"],
        "cached": summary["cached"],
        "missing": summary["missing"],
        "seconds": round(wall),
        "pairs_per_second": round(summary["judged"] / wall),
        "cpu_seconds": round(cpu),
        "pairs_per_cpu_second": round(summary["judged"] / cpu),
        "memory_mb": {
            "start": round(started),
            "peak": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6),
        },
    }


def _step(folder: str, urls: list[str], concurrency: int) -> StepContext:
    """The step that judges the pairs of ``_write_pairs`` in the store in ``folder``."""
    spec = RunSpec(
        name="bench",
        source=SampleSource(),
        judge=LlmJudgeSpec(model="stub", prompt="medical", shards=1, rank_window=None),
        resources=ResourcesSpec(judge_urls=urls, judge_concurrency=concurrency),
    )
    store, key = open_store(folder), pairs_key(1, 0)
    path = store.local_path("runs/bench") / key
    manifests = {"retrieve-1": {"outputs": [{"key": key, "bytes": path.stat().st_size, "sha256": sha256_file(path)}]}}
    return StepContext(spec, Step("judge", 1, 0), store, "runs/bench", manifests, "runs/bench/scratch", NullProgress())


def _write_pairs(folder: str, pairs: int, each: int) -> None:
    """Write ``pairs``, ``each`` per query, in row groups as retrieve does.

    There are 20,000 passages of 780 characters. As the judge reads them, queries and passages start with a number.
    """
    passages, words = 20_000, texts(1000, 60, 0)
    stored = pa.array(texts(passages, 750, 1))
    contexts = pa.array([f"c{number} {text}" for number, text in enumerate(texts(passages, 24, 2))])
    draw = np.random.default_rng(0)
    ids = passage_ids(draw.integers(1 << 63, size=passages, dtype=np.uint64))
    keys = np.sort(draw.integers(1 << 60, size=pairs // each, dtype=np.uint64))

    def row_group(rows: range) -> pa.Table:
        # Distinct passages for each query.
        first = draw.integers(passages, size=(len(rows), 1))
        passage = pa.array(((first + 101 * np.arange(each)) % passages).ravel())
        query = pa.array(np.repeat(np.arange(len(rows)), each))
        none = pa.array(np.zeros(len(passage), bool))
        columns = {
            "query_id": query_ids(keys[rows.start : rows.stop]).take(query),
            "passage_id": ids.take(passage),
            "rank": np.tile(np.arange(1, each + 1), len(rows)),
            "score": draw.random(len(passage)),
            "query": pa.array([f"q{number} {words[number % len(words)]}" for number in rows]).take(query),
            "title": contexts.take(passage),
            "context": contexts.take(passage),
            "text": stored.take(passage),
            **dict.fromkeys(("known", "relevant", "sampled"), none),
        }
        return pa.table(columns).cast(tables.PAIRS)

    step = PART // each
    parts = (row_group(range(start, min(start + step, len(keys)))) for start in range(0, len(keys), step))
    path = open_store(folder).local_path("runs/bench") / pairs_key(1, 0)
    tables.write_parts(path, parts, tables.PAIRS)


# --- several servers --------------------------------------------------------------------------------------------------


def several_servers(servers: int, pairs: int, concurrency: int) -> dict[str, Any]:
    """The judge stage with 1, 2, 4, ... and ``servers`` limited stubs, ``pairs`` for each, then with a fault."""
    counts = sorted({servers, *(2**i for i in range(servers.bit_length()) if 2**i < servers)})
    return {
        "pairs_per_server": pairs,
        "concurrency": concurrency,
        "ideal_per_server": SLOTS / LATENCY,
        "servers": {str(count): _with_servers(count, 0, pairs, concurrency) for count in counts},
        "killed": _with_servers(servers, max(1, servers // 4), pairs, concurrency),
    }


def _with_servers(servers: int, kills: int, pairs: int, concurrency: int) -> dict[str, Any]:
    """``kills`` of the servers are killed when half of the pairs are graded."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        logs = [Path(folder) / f"server-{i}.log" for i in range(servers)]
        stubs = [stack.enter_context(stub(log)) for log in logs]
        victims = [process for _, process in stubs[:kills]]
        _write_pairs(folder, servers * pairs, 10)
        ctx = _step(folder, [url for url, _ in stubs], concurrency)

        def kill_half_way() -> None:
            while sum(len(_events(log, "-")) for log in logs) < servers * pairs / 2:
                time.sleep(0.2)
            for process in victims:
                process.kill()

        if kills:
            threading.Thread(target=kill_half_way, daemon=True).start()
        wall, cpu = time.time(), time.process_time()
        judge_stage.run(ctx)
        wall, cpu = time.time() - wall, time.process_time() - cpu
        for process in victims:
            process.join(0)
            assert process.exitcode == -signal.SIGKILL, "a server was not killed before the end"
        _check_pairs(ctx)
        received, graded = ([_events(log, event) for log in logs] for event in "+-")
    servers_of: dict[str, Counter[int]] = defaultdict(Counter)
    for server, events in enumerate(received):
        for query, _, _ in events:
            servers_of[query][server] += 1
    total, requests = servers * pairs, sum(map(len, received))
    times = sorted(float(at) for events in graded for _, _, at in events)
    # After the kill, if there is one, and before the first server has no more queries.
    middle = _rate(times, 0.55, 0.8) if kills else _rate(times, 0.2, 0.5)
    return {
        "pairs": total,
        "seconds": round(wall, 1),
        "pairs_per_second": round(total / wall, 1),
        "pairs_per_second_in_the_middle": round(middle, 1),
        "share_of_ideal": round(middle / ((servers - kills) * SLOTS / LATENCY), 3),
        "worker_cpu_seconds": round(cpu, 1),
        "pairs_by_server": " ".join(str(len(events)) for events in graded),
        "requests_on_main_server": round(sum(max(each.values()) for each in servers_of.values()) / requests, 4),
        "repeated_requests": requests - total,
    }


def _events(log: Path, event: str) -> list[list[str]]:
    """Query, passage and time of the complete lines of a limited stub's log."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [line.split()[1:] for line in lines if line.startswith(event)]


def _rate(times: Sequence[float], first: float, last: float) -> float:
    """Events per second between two shares of all events."""
    start, end = int(first * len(times)), int(last * len(times))
    return (end - start) / (times[end] - times[start])


def _check_pairs(ctx: StepContext) -> None:
    """Every pair must be in the shard's table exactly once."""
    columns = ["query_id", "passage_id"]
    judged = pq.read_table(ctx.output("iterations/1/judgments/shard-00000.parquet"), columns=columns).to_pylist()
    pairs = pq.read_table(ctx.input(pairs_key(1, 0)), columns=columns).to_pylist()
    assert Counter(tuple(row.values()) for row in judged) == Counter(tuple(row.values()) for row in pairs)


# --- against a real server --------------------------------------------------------------------------------------------


async def against_server(
    urls: Sequence[str], model: str, queries: int, each: int, characters: int, concurrency: int, rounds: int
) -> dict[str, Any]:
    prompt = load_prompt("medical")
    rubric_last = Prompt("", prompt.between, f"\n\n{prompt.before}{prompt.after}")
    worker, minimal, grouped, shuffled, rubric_last_results = [], [], [], [], []
    seed = 0

    def new_pairs() -> tuple[pa.Table, pa.Table, list[QueryPassages]]:
        """Pairs that are not in the server's cache."""
        nonlocal seed
        seed += 1
        tables_ = tables_of(texts(queries, characters, seed * 1000), texts(queries * each, 1000, seed * 1000 + 1))
        return *tables_, [(f"q{i}", [f"c{i * each + n}" for n in range(each)]) for i in range(queries)]

    for _ in range(rounds):
        worker.append(await _worker(urls, model, prompt, *new_pairs(), concurrency))
        minimal.append(await _minimal_client(urls, model, prompt, *new_pairs(), concurrency))
        grouped.append(await _minimal_client(urls, model, prompt, *new_pairs(), concurrency))
        for form, found in ((prompt, shuffled), (rubric_last, rubric_last_results)):
            query_table, passage_table, grouped_pairs = new_pairs()
            single = [(query, [passage]) for query, ids in grouped_pairs for passage in ids]
            random.Random(seed).shuffle(single)
            found.append(
                await _minimal_client(urls, model, form, query_table, passage_table, single, concurrency, in_turn=True)
            )
        print(f"round {len(shuffled)} of {rounds}", file=sys.stderr)
    return {
        "pairs_per_round": queries * each,
        "rounds": rounds,
        "concurrency": concurrency,
        "worker": _summary(worker),
        "minimal_client": _summary(minimal),
        "grouped_by_query": _summary(grouped),
        "shuffled": _summary(shuffled),
        "shuffled_rubric_last": _summary(rubric_last_results),
    }


def _summary(rounds: Sequence[dict[str, float]]) -> dict[str, Any]:
    rates = sorted(each["pairs_per_second"] for each in rounds)
    return {
        "pairs_per_second": [round(rate, 2) for rate in rates],
        "median": round(rates[len(rates) // 2], 2),
        "prompt_tokens_per_pair": round(sum(each["prompt"] for each in rounds) / len(rounds), 1),
        "computed_tokens_per_pair": round(sum(each["computed"] for each in rounds) / len(rounds), 1),
    }


async def _worker(
    urls: Sequence[str],
    model: str,
    prompt: Prompt,
    queries: pa.Table,
    passages: pa.Table,
    pairs: Sequence[QueryPassages],
    concurrency: int,
) -> dict[str, float]:
    pool = Pool(JudgeServers(urls, -(-concurrency // len(urls)), 300.0), model)
    async with LlmJudge(pool, prompt) as judge:
        judge.load(queries, passages)
        await judge.grade(Pair(pairs[0][0], pairs[-1][1][0]))  # the detection of capabilities is not timed
        session = CountingSession(judge)
        began = time.perf_counter()
        await session.judge_all(pairs)
        seconds = time.perf_counter() - began
    return {
        "pairs_per_second": session.pairs / seconds,
        "prompt": session.prompt / session.pairs,
        "computed": (session.prompt - session.cached_tokens) / session.pairs,
    }


async def _minimal_client(
    urls: Sequence[str],
    model: str,
    prompt: Prompt,
    queries: pa.Table,
    passages: pa.Table,
    pairs: Sequence[QueryPassages],
    concurrency: int,
    *,
    in_turn: bool = False,
) -> dict[str, float]:
    """The same requests from a client without retries or adaptive concurrency: ``concurrency`` in flight.

    ``in_turn``: distribute requests over the servers in turn, not by query.
    """
    query_text = dict(zip(queries["query_id"].to_pylist(), queries["text"].to_pylist(), strict=True))
    passage_text = dict(zip(passages["passage_id"].to_pylist(), tables.in_context(passages), strict=True))
    async with Pool(JudgeServers(urls, concurrency, 300.0), model) as pool:
        sample = [{"role": "user", "content": prompt.render("What is gout?", "Gout is a disease.")}]
        extra = (await detect_capabilities(pool, sample, LABELS)).request(LABELS)
    queue, turns = iter(pairs), cycle(urls)
    prompt_tokens = cached_tokens = count = 0

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def client() -> None:
            nonlocal prompt_tokens, cached_tokens, count
            for query, ids in queue:
                for passage in ids:
                    content = prompt.render(query_text[query], passage_text[passage])
                    body = {"model": model, "messages": [{"role": "user", "content": content}], **extra}
                    url = next(turns) if in_turn else urls[rank_servers(query, urls)[0]]
                    async with session.post(url + "/v1/chat/completions", json=body) as response:
                        usage = (await response.json())["usage"]
                    prompt_tokens += usage["prompt_tokens"]
                    cached_tokens += (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
                    count += 1

        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(concurrency)))
        seconds = time.perf_counter() - began
    return {
        "pairs_per_second": count / seconds,
        "prompt": prompt_tokens / count,
        "computed": (prompt_tokens - cached_tokens) / count,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, help="with stubs (default: 200,000; with --servers, 2,000 per server)")
    parser.add_argument("--whole", action="store_true", help="measure the judge stage, not only its client")
    parser.add_argument("--servers", type=int, help="measure the judge stage with up to this many slow stubs")
    parser.add_argument("--concurrency", type=int, default=None, help="default: 64 for the stub, 16 for a server")
    parser.add_argument("--url", action="append", help="URL of a real server; repeatable (default: the stub server)")
    parser.add_argument("--model", default="judge")
    parser.add_argument("--queries", type=int, default=16, help="queries per round, with a real server")
    parser.add_argument("--each", type=int, default=8, help="passages per query, with a real server")
    parser.add_argument("--question", type=int, default=60, help="characters per query, with a real server")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    if given.url:
        concurrency = given.concurrency or 16
        sizes = (given.queries, given.each, given.question, concurrency, given.rounds)
        result = asyncio.run(against_server(given.url, given.model, *sizes))
    elif given.servers:
        result = several_servers(given.servers, given.pairs or 2000, given.concurrency or 64)
    else:
        result = (judge_stage_run if given.whole else against_stub)(given.pairs or 200_000, given.concurrency or 64)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
