"""Scale: time and peak memory of one stage with a synthetic corpus of any size.

Usage: python scripts/bench_scale.py --stage prepare --passages 100000
       python scripts/bench_scale.py --stage mine --passages 1000000 --queries 100000

For prepare, the corpus has passages of about 780 characters in answers of one to seven passages, with titles, topics
and one question each. One answer of 50 is an exact copy of an earlier one, and one of 50 a near-duplicate. For mine,
each query has 50 random candidates, of which 30 are judged, and one of 50 passages is a near-duplicate of the one
before. The stage runs in a process of its own. The only line is JSON: ``peak_mib`` is the process's peak memory, and
``bytes_per_passage`` how much of it was added after imports, per passage. ``cpu_seconds`` is comparable on a busy
machine, unlike ``seconds``.
"""

import argparse
import itertools
import json
import multiprocessing
import random
import resource
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pyrite import tables
from pyrite.identity import Keys, passage_ids, query_ids
from pyrite.plan import Step
from pyrite.progress import NullProgress
from pyrite.spec import QaSource, RunSpec
from pyrite.stages import mine, prepare
from pyrite.stages.context import StepContext
from pyrite.stages.inputs import judgments_key
from pyrite.stages.pairs import PART, pairs_key
from pyrite.store import checksum_file, open_store

CHARACTERS = 780
QUESTIONS_PER_TOPIC = 8
PASSAGES_PER_ANSWER = 4


def _vocabulary(draw: random.Random) -> list[str]:
    syllables = [first + vowel + last for first in "bcdfglmnprst" for vowel in "aeiou" for last in ("", "n", "r", "s")]
    return ["".join(draw.choices(syllables, k=draw.choice((1, 2, 2, 3)))) for _ in range(20_000)]


def _edited(sentence: str, draw: random.Random, vocabulary: list[str]) -> str:
    """``sentence``, of which one of four gets another word."""
    words = sentence.split()
    if draw.random() < 0.25:
        words[draw.randrange(len(words) - 1)] = draw.choice(vocabulary)
    return " ".join(words)


def rows(passages: int) -> Iterator[dict[str, str]]:
    """Rows of a JSONL source with about ``passages`` passages; the same for the same number."""
    draw = random.Random(0)
    vocabulary = _vocabulary(draw)
    weights = list(itertools.accumulate(1 / (rank + 10) for rank in range(len(vocabulary))))

    def sentence() -> str:
        return " ".join(draw.choices(vocabulary, cum_weights=weights, k=draw.randint(8, 20))).capitalize() + "."

    recent: deque[list[str]] = deque(maxlen=100)
    for number in range(passages // PASSAGES_PER_ANSWER):
        kind = draw.random()
        if recent and kind < 0.02:
            sentences = draw.choice(recent)
        elif recent and kind < 0.04:
            sentences = [_edited(each, draw, vocabulary) for each in draw.choice(recent)]
        else:
            length = CHARACTERS * draw.randint(1, 2 * PASSAGES_PER_ANSWER - 1)
            sentences = []
            while sum(map(len, sentences)) < length:
                sentences.append(sentence())
        recent.append(sentences)
        topic = f"topic {number // QUESTIONS_PER_TOPIC}"
        question = f"What is {' '.join(draw.choices(vocabulary, k=6))} of {topic}?"
        yield {"question": question, "answer": " ".join(sentences), "title": f"About {topic}", "topic": topic}


def write_rows(folder: Path, arguments: argparse.Namespace) -> None:
    """Write the source of prepare."""
    with (folder / "rows.jsonl").open("w") as file:
        for row in rows(arguments.passages):
            file.write(json.dumps(row) + "\n")


def run_prepare(folder: Path) -> dict[str, int]:
    """Run prepare on the rows in ``folder``."""
    source = QaSource(kind="jsonl", path=str(folder / "rows.jsonl"), title="title", topic="topic")
    spec = RunSpec(name="bench", source=source)
    store = open_store(str(folder / "store"))
    summary = prepare.run(StepContext(spec, Step("prepare"), store, "runs/bench", {}, "scratch", NullProgress()))
    return {"passages": int(summary["passages"])}


# --- mine -------------------------------------------------------------------------------------------------------------

#: Shards of judging, candidates of a query, and how many of them are judged.
SHARDS, CANDIDATES, JUDGED = 4, 50, 30

#: Queries of a row group, as retrieve writes it.
ROW_GROUP = PART // CANDIDATES


def _texts(passages: int, draw: np.random.Generator) -> pa.Array:
    """Random texts, of which one of 50 is the one before with a few more words."""
    vocabulary = _vocabulary(random.Random(0))
    weights = 1 / np.arange(10, len(vocabulary) + 10)
    length = CHARACTERS // (1 + round(float(np.mean([len(word) for word in vocabulary]))))
    parts, text = [], ""
    for start in range(0, passages, 1 << 14):
        size = min(1 << 14, passages - start)
        rows = draw.choice(len(vocabulary), (size, length), p=weights / weights.sum()).tolist()
        part = []
        for number, row in enumerate(rows):
            new = " ".join([vocabulary[word] for word in row])
            text = f"{text[: CHARACTERS - 20]} and more" if number % 50 == 49 else new
            part.append(text)
        parts.append(pa.array(part, pa.large_string()))
    return pa.concat_arrays(parts)


def write_pairs(folder: Path, arguments: argparse.Namespace) -> None:
    """Write the pairs and judgments of an iteration."""
    draw = np.random.default_rng(0)
    texts = _texts(arguments.passages, draw)
    passage_keys = draw.integers(0, 1 << 63, len(texts)).astype(np.uint64)
    query_keys = np.unique(draw.integers(0, 1 << 60, arguments.queries).astype(np.uint64))
    store, outputs = open_store(str(folder / "store")), []
    for shard, own in enumerate(np.array_split(draw.permutation(len(query_keys)), SHARDS)):
        queries = query_keys[np.sort(own)]
        paths = {key: store.local_path(f"runs/bench/{key}") for key in (pairs_key(1, shard), judgments_key(1, shard))}
        judged: list[pa.Table] = []
        pairs, judgments = paths.values()
        groups = (queries[start : start + ROW_GROUP] for start in range(0, len(queries), ROW_GROUP))
        tables.write_parts(pairs, (_row_group(own, passage_keys, texts, draw, judged) for own in groups), tables.PAIRS)
        tables.write(judgments, pa.concat_tables(judged), tables.JUDGMENTS)
        for key, path in paths.items():
            checksum = checksum_file(path)
            outputs.append({"key": key, "bytes": checksum.size, "sha256": checksum.sha256})
    (folder / "outputs.json").write_text(json.dumps(outputs))


def _row_group(
    queries: Keys, passage_keys: Keys, texts: pa.Array, draw: np.random.Generator, judged: list[pa.Table]
) -> pa.Table:
    """PAIRS of ``queries``, with one known answer each, at any rank or none. Appends their grades to ``judged``."""
    size, width = len(queries), CANDIDATES + 1
    passages = np.sort(draw.integers(0, len(texts) - width, (size, width))) + np.arange(width)  # without repetition
    passages = draw.permuted(passages, axis=1)
    known = np.zeros((size, width), np.bool_)
    known[np.arange(size), draw.integers(0, width, size)] = True
    # The last column is a pair that is no candidate, if its passage is known to be relevant.
    used = np.ones((size, width), np.bool_)
    used[:, -1] = known[:, -1]
    rank = np.tile(np.arange(1, width + 1), (size, 1))
    grades = np.where(known, 4, draw.choice([1, 2, 3, 4], (size, width), p=[0.75, 0.17, 0.06, 0.02]))
    has_grade = used & (rank < width) & ((rank <= JUDGED) | known)
    ids = {
        "query_id": query_ids(np.repeat(queries, width)),
        "passage_id": passage_ids(passage_keys[passages.ravel()]),
    }
    empty = pa.repeat("", size * width)
    columns = {
        **ids,
        "rank": pa.array(rank.ravel(), mask=rank.ravel() == width),
        "score": pa.array(1 - rank.ravel() / 100, mask=rank.ravel() == width),
        "query": pa.array([f"What is the meaning of query number {query}?" for query in queries for _ in range(width)]),
        "title": empty,
        "context": pa.repeat("About a topic", size * width),
        "text": texts.take(pa.array(passages.ravel())).cast(pa.string()),
        "known": pa.array(known.ravel()),
        "relevant": pa.array(known.ravel()),
        "sampled": pa.array(np.zeros(size * width, np.bool_)),
    }
    grade = grades.ravel().astype(np.int8)
    rows = pa.table({**ids, "grade": grade, "expected": grade.astype(np.float32)}).filter(pa.array(has_grade.ravel()))
    for field in tables.JUDGMENTS:
        if field.name not in rows.schema.names:
            rows = rows.append_column(field, pa.nulls(len(rows), field.type))
    judged.append(rows.select(tables.JUDGMENTS.names))
    return pa.table(columns).filter(pa.array(used.ravel())).select(tables.PAIRS.names).cast(tables.PAIRS)


def run_mine(folder: Path) -> dict[str, int]:
    """Run mine on the pairs in ``folder``."""
    spec = RunSpec.model_validate({"name": "bench", "source": {"kind": "sample"}, "judge": {"shards": SHARDS}})
    manifests = {"all": {"outputs": json.loads((folder / "outputs.json").read_text())}}
    store = open_store(str(folder / "store"))
    summary = mine.run(StepContext(spec, Step("mine", 1), store, "runs/bench", manifests, "scratch", NullProgress()))
    return {"queries": summary["queries"], "examples": summary["examples"]}


class Stage(NamedTuple):
    """How to write the data of a stage to a folder, and to run it there, which returns counts."""

    write: Callable[[Path, argparse.Namespace], None]
    run: Callable[[Path], dict[str, int]]


STAGES = {"prepare": Stage(write_rows, run_prepare), "mine": Stage(write_pairs, run_mine)}


def _peak() -> int:
    """Peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(
    arguments: argparse.Namespace, folder: Path, results: "multiprocessing.SimpleQueue[dict[str, Any]]"
) -> None:
    """Run the stage with the data in ``folder``, and put its figures into ``results``."""
    before, started, processor = _peak(), time.perf_counter(), time.process_time()
    counts = STAGES[arguments.stage].run(folder)
    seconds, processor, peak = time.perf_counter() - started, time.process_time() - processor, _peak()
    passages = counts.get("passages", arguments.passages)
    figures = {
        "stage": arguments.stage,
        "passages": passages,
        **counts,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(processor, 1),
        "cpu_microseconds_per_passage": round(processor / passages * 1e6),
        "peak_mib": round(peak / 2**20, 1),
        "mib_before": round(before / 2**20, 1),
        "bytes_per_passage": round((peak - before) / passages),
    }
    if arguments.stage == "mine":
        pairs = counts["queries"] * CANDIDATES
        figures |= {"pairs": pairs, "cpu_microseconds_per_pair": round(processor / pairs * 1e6, 2)}
    results.put(figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=sorted(STAGES), default="prepare")
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=100_000, help="queries with 50 candidates each, for mine")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        # Spawned processes import everything themselves, and so their memory is not this process's.
        spawn = multiprocessing.get_context("spawn")
        results = spawn.SimpleQueue()
        write = STAGES[arguments.stage].write
        for target, args in ((write, (Path(folder), arguments)), (measure, (arguments, Path(folder), results))):
            process = spawn.Process(target=target, args=args)
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(process.exitcode)
        print(json.dumps(results.get()))


if __name__ == "__main__":
    main()
