"""Scale: time and peak memory of one stage with a synthetic corpus of any size.

Usage: python scripts/bench_scale.py --stage prepare --passages 100000

The corpus has passages of about 780 characters in answers of one to seven passages, with titles, topics and one
question each. One answer of 50 is an exact copy of an earlier one, and one of 50 a near-duplicate. The stage runs in a
process of its own. The only line is JSON: ``peak_mib`` is the process's peak memory, and ``bytes_per_passage`` how much
of it was added after imports, per passage. ``cpu_seconds`` is comparable on a busy machine, unlike ``seconds``.
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
from typing import Any

from pyrite.plan import Step
from pyrite.progress import NullProgress
from pyrite.spec import QaSource, RunSpec
from pyrite.stages import prepare
from pyrite.stages.context import StepContext
from pyrite.store import open_store

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


def _prepare(folder: Path) -> int:
    """Run prepare on the rows in ``folder``; return the number of passages."""
    source = QaSource(kind="jsonl", path=str(folder / "rows.jsonl"), title="title", topic="topic")
    spec = RunSpec(name="bench", source=source)
    store = open_store(str(folder / "store"))
    summary = prepare.run(StepContext(spec, Step("prepare"), store, "runs/bench", {}, "scratch", NullProgress()))
    return int(summary["passages"])


STAGES: dict[str, Callable[[Path], int]] = {"prepare": _prepare}


def _peak() -> int:
    """Peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(stage: str, folder: Path, results: "multiprocessing.SimpleQueue[dict[str, Any]]") -> None:
    """Run ``stage`` with the data in ``folder``, and put its figures into ``results``."""
    before, started, processor = _peak(), time.perf_counter(), time.process_time()
    passages = STAGES[stage](folder)
    seconds, processor, peak = time.perf_counter() - started, time.process_time() - processor, _peak()
    results.put(
        {
            "stage": stage,
            "passages": passages,
            "seconds": round(seconds, 1),
            "cpu_seconds": round(processor, 1),
            "cpu_microseconds_per_passage": round(processor / passages * 1e6),
            "peak_mib": round(peak / 2**20, 1),
            "bytes_per_passage": round((peak - before) / passages),
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=sorted(STAGES), default="prepare")
    parser.add_argument("--passages", type=int, default=100_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with (Path(folder) / "rows.jsonl").open("w") as file:
            for row in rows(arguments.passages):
                file.write(json.dumps(row) + "\n")
        # A spawned process imports everything itself, and so its memory is not this process's.
        spawn = multiprocessing.get_context("spawn")
        results = spawn.SimpleQueue()
        process = spawn.Process(target=measure, args=(arguments.stage, Path(folder), results))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(process.exitcode)
        print(json.dumps(results.get()))


if __name__ == "__main__":
    main()
