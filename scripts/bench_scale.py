"""Scale: time and peak memory of one stage with a synthetic corpus of any size.

Usage: python scripts/bench_scale.py --stage prepare --passages 100000
       python scripts/bench_scale.py --stage mine --passages 1000000 --queries 100000
       python scripts/bench_scale.py --stage evaluate --passages 1000000 --queries 100000

For prepare, the corpus has passages of about 780 characters in answers of one to seven passages, with titles, topics
and one question each. One answer of 50 is an exact copy of an earlier one, and one of 50 a near-duplicate. For mine,
each query has 50 random candidates, of which 30 are judged, and one of 50 passages is a near-duplicate of the one
before.

For evaluate, an iteration judged 50 random passages of each training query, and there are 1,000 validation and 1,000
test queries. The chosen model is a blend, so the step encodes the corpus three times: with the blend, and without
context with the blend and with the base model. The models are the built-in one, but random vectors take the place of
embeddings, because encoding would take hours. All else is the real code, with the vectors on disk.

The stage runs in a process of its own. The only line is JSON: ``peak_mib`` is the process's peak memory, and
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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pyrite import tables
from pyrite.embedding import models
from pyrite.embedding.encoder import Encoder
from pyrite.embedding.search import Floats
from pyrite.evaluation.scoring import METRICS
from pyrite.evaluation.selection import BASE
from pyrite.identity import Keys, passage_ids, query_ids
from pyrite.plan import Step
from pyrite.progress import NullProgress
from pyrite.spec import QaSource, RunSpec
from pyrite.stages import evaluate, mine, prepare
from pyrite.stages.context import StepContext
from pyrite.stages.found import DEPTH, found_key, found_parts
from pyrite.stages.inputs import judgments_key
from pyrite.stages.pairs import PART, pairs_key
from pyrite.store import checksum_file, open_store

CHARACTERS = 780
QUESTIONS_PER_TOPIC = 8
RUN = "runs/bench"
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
    summary = prepare.run(StepContext(spec, Step("prepare"), store, RUN, {}, "scratch", NullProgress()))
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
    store = open_store(str(folder / "store"))
    for shard, own in enumerate(np.array_split(draw.permutation(len(query_keys)), SHARDS)):
        queries = query_keys[np.sort(own)]
        pairs, judgments = (store.local_path(f"{RUN}/{key(1, shard)}") for key in (pairs_key, judgments_key))
        judged: list[pa.Table] = []
        groups = (queries[start : start + ROW_GROUP] for start in range(0, len(queries), ROW_GROUP))
        tables.write_parts(pairs, (_row_group(own, passage_keys, texts, draw, judged) for own in groups), tables.PAIRS)
        tables.write(judgments, pa.concat_tables(judged), tables.JUDGMENTS)
    _write_outputs(folder, store.local_path(RUN))


def _write_outputs(folder: Path, run: Path) -> None:
    """Write a list of all files of the run, as in manifests."""
    outputs = [
        {"key": str(path.relative_to(run)), "bytes": size, "sha256": sha256}
        for path in run.rglob("*")
        if path.is_file()
        for size, sha256 in [checksum_file(path)]
    ]
    (folder / "outputs.json").write_text(json.dumps(outputs))


def _read_outputs(folder: Path) -> list[dict[str, Any]]:
    return list(json.loads((folder / "outputs.json").read_text()))


def _complete(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """``rows`` with the columns of ``schema``; null where they have none."""
    for field in schema:
        if field.name not in rows.schema.names:
            rows = rows.append_column(field, pa.nulls(len(rows), field.type))
    return rows.select(schema.names).cast(schema)


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
    judged.append(_complete(rows, tables.JUDGMENTS))
    return pa.table(columns).filter(pa.array(used.ravel())).select(tables.PAIRS.names).cast(tables.PAIRS)


def run_mine(folder: Path) -> dict[str, int]:
    """Run mine on the pairs in ``folder``."""
    spec = RunSpec.model_validate({"name": "bench", "source": {"kind": "sample"}, "judge": {"shards": SHARDS}})
    manifests = {"all": {"outputs": _read_outputs(folder)}}
    store = open_store(str(folder / "store"))
    summary = mine.run(StepContext(spec, Step("mine", 1), store, RUN, manifests, "scratch", NullProgress()))
    return {"queries": summary["queries"], "examples": summary["examples"]}


# --- evaluate ---------------------------------------------------------------------------------------------------------

#: Validation and test queries, and passages of a row group, as prepare writes them.
HELD_OUT, PASSAGES_OF_GROUP = 1000, 32_768


def _evaluate_spec() -> RunSpec:
    evaluate = {"blends": [0.5], "resamples": 1000}
    judge = {"shards": SHARDS, "noise": {"kappa": 0.5}}
    content = {"name": "bench", "source": {"kind": "sample"}, "iterations": 1, "evaluate": evaluate, "judge": judge}
    return RunSpec.model_validate({**content, "model": {"base": models.BUILTIN}})


def write_run(folder: Path, arguments: argparse.Namespace) -> None:
    """Write what earlier steps write: corpus, queries, passages found, scores on validation, judgments and a model."""
    draw, spec, store = np.random.default_rng(0), _evaluate_spec(), open_store(str(folder / "store"))
    texts = _texts(arguments.passages, draw)
    passages = np.unique(draw.integers(0, 1 << 63, len(texts)).astype(np.uint64))
    queries = np.unique(draw.integers(0, 1 << 60, arguments.queries + 2 * HELD_OUT).astype(np.uint64))
    splits = np.repeat(["train", "val", "test"], [len(queries) - 2 * HELD_OUT, HELD_OUT, HELD_OUT])
    ids, answers = query_ids(queries).to_pylist(), draw.integers(0, len(passages), len(queries))

    def output(key: str) -> Path:
        return store.local_path(f"{RUN}/{key}")

    groups = (
        np.arange(start, min(start + PASSAGES_OF_GROUP, len(passages)))
        for start in range(0, len(passages), PASSAGES_OF_GROUP)
    )
    tables.write_parts(
        output("corpus/passages.parquet"), (_passages(rows, passages, texts) for rows in groups), tables.PASSAGES
    )
    asked = [
        {
            "query_id": id,
            "text": f"What is {' '.join(texts[int(answer)].as_py().split()[:6])}?",
            "topic": f"topic {number // QUESTIONS_PER_TOPIC}",
            "type": "",
            "split": split,
            "group": f"group {number // QUESTIONS_PER_TOPIC}",
            "question_ids": [str(number)],
        }
        for number, (id, split, answer) in enumerate(zip(ids, splits.tolist(), answers, strict=True))
    ]
    tables.write(output("queries/queries.parquet"), asked, tables.QUERIES)
    known = {"query_id": ids, "passage_id": passage_ids(passages[answers]), "grade": np.ones(len(ids), np.int8)}
    tables.write(output("queries/qrels.parquet"), pa.table(known), tables.QRELS)
    for iteration, quality in ((0, {BASE: 0.2}), (1, {"iteration-1": 0.5, "iteration-1@0.5": 0.8})):
        found = np.sort(draw.integers(0, len(passages) - DEPTH, (HELD_OUT, DEPTH))) + np.arange(DEPTH)
        scores = np.sort(draw.random((HELD_OUT, DEPTH), np.float32))[:, ::-1]
        tables.write_parts(output(found_key(iteration, "test", 0)), found_parts(scores, found), tables.FOUND)
        scored = [
            {"model": name, "split": "val", "query_id": id, "metric": metric, "value": float(draw.random() < share)}
            for name, share in quality.items()
            for id in itertools.compress(ids, splits == "val")
            for metric in METRICS
        ]
        tables.write(output(f"iterations/{iteration}/metrics/val.parquet"), scored, tables.PER_QUERY)
    trained = np.flatnonzero(splits == "train")
    for shard, own in enumerate(np.array_split(draw.permutation(trained), SHARDS)):
        rows = (np.sort(own)[start : start + ROW_GROUP] for start in range(0, len(own), ROW_GROUP))
        parts = (_judgments(queries[part], answers[part], passages, draw) for part in rows)
        tables.write_parts(output(judgments_key(1, shard)), parts, tables.JUDGMENTS)
    models.resave(models.base_folder(spec.model.base, None), spec.model, output("iterations/1/model"))
    _write_outputs(folder, store.local_path(RUN))


def _passages(rows: npt.NDArray[np.int64], keys: Keys, texts: pa.Array) -> pa.Table:
    """PASSAGES at ``rows``, all of them training passages with a context."""
    count = len(rows)
    columns = {
        "passage_id": passage_ids(keys[rows]),
        "text": texts.take(pa.array(rows)).cast(pa.string()),
        "title": pa.repeat("About a topic", count),
        "context": pa.repeat("About a topic", count),
        "split": pa.repeat("train", count),
        "boilerplate": pa.repeat(False, count),
    }
    return _complete(pa.table(columns), tables.PASSAGES)


def _judgments(queries: Keys, answers: npt.NDArray[np.int64], keys: Keys, draw: np.random.Generator) -> pa.Table:
    """JUDGMENTS of ``CANDIDATES`` random passages of each query, of which the first is its known answer."""
    passages = (answers[:, None] + np.cumsum(draw.integers(1, 1000, (len(queries), CANDIDATES)), axis=1)) % len(keys)
    passages[:, 0] = answers
    grades = draw.choice([1, 2, 3, 4], passages.size, p=[0.75, 0.17, 0.06, 0.02]).astype(np.int8)
    columns = {
        "query_id": query_ids(np.repeat(queries, CANDIDATES)),
        "passage_id": passage_ids(keys[passages.ravel()]),
        "grade": grades,
        "expected": grades.astype(np.float32),
        "judge": pa.repeat("labels", passages.size),
    }
    return _complete(pa.table(columns), tables.JUDGMENTS)


def run_evaluate(folder: Path) -> dict[str, int]:
    """Run evaluate on the run in ``folder``, with random vectors in place of embeddings."""
    draw = np.random.default_rng(1)

    def encode(_self: Encoder, texts: Sequence[str], *_: Any) -> Floats:
        vectors = draw.standard_normal((len(texts), 384), np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    with patch.object(Encoder, "encode", encode):
        manifest = {"outputs": _read_outputs(folder), "started": "2026-01-01T00:00:00+00:00", "seconds": 1}
        store = open_store(str(folder / "store"))
        ctx = StepContext(
            _evaluate_spec(), Step("evaluate"), store, RUN, {"prepare": manifest}, "scratch", NullProgress()
        )
        summary = evaluate.run(ctx)
    if summary["chosen"] != "iteration-1@0.5":
        raise SystemExit(f"chose {summary['chosen']}, not the blend")
    mined = json.loads(ctx.output("report/report.json").read_text())["mining"]
    return {"judgments": mined[0]["judgments"]}


class Stage(NamedTuple):
    """How to write the data of a stage to a folder, and to run it there, which returns counts."""

    write: Callable[[Path, argparse.Namespace], None]
    run: Callable[[Path], dict[str, int]]


STAGES = {
    "prepare": Stage(write_rows, run_prepare),
    "mine": Stage(write_pairs, run_mine),
    "evaluate": Stage(write_run, run_evaluate),
}


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
    parser.add_argument(
        "--queries", type=int, default=100_000, help="training queries with 50 candidates each, for mine and evaluate"
    )
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
