"""Synthetic but realistic inputs of a report: 60 test queries, two iterations, two blends."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from pyrite import tables
from pyrite.evaluation.scoring import per_query
from pyrite.evaluation.selection import Candidate, LossLimit, choose, model_name, parse_model_name
from pyrite.judges.timeline import Timeline
from pyrite.report.data import ReportInputs
from pyrite.report.judging import SUMMARIZED, known_answers_of_training, summarize_judgments
from pyrite.report.provenance import CorpusFacts
from pyrite.report.references import BASE_BARE, BM25, CHOSEN_BARE
from pyrite.spec import RunSpec
from pyrite.spec.stages import retention_name

TYPES = ("symptoms", "treatment", "causes", "outlook", "information", "prevention", "genetic changes")
SUBJECTS = (
    "Gallstones",
    "Hydrocephalus",
    "Kidney stones",
    "Crohn's disease",
    "Narcolepsy",
    "Cyclic vomiting syndrome",
)
SENTENCE = (
    "People with {subject} are often given medicine that eases the symptoms, and a doctor decides whether "
    "more is needed. Tests of blood and urine, and pictures of the organ, distinguish it from other diseases. "
)
#: The name, dimensions, bytes and bytes on disk of smaller embeddings, and their metrics as a share of the model's.
SMALLER = (
    ("float32", 384, 1536, 0, 1.0),
    ("float32-64", 64, 256, 0, 0.9),
    ("int8", 384, 384, 0, 0.99),
    ("binary", 384, 48, 0, 0.8),
    ("binary-rescored", 384, 48, 1536, 0.97),
)


def make(
    seed: int = 0,
    queries: int = 60,
    iterations: int = 2,
    gain: float = 1.2,
    retention: bool = True,
    bm25: float = 0.8,
    hostile: str = "",
    **settings: Any,
) -> ReportInputs:
    """Inputs with consistent tables.

    Args:
        gain: how much training raises the scores of relevant passages.
        bm25: every metric of BM25, as a share of the chosen model's.
        hostile: text that is appended to every text that comes from the data set.
    """
    rng = np.random.default_rng(seed)
    evaluate = {"resamples": 500, "blends": [0.3, 0.6], **settings.pop("evaluate", {})}
    if retention:
        evaluate.setdefault("retention", {"path": "data/cisi", "max_loss": 0.02})
    spec = RunSpec.model_validate(
        {
            "name": "medquad-niddk",
            "domain": "medicine",
            "source": {"kind": "medquad", "path": "data/medquad.tar.xz", "collections": ["NIDDK", "NINDS"]},
            "iterations": iterations,
            "finetune": {"learning_rate": 3e-4},
            "evaluate": evaluate,
            **settings,
        }
    )
    names = ["base"] + [model_name(i, w) for i in range(1, iterations + 1) for w in (*evaluate["blends"], 1.0)]
    passages = [_passage(number, hostile) for number in range(200)]
    query_rows = [
        {
            "query_id": f"{split}-{number:03d}",
            "text": f"What are the {TYPES[number % 7]} of {SUBJECTS[number % 6]}?{hostile}",
            "topic": f"{SUBJECTS[number % len(SUBJECTS)]} {split} {number // 3}{hostile}",
            "type": TYPES[int(rng.integers(len(TYPES)) * rng.uniform())] + hostile,
            "split": split,
            "question_ids": [f"q{number}"],
        }
        for split, count in (("train", 4 * queries), ("val", queries), ("test", queries))
        for number in range(count)
    ]
    relevant = {
        row["query_id"]: rng.choice(200, size=int(rng.integers(1, 4)), replace=False).tolist() for row in query_rows
    }
    qrels = pa.Table.from_pylist(
        [
            {"query_id": q, "passage_id": f"c{c:03d}", "grade": 1}
            for q, passages_ in relevant.items()
            for c in passages_
        ],
        tables.QRELS,
    )

    query_table = pa.Table.from_pylist(query_rows, tables.QUERIES)

    rankings: list[dict[str, Any]] = []
    for row in query_rows:
        if row["split"] == "train":
            continue
        noise = rng.normal(size=200)
        for name in names:
            iteration, weight = parse_model_name(name)
            scores = noise + 0.45 * rng.normal(size=200) * (weight + 0.1)
            learned = weight**0.6 * (1 + 0.12 * (iteration - 1)) if iteration else 0.0
            scores[relevant[row["query_id"]]] += 1.9 + gain * learned
            for rank, passage in enumerate(np.argsort(-scores)[:10], 1):
                rankings.append(
                    {
                        "model": name, "split": row["split"], "query_id": row["query_id"],
                        "passage_id": f"c{passage:03d}", "rank": rank, "score": float(0.9 - rank / 100),
                    }
                )  # fmt: skip
    scored = {
        split: [
            {"model": name, "split": split, **values}
            for name in names
            for values in per_query(
                pa.Table.from_pylist(
                    [
                        {k: r[k] for k in tables.CANDIDATES.names}
                        for r in rankings
                        if r["model"] == name and r["split"] == split
                    ],
                    tables.CANDIDATES,
                ),
                qrels.filter(pa.compute.starts_with(qrels.column("query_id"), split)),
            )
        ]
        for split in ("val", "test")
    }
    spread = np.linspace(0.3, 0.542, 80)  # nDCG@10 of the base model for 80 queries; the mean is 0.421
    losses = {n: spread * (1 - 0.016 * parse_model_name(n)[1] * parse_model_name(n)[0]) for n in names}
    retention_scores = losses if retention else {}
    choice = choose(
        [
            Candidate(
                name,
                *parse_model_name(name),
                np.array([r["value"] for r in scored["val"] if r["model"] == name and r["metric"] == "mrr@5"]),
                retention_scores.get(name),
            )
            for name in names
        ],
        LossLimit.of(spec),
    )
    scored_on_test = {name for name in names if parse_model_name(name)[1] in (0, 1)} | {choice.name}
    references = [
        {**row, "model": name, "value": share * row["value"]}
        for name, model, share in (
            (BASE_BARE, "base", 0.8),
            (CHOSEN_BARE, choice.name, 0.9),
            (BM25, choice.name, bm25),
        )
        for row in scored["test"]
        if row["model"] == model
    ]
    smaller = [
        {"model": row["model"], "embedding": name, "dims": dims, "bytes": size, "rescored_bytes": rescored,
         "query_id": row["query_id"], "metric": row["metric"], "value": share * row["value"]}
        for model in dict.fromkeys(("base", choice.name))
        for name, dims, size, rescored, share in SMALLER
        for row in scored["test"]
        if row["model"] == model and row["metric"] in ("mrr@5", "dcg@5")
    ]  # fmt: skip
    return ReportInputs(
        spec=spec,
        manifests=_manifests(iterations, queries, hostile, spec.judge.kind),
        corpus=CorpusFacts.of(
            pa.array([each["passage_id"] for each in passages]),
            np.array([len(each["text"]) for each in passages], np.int32),
        ),
        passages=pa.Table.from_pylist(passages, tables.PASSAGES),
        affected=(),
        queries=query_table,
        qrels=qrels,
        val=pa.Table.from_pylist(scored["val"], tables.PER_QUERY),
        test=pa.Table.from_pylist([r for r in scored["test"] if r["model"] in scored_on_test], tables.PER_QUERY),
        references=pa.Table.from_pylist(references, tables.PER_QUERY),
        smaller=pa.Table.from_pylist(smaller, tables.SMALLER),
        rankings=pa.Table.from_pylist(
            [r for r in rankings if r["split"] == "test" and r["model"] in scored_on_test], tables.RANKINGS
        ),
        judged=summarize_judgments(
            [{i: [_judgments(i, queries, rng)] for i in range(1, iterations + 1)}],
            known_answers_of_training(query_table, qrels),
        ),
        choice=choice,
        retention=pa.Table.from_pylist(
            [
                {"model": name, "set": set_name, "query_id": f"r{number:02d}", "metric": "ndcg@10", "value": value}
                for set_name in _retention_sets(spec)
                for name, values in retention_scores.items()
                for number, value in enumerate(values)
            ],
            tables.RETENTION,
        ),
        clusters={row["query_id"]: f"{row['split']} {number // 3}" for number, row in enumerate(query_rows)},
    )


def _retention_sets(spec: RunSpec) -> list[str]:
    sets = spec.evaluate.retention
    return [retention_name(path) for path in (sets.path, *sets.report)] if sets else []


def with_timelines(inputs: ReportInputs, seconds: float = 600, pairs: int = 2000, changed: int = 0) -> ReportInputs:
    """The same run with concurrent judge shards that record timelines of ``pairs`` new pairs each.

    In the middle of iteration ``changed`` another model starts to respond. In iteration 1 the server stalls once.
    """
    rng, manifests = np.random.default_rng(1), dict(inputs.manifests)
    judged: dict[int, list[dict[str, Any]]] = {}
    for name in [name for name in manifests if name.startswith("judge-")]:
        iteration, shard = (int(number) for number in name.removeprefix("judge-").split("."))
        now = started = datetime.fromisoformat(manifests[f"judge-{iteration}.0"]["started"]) + timedelta(seconds=shard)
        timeline = Timeline(started, lambda: now.timestamp())  # noqa: B023  # the clock reads the loop variable
        for number in range(pairs):
            stalled = iteration == 1 and number == pairs // 3
            now += timedelta(seconds=seconds / pairs * rng.exponential() + stalled * seconds / 8)
            learned = 0.1 / iteration
            usual, other = [0.46, 0.24, 0.1 + learned, 0.2 - learned], [0.2, 0.5, 0.2, 0.1]
            grade = int(rng.choice([1, 2, 3, 4], p=other if iteration == changed and number > pairs / 2 else usual))
            timeline.add(grade)
            pair = {"query_id": f"train-{shard}-{number}", "passage_id": f"c{iteration:03d}"}
            judged.setdefault(iteration, []).append({**pair, "grade": grade, "expected": grade, "judge": "llm"})
        summary = manifests[name]["summary"] | {"judged": pairs, "cached": 0, "timeline": timeline.as_json()}
        manifests[name] = manifests[name] | {"seconds": (now - started).total_seconds() + 2, "summary": summary}
    shard = {i: [pa.Table.from_pylist(rows, SUMMARIZED)] for i, rows in judged.items()}
    known = known_answers_of_training(inputs.queries, inputs.qrels)
    return replace(inputs, manifests=manifests, judged=summarize_judgments([shard], known))


def with_title_pairs(inputs: ReportInputs, pairs: int) -> ReportInputs:
    """The same run with ``pairs`` title-passage pairs in each iteration."""
    manifests = {
        name: {**each, "summary": {**each["summary"], "title_pairs": pairs}} if name.startswith("mine-") else each
        for name, each in inputs.manifests.items()
    }
    return replace(inputs, manifests=manifests)


def _passage(number: int, hostile: str) -> dict[str, Any]:
    subject = SUBJECTS[number % len(SUBJECTS)]
    return {
        "passage_id": f"c{number:03d}",
        "text": f"{SENTENCE.format(subject=subject) * (2 + number % 3)}{hostile}",
        "title": f"{subject}: {TYPES[number % len(TYPES)]}{hostile}",
        "context": f"{subject}: {TYPES[number % len(TYPES)]}{hostile}",
        "split": "train",
        "parents": [],
    }


def _judgments(iteration: int, queries: int, rng: np.random.Generator) -> pa.Table:
    grades = rng.choice([1, 2, 3, 4], size=queries * 5, p=[0.46, 0.24, 0.1 + 0.1 / iteration, 0.2 - 0.1 / iteration])
    rows = [
        {
            "query_id": f"train-{n // 5:03d}", "passage_id": f"c{n % 5 + 4 * iteration:03d}", "grade": int(grade),
            "expected": 2.5, "judge": "labels",
        }
        for n, grade in enumerate(grades)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, SUMMARIZED)


def _manifests(iterations: int, queries: int, hostile: str, judge: str) -> dict[str, dict[str, Any]]:
    per_iteration = (
        ("retrieve", 46.0),
        ("judge", 1.5),
        ("mine", 2.4),
        ("finetune", 212.0),
        ("evaluate", 61.0),
    )
    steps = [("prepare", 8.2), ("validate-0", 58.0)]
    for i in range(1, iterations + 1):
        for stage, seconds in per_iteration:
            steps += [(f"{stage}-{i}.{shard}" if stage == "judge" else f"{stage}-{i}", seconds) for shard in range(2)][
                : 2 if stage == "judge" else 1
            ]
    now, manifests = datetime(2026, 11, 22, 20, 0, tzinfo=UTC), {}
    for name, seconds in steps:
        finished = now + timedelta(seconds=seconds)
        manifests[name] = {
            "step": name,
            "started": now.isoformat(timespec="seconds"),
            "finished": finished.isoformat(timespec="seconds"),
            "seconds": seconds,
            "summary": _summary(name, queries, hostile, judge),
            "versions": {"pyrite": "0.1.0", "torch": "2.13.0+cpu", "sentence-transformers": "6.2.0"},
            "machine": {"system": "Linux-6.1-x86_64", "cpus": 2},
            "outputs": [
                {
                    "key": f"{name}.parquet",
                    "bytes": int(seconds * 20_000),
                    "rows": int(seconds * 60),
                    "sha256": "0",
                }
            ],
        }
        now = finished
    return manifests


def _summary(name: str, queries: int, hostile: str, judge: str) -> dict[str, Any]:
    if name == "prepare":
        return {
            "documents": 412,
            "passages": 200,
            "merged_passages": 17,
            "notes": ["The splits are those of the data set."],
            "queries": {"train": 4 * queries, "val": queries, "test": queries},
            "topics": {"train": 80, "val": 20, "test": 20},
            "dropped": {"question is empty": 2, f"answer is empty{hostile}": 31},
            "dropped_examples": {
                "question is empty": ["corpus.jsonl:7"],
                f"answer is empty{hostile}": [f"0000{n}.xml#{n}{hostile}" for n in range(5)],
            },
        }
    if name.startswith("retrieve"):
        return {"model": "base", "queries": queries, "candidates": 6 * queries}
    if name.startswith("judge"):
        counts = {"pairs": 250, "not_selected": 40, "skipped": 30, "cached": 20, "judged": 178, "missing": 2}
        if judge == "labels":
            return {**counts, "cached": 0, "missing": 0, "judged": 180, "prompt_tokens": 0, "cached_tokens": 0}
        return {**counts, "prompt_tokens": 100_000, "cached_tokens": 60_000, "decoding_mode": "choice", "truncated": 3}
    if name.startswith("mine"):
        return {
            "queries": 240,
            "hard": 188,
            "easy": 31,
            "examples": 219,
            "queries_without_examples": {"no relevant candidate": 21},
        }
    if name.startswith("finetune"):
        offset = 0.55 if name.endswith("1") else 0.0
        curve = [(s, 0.35 + offset * 2.718 ** (-s / 15) + 0.05 * float(np.sin(s))) for s in range(1, 57)]
        return {"examples": 219, "steps": 56, "loss": 0.3, "history": curve}
    return {}
