"""What judging fewer pairs costs: share of the judgments sent against share of the hard examples still found.

Usage: python scripts/bench_choosing.py STORE RUN [--iteration N]

RUN is a finished run in the folder STORE that was judged by labels and in full (say, what `make bench-quality
ARGS='--only ours --store STORE'` leaves in STORE/ours). Its candidates are judged anew under each way of choosing, with
the labels judge standing in for a language model, and mined under the run's own rule and under the rank rule. The
training that follows is `pyrite train` with the same settings; docs/judging.md has the figures of both.
"""

import argparse
import asyncio
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from pyrite import tables
from pyrite.config import load
from pyrite.judges import Judgment, Missing, Pair
from pyrite.judges.labels import LabelsJudge
from pyrite.judges.selection import choose
from pyrite.judges.session import judge_all
from pyrite.spec import JudgeSpec, MineSpec, SampleSpec
from pyrite.training import mining
from pyrite.training.mining import Candidate

DECODING_MODES: dict[str, dict[str, Any]] = {
    "all 50": {},
    "rank_window 30": {"rank_window": 30},
    "rank_window 20": {"rank_window": 20},
    "rank_window 10": {"rank_window": 10},
    "rank_window 5": {"rank_window": 5},
    "patience 20": {"patience": 20},
    "patience 10": {"patience": 10},
    "patience 5": {"patience": 5},
    "patience 3": {"patience": 3},
    "the paper's sample (5 + 10)": {"sample": SampleSpec()},
    "a sample of 10 + 10": {"sample": SampleSpec(top=10)},
    "rank_window 20, patience 10": {"rank_window": 20, "patience": 10},
}


class Recorder:
    """Keeps the grades of what was walked."""

    def __init__(self) -> None:
        self.grades: dict[Pair, int] = {}

    def judged(self, judgment: Judgment) -> None:
        self.grades[judgment.pair] = judgment.grade

    def missing(self, missing: Missing) -> None:
        raise AssertionError(f"the answer key answers always, and not {missing}")

    def kept(self, pair: Pair) -> None:
        raise AssertionError(f"nothing is kept, and {pair} was")

    def skipped(self, query_id: str, passage_ids: Sequence[str]) -> None:
        pass


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("run")
    parser.add_argument("--iteration", type=int, default=1)
    arguments = parser.parse_args()
    folder = arguments.store / "runs" / arguments.run
    spec = load(folder / "run.yaml")
    queries = tables.read(folder / "queries/queries.parquet", tables.QUERIES)
    passages = tables.read(folder / "corpus/passages.parquet", tables.PASSAGES)
    qrels = tables.read(folder / "queries/qrels.parquet", tables.QRELS)
    found = tables.read(folder / f"iterations/{arguments.iteration}/candidates.parquet", tables.CANDIDATES).to_pylist()
    judge = LabelsJudge(queries, passages, qrels)
    relevant: dict[str, set[str]] = defaultdict(set)
    for row in qrels.to_pylist():
        relevant[row["query_id"]].add(row["passage_id"])
    text_of = dict(zip(passages["passage_id"].to_pylist(), passages["text"].to_pylist(), strict=True))
    shingles = {passage: mining.shingles(text_of[passage]) for passage in {row["passage_id"] for row in found}}
    by_query = [(query, list(rows)) for query, rows in groupby(found, key=lambda row: row["query_id"])]
    rules = {"run's rule": spec.mine, "rank rule": MineSpec(rule="rank")}
    whole: dict[str, set[tuple[str, ...]]] = {}
    lines = []
    for way, settings in DECODING_MODES.items():
        chosen = JudgeSpec(**settings)
        recorder = Recorder()
        walks = [
            (q, choose(q, [(r["passage_id"], r["rank"]) for r in rows], relevant[q], chosen, spec.seed))
            for q, rows in by_query
        ]
        asyncio.run(judge_all(walks, judge, {}, chosen.patience, recorder, relevant))
        line: dict[str, Any] = {"decoding_mode": way, "judged": round(len(recorder.grades) / len(found), 3)}
        for name, rule in rules.items():
            judged = [(q, [candidate(q, row, recorder.grades) for row in rows]) for q, rows in by_query]
            examples, _ = mining.mine(
                judged, relevant, rule, spec.seed, lambda a, b: mining.near_duplicates(shingles[a], shingles[b])
            )
            hard = {(e.query_id, e.positive.passage_id, *(n.passage_id for n in e.negatives)) for e in examples
                    if e.kind == "hard"}  # fmt: skip
            whole.setdefault(name, hard)
            line[name] = {
                "examples": len(examples),
                "hard": len(hard),
                "hard_kept": round(len(hard & whole[name]) / len(whole[name]), 3),
            }
        lines.append(line)
        print(json.dumps(line), flush=True)
    return 0


def candidate(query: str, row: dict[str, Any], grades: dict[Pair, int]) -> Candidate:
    grade = grades.get(Pair(query, row["passage_id"]))
    return Candidate(row["passage_id"], row["rank"], row["score"], grade, None if grade is None else float(grade))


if __name__ == "__main__":
    sys.exit(main())
