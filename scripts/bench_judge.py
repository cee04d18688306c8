"""Benchmark of the judge: the client's overhead, and the effect of the order of pairs on the server's prefix cache.

    python scripts/bench_judge.py                                             the client, with a stub server
    python scripts/bench_judge.py --whole                                     the judge stage, with a stub server
    python scripts/bench_judge.py --servers 8                                 the judge stage, with 1 to 8 slow stubs
    python scripts/bench_judge.py --url http://localhost:8000 --model judge   with a real server

With a stub server, it prints pairs per second, CPU seconds and memory for 200,000 pairs with passages of 1,000
characters. --whole runs the judge stage on one shard with as many pairs, including tables and store.

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
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path
from typing import Any

import aiohttp
import pyarrow as pa
import pyarrow.parquet as pq
from bench_stub import LATENCY, SLOTS, memory, stub, tables_of, texts

from pyrite import tables
from pyrite.judges import Judgment, Pair
from pyrite.judges.grading import LABELS
from pyrite.judges.llm import LlmJudge
from pyrite.judges.prompt import Prompt, load_prompt
from pyrite.judges.session import JudgingSession, QueryPassages
from pyrite.llm.capabilities import detect_capabilities
from pyrite.llm.pool import Pool, rank_servers
from pyrite.plan import Step
from pyrite.progress import NullProgress
from pyrite.spec import JudgeServers, LlmJudgeSpec, ResourcesSpec, RunSpec, SampleSource
from pyrite.stages import judge as judge_stage
from pyrite.stages.context import StepContext
from pyrite.store import open_store, sha256_file


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

    def query_passages() -> Iterator[QueryPassages]:
        for i in range(pairs // each):
            if i % max(1, pairs // each // 20) == 0:
                memory_samples.append(round(memory(), 1))
            yield f"q{i}", [f"c{n}" for n in draw.sample(range(passages), each)]

    async with LlmJudge(pool, load_prompt("medical"), queries, stored) as judge:
        await CountingSession(judge).judge_all([("q0", [f"c{i}"]) for i in range(500)])  # warm-up
        session = CountingSession(judge)
        wall, cpu = time.perf_counter(), time.process_time()
        await session.judge_all(query_passages())
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
    """One shard of ``pairs`` candidates, 50 per query, with a store in a folder."""
    with tempfile.TemporaryDirectory() as folder, stub() as (url, _):
        ctx = _step(folder, [url], pairs, 50, concurrency)
        memory_samples, finished = [memory()], threading.Event()

        def watch() -> None:
            while not finished.wait(0.5):
                memory_samples.append(memory())

        threading.Thread(target=watch, daemon=True).start()
        wall, cpu = time.perf_counter(), time.process_time()
        summary = judge_stage.run(ctx)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        finished.set()
    timeline = summary["timeline"]["seconds"]
    return {
        "pairs": summary["judged"],
        "missing": summary["missing"],
        "seconds": round(wall, 2),
        "seconds_judging": timeline,
        "pairs_per_second": round(summary["judged"] / wall),
        "cpu_seconds": round(cpu, 2),
        "concurrency": concurrency,
        "memory_mb": {
            "start": round(memory_samples[0]),
            "after_a_tenth": round(memory_samples[len(memory_samples) // 10]),
            "half_way": round(memory_samples[len(memory_samples) // 2]),
            "most": round(max(memory_samples)),
        },
    }


def _step(folder: str, urls: list[str], pairs: int, each: int, concurrency: int) -> StepContext:
    """The step that judges ``pairs`` candidates, ``each`` per query, in a store in ``folder``."""
    # In a separate process, so that its memory is not measured.
    preparing = multiprocessing.Process(target=_write_tables, args=(folder, pairs, each))
    preparing.start()
    preparing.join()
    spec = RunSpec(
        name="bench",
        source=SampleSource(),
        judge=LlmJudgeSpec(model="stub", prompt="medical", shards=1, rank_window=None),
        resources=ResourcesSpec(judge_urls=urls, judge_concurrency=concurrency),
    )
    store = open_store(folder)
    paths = sorted(path for path in store.local_path("runs/bench").rglob("*.parquet"))
    outputs = [
        {
            "key": path.relative_to(store.local_path("runs/bench")).as_posix(),
            "bytes": path.stat().st_size,
            "sha256": sha256_file(path),
        }
        for path in paths
    ]
    manifests = {"prepared": {"outputs": outputs}}
    return StepContext(spec, Step("judge", 1, 0), store, "runs/bench", manifests, "runs/bench/scratch", NullProgress())


def _write_tables(folder: str, pairs: int, each: int) -> None:
    passages = 2000
    queries, stored = tables_of(texts(pairs // each + 2, 60, 0), texts(passages, 1000, 1))
    splits = pa.array(["train"] * (pairs // each) + ["val", "test"])
    queries = queries.set_column(queries.schema.get_field_index("split"), "split", splits)
    draw = random.Random(0)
    candidates = [
        {"query_id": f"q{i}", "passage_id": f"c{n}", "rank": rank, "score": 1 / rank}
        for i in range(pairs // each)
        for rank, n in enumerate(draw.sample(range(passages), each), 1)
    ]
    run = open_store(folder).local_path("runs/bench")
    for key, table, schema in (
        ("corpus/passages", stored, tables.PASSAGES),
        ("queries/queries", queries, tables.QUERIES),
        ("queries/qrels", tables.QRELS.empty_table(), tables.QRELS),
        ("iterations/1/candidates", pa.Table.from_pylist(candidates, tables.CANDIDATES), tables.CANDIDATES),
    ):
        path = run / f"{key}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        tables.write(path, table, schema)


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
        ctx = _step(folder, [url for url, _ in stubs], servers * pairs, 10, concurrency)

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
    """Every candidate must be in the shard's table exactly once."""
    columns = ["query_id", "passage_id"]
    judged = pq.read_table(ctx.output("iterations/1/judgments/shard-00000.parquet"), columns=columns).to_pylist()
    candidates = pq.read_table(ctx.input("iterations/1/candidates.parquet"), columns=columns).to_pylist()
    assert Counter(tuple(row.values()) for row in judged) == Counter(tuple(row.values()) for row in candidates)


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
    async with LlmJudge(pool, prompt, queries, passages) as judge:
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
