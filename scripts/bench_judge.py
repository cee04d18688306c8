"""What the judge's worker costs, and what the order of the pairs saves.

    python scripts/bench_judge.py                                  against a stub that answers at once
    python scripts/bench_judge.py --whole                          the whole stage against it, tables and store and all
    python scripts/bench_judge.py --url http://localhost:8000 --model judge   against a real server

The first prints pairs/s, the worker's CPU seconds and its memory at the start and the end, over 200,000 pairs of 1,000
characters. The second does one shard of as many candidates as `pyrite judge` does it. The third sends the same prompts
through the worker and through a bare client (asyncio and aiohttp, nothing else) at the same concurrency, in turns. Then
it sends pairs grouped by query, shuffled, and shuffled with the rubric last, and prints what the server had to compute
of them by its own count: prompt tokens less cached tokens. Of several servers (--url again) grouped pairs go to one by
their query, as the worker's do, and shuffled ones to each in turn.
"""

import argparse
import asyncio
import json
import multiprocessing
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import Any

import aiohttp
import pyarrow as pa
from bench_stub import memory, stub, tables_of, texts

from pyrite import tables
from pyrite.judges import Judgment, Missing, Pair
from pyrite.judges.grading import LABELS
from pyrite.judges.llm import LlmJudge
from pyrite.judges.prompt import Prompt, load_prompt
from pyrite.judges.session import Walk, judge_all
from pyrite.llm.capabilities import detect_capabilities
from pyrite.llm.pool import Pool, rank_servers
from pyrite.plan import Step
from pyrite.progress import NullProgress
from pyrite.spec import JudgeSpec, ResourcesSpec, RunSpec, SampleSource
from pyrite.stages import judge as judge_stage
from pyrite.stages.context import StepContext
from pyrite.store import open_store, sha256_file


class Counting:
    """A recorder that keeps nothing but sums."""

    def __init__(self) -> None:
        self.pairs = self.absent = self.prompt = self.cached = 0

    def judged(self, judgment: Judgment) -> None:
        self.pairs += 1
        self.prompt += judgment.prompt_tokens
        self.cached += judgment.cached_tokens

    def missing(self, missing: Missing) -> None:
        del missing
        self.absent += 1

    def kept(self, pair: Pair) -> None:
        del pair

    def skipped(self, query_id: str, passage_ids: Sequence[str]) -> None:
        del query_id, passage_ids


# --- against a stub ---------------------------------------------------------------------------------------------------


def against_stub(pairs: int, concurrency: int) -> dict[str, Any]:
    with stub() as url:
        return asyncio.run(_against_stub(url, pairs, concurrency))


async def _against_stub(url: str, pairs: int, concurrency: int) -> dict[str, Any]:
    each, passages = 50, 2000
    queries, stored = tables_of(texts(pairs // each, 60, 0), texts(passages, 1000, 1))
    pool = Pool([url], "stub", None, concurrency, 60.0)
    recorder, draw, seen = Counting(), random.Random(0), []

    def walks() -> Iterator[Walk]:
        for i in range(pairs // each):
            if i % max(1, pairs // each // 20) == 0:
                seen.append(round(memory(), 1))
            yield f"q{i}", [f"c{n}" for n in draw.sample(range(passages), each)]

    async with LlmJudge(pool, load_prompt("medical"), queries, stored, concurrency) as judge:
        await judge_all([("q0", [f"c{i}"]) for i in range(500)], judge, {}, None, Counting())  # warm
        wall, cpu = time.perf_counter(), time.process_time()
        await judge_all(walks(), judge, {}, None, recorder)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "pairs": recorder.pairs,
        "missing": recorder.absent,
        "seconds": round(wall, 2),
        "pairs_per_second": round(recorder.pairs / wall),
        "worker_cpu_seconds": round(cpu, 2),
        "pairs_per_cpu_second": round(recorder.pairs / cpu),
        "concurrency": concurrency,
        "memory_mb": {"start": seen[0], "after_a_tenth": seen[2], "end": round(memory(), 1)},
        "decoding_mode": judge.decoding_mode,
    }


# --- the whole stage --------------------------------------------------------------------------------------------------


def whole(pairs: int, concurrency: int) -> dict[str, Any]:
    """One shard of ``pairs`` candidates, 50 a query, on a folder: read, judged, kept every few seconds, written."""
    with tempfile.TemporaryDirectory() as folder, stub() as url:
        # In a process of its own, whose memory is then not this one's.
        making = multiprocessing.Process(target=_make, args=(folder, pairs))
        making.start()
        making.join()
        spec = RunSpec(
            name="bench",
            source=SampleSource(),
            judge=JudgeSpec(kind="llm", model="stub", prompt="medical", shards=1, rank_window=None),
            resources=ResourcesSpec(judge_urls=[url], judge_concurrency=concurrency),
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
        manifests = {"made": {"outputs": outputs}}
        ctx = StepContext(
            spec, Step("judge", 1, 0), store, "runs/bench", manifests, "runs/bench/scratch", NullProgress()
        )
        seen, over = [memory()], threading.Event()

        def watch() -> None:
            while not over.wait(0.5):
                seen.append(memory())

        threading.Thread(target=watch, daemon=True).start()
        wall, cpu = time.perf_counter(), time.process_time()
        summary = judge_stage.run(ctx)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        over.set()
    timeline = summary["timeline"]["seconds"]
    return {
        "pairs": summary["judged"],
        "missing": summary["missing"],
        "seconds": round(wall, 2),
        "of_them_judging": timeline,
        "pairs_per_second": round(summary["judged"] / wall),
        "cpu_seconds": round(cpu, 2),
        "concurrency": concurrency,
        "memory_mb": {
            "start": round(seen[0]),
            "after_a_tenth": round(seen[len(seen) // 10]),
            "half_way": round(seen[len(seen) // 2]),
            "most": round(max(seen)),
        },
    }


def _make(folder: str, pairs: int) -> None:
    each, passages = 50, 2000
    queries, stored = tables_of(texts(pairs // each + 2, 60, 0), texts(passages, 1000, 1))
    splits = pa.array(["train"] * (pairs // each) + ["val", "test"])
    queries = queries.set_column(queries.schema.get_field_index("split"), "split", splits)
    draw = random.Random(0)
    found = [
        {"query_id": f"q{i}", "passage_id": f"c{n}", "rank": rank, "score": 1 / rank}
        for i in range(pairs // each)
        for rank, n in enumerate(draw.sample(range(passages), each), 1)
    ]
    run = open_store(folder).local_path("runs/bench")
    for key, table, schema in (
        ("corpus/passages", stored, tables.PASSAGES),
        ("queries/queries", queries, tables.QUERIES),
        ("queries/qrels", tables.QRELS.empty_table(), tables.QRELS),
        ("iterations/1/candidates", pa.Table.from_pylist(found, tables.CANDIDATES), tables.CANDIDATES),
    ):
        path = run / f"{key}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        tables.write(path, table, schema)


# --- against a real server --------------------------------------------------------------------------------------------


async def against_server(
    urls: Sequence[str], model: str, queries: int, each: int, characters: int, concurrency: int, rounds: int
) -> dict[str, Any]:
    prompt = load_prompt("medical")
    rubric_last = Prompt("", prompt.between, f"\n\n{prompt.before}{prompt.after}")
    worker, bare, grouped, shuffled, turned = [], [], [], [], []
    seed = 0

    def fresh() -> tuple[pa.Table, pa.Table, list[Walk]]:
        """Pairs that the server has never seen, so that no round profits from another."""
        nonlocal seed
        seed += 1
        tables_ = tables_of(texts(queries, characters, seed * 1000), texts(queries * each, 1000, seed * 1000 + 1))
        return *tables_, [(f"q{i}", [f"c{i * each + n}" for n in range(each)]) for i in range(queries)]

    for _ in range(rounds):
        for kind, found in (("worker", worker), ("bare", bare)):
            asked, stored, walks = fresh()
            if kind == "worker":
                found.append(await _worker(urls, model, prompt, asked, stored, walks, concurrency))
            else:
                found.append(await _bare(urls, model, prompt, asked, stored, walks, concurrency))
        asked, stored, walks = fresh()
        grouped.append(await _bare(urls, model, prompt, asked, stored, walks, concurrency))
        for form, found in ((prompt, shuffled), (rubric_last, turned)):
            asked, stored, walks = fresh()
            alone = [(query, [passage]) for query, passages in walks for passage in passages]
            random.Random(seed).shuffle(alone)
            found.append(await _bare(urls, model, form, asked, stored, alone, concurrency, in_turn=True))
        print(f"round {len(shuffled)} of {rounds}", file=sys.stderr)
    return {
        "pairs_per_round": queries * each,
        "rounds": rounds,
        "concurrency": concurrency,
        "worker": _summary(worker),
        "bare_client": _summary(bare),
        "grouped_by_query": _summary(grouped),
        "shuffled": _summary(shuffled),
        "shuffled_rubric_last": _summary(turned),
    }


def _summary(rounds: Sequence[dict[str, float]]) -> dict[str, Any]:
    rates = sorted(one["pairs_per_second"] for one in rounds)
    return {
        "pairs_per_second": [round(rate, 2) for rate in rates],
        "median": round(rates[len(rates) // 2], 2),
        "prompt_tokens_per_pair": round(sum(one["prompt"] for one in rounds) / len(rounds), 1),
        "computed_tokens_per_pair": round(sum(one["computed"] for one in rounds) / len(rounds), 1),
    }


async def _worker(
    urls: Sequence[str],
    model: str,
    prompt: Prompt,
    asked: pa.Table,
    stored: pa.Table,
    walks: Sequence[Walk],
    concurrency: int,
) -> dict[str, float]:
    recorder = Counting()
    pool = Pool(urls, model, None, -(-concurrency // len(urls)), 300.0)
    async with LlmJudge(pool, prompt, asked, stored, concurrency) as judge:
        await judge.grade(Pair(walks[0][0], walks[-1][1][0]))  # the look at what the server can do is not timed
        began = time.perf_counter()
        await judge_all(walks, judge, {}, None, recorder)
        seconds = time.perf_counter() - began
    pairs = recorder.pairs
    return {
        "pairs_per_second": pairs / seconds,
        "prompt": recorder.prompt / pairs,
        "computed": (recorder.prompt - recorder.cached) / pairs,
    }


async def _bare(
    urls: Sequence[str],
    model: str,
    prompt: Prompt,
    asked: pa.Table,
    stored: pa.Table,
    walks: Sequence[Walk],
    concurrency: int,
    *,
    in_turn: bool = False,
) -> dict[str, float]:
    """The same requests by a client that does nothing but send them, ``concurrency`` at once from the start.

    They go to each server in turn, or else to a query's own.
    """
    query_text = dict(zip(asked["query_id"].to_pylist(), asked["text"].to_pylist(), strict=True))
    passage_text = dict(zip(stored["passage_id"].to_pylist(), stored["text"].to_pylist(), strict=True))
    async with Pool(urls, model, None, concurrency, 300.0) as pool:
        sample = [{"role": "user", "content": prompt.render("What is asked?", "What is said.")}]
        extra = (await detect_capabilities(pool, sample, LABELS)).request(LABELS)
    waiting, turns = iter(walks), cycle(urls)
    prompt_tokens = cached_tokens = pairs = 0

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def client() -> None:
            nonlocal prompt_tokens, cached_tokens, pairs
            for query, passages in waiting:
                for passage in passages:
                    content = prompt.render(query_text[query], passage_text[passage])
                    body = {"model": model, "messages": [{"role": "user", "content": content}], **extra}
                    url = next(turns) if in_turn else urls[rank_servers(query, urls)[0]]
                    async with session.post(url + "/v1/chat/completions", json=body) as response:
                        usage = (await response.json())["usage"]
                    prompt_tokens += usage["prompt_tokens"]
                    cached_tokens += (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
                    pairs += 1

        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(concurrency)))
        seconds = time.perf_counter() - began
    return {
        "pairs_per_second": pairs / seconds,
        "prompt": prompt_tokens / pairs,
        "computed": (prompt_tokens - cached_tokens) / pairs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=200_000, help="against the stub")
    parser.add_argument("--whole", action="store_true", help="the whole stage, not its client alone")
    parser.add_argument("--concurrency", type=int, default=None, help="default: 64 for the stub, 16 for a server")
    parser.add_argument("--url", action="append", help="a real server; without it, the stub")
    parser.add_argument("--model", default="judge")
    parser.add_argument("--queries", type=int, default=16, help="per round, against a server")
    parser.add_argument("--each", type=int, default=8, help="passages per query, against a server")
    parser.add_argument("--question", type=int, default=60, help="characters of a question, against a server")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    if given.url:
        concurrency = given.concurrency or 16
        sizes = (given.queries, given.each, given.question, concurrency, given.rounds)
        result = asyncio.run(against_server(given.url, given.model, *sizes))
    else:
        result = (whole if given.whole else against_stub)(given.pairs, given.concurrency or 64)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
