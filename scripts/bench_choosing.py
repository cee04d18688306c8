"""Effect of judging fewer pairs: the share of pairs that is judged, and the share of hard examples that is still mined.

Usage: python scripts/bench_choosing.py STORE RUN [--iteration N]

RUN is a finished run in the folder STORE whose candidates were all judged by labels (for example STORE/ours after
`make bench-quality ARGS='--only ours --store STORE'`). Its candidates are judged again with each setting, with the
labels judge in place of an LLM, and mined with the run's own rule and with the rank rule. To train with a setting, use
`pyrite train`; docs/judging.md has the results of both.
"""

import argparse
import asyncio
import json
import sys
from collections import defaultdict
from itertools import groupby
from pathlib import Path
from typing import Any

from pyrite import tables
from pyrite.config import load
from pyrite.judges import Judgment, Pair
from pyrite.judges.labels import LabelsJudge
from pyrite.judges.session import JudgingSession, select_candidates
from pyrite.progress import NullProgress
from pyrite.spec import LabelsJudgeSpec, MineSpec
from pyrite.training import mining
from pyrite.training.mining import Candidate

SETTINGS: dict[str, dict[str, Any]] = {
    "all 50": {},
    "rank_window 30": {"rank_window": 30},
    "rank_window 20": {"rank_window": 20},
    "rank_window 10": {"rank_window": 10},
    "rank_window 5": {"rank_window": 5},
    "patience 20": {"patience": 20},
    "patience 10": {"patience": 10},
    "patience 5": {"patience": 5},
    "patience 3": {"patience": 3},
    "rank_window 20, patience 10": {"rank_window": 20, "patience": 10},
}


class GradingSession(JudgingSession):
    """Also collects the grades."""

    def __init__(self, judge: LabelsJudge, total: int, patience: int | None):
        super().__init__(judge, None, total, 0.0, NullProgress(), patience=patience)
        self.grades: dict[Pair, int] = {}

    def on_judged(self, judgment: Judgment) -> None:
        self.grades[judgment.pair] = judgment.grade


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
    candidates = tables.read(
        folder / f"iterations/{arguments.iteration}/candidates.parquet", tables.CANDIDATES
    ).to_pylist()
    judge = LabelsJudge(queries, passages, qrels)
    relevant: dict[str, set[str]] = defaultdict(set)
    for row in qrels.to_pylist():
        relevant[row["query_id"]].add(row["passage_id"])
    text_of = dict(zip(passages["passage_id"].to_pylist(), passages["text"].to_pylist(), strict=True))
    shingles = {passage: mining.shingles(text_of[passage]) for passage in {row["passage_id"] for row in candidates}}
    by_query = [(query, list(rows)) for query, rows in groupby(candidates, key=lambda row: row["query_id"])]
    rules = {"run's rule": spec.mine, "rank rule": MineSpec(rule="rank")}
    all_hard: dict[str, set[tuple[str, ...]]] = {}
    for name, settings in SETTINGS.items():
        judge_spec = LabelsJudgeSpec(**settings)
        selected = [
            (q, select_candidates([(r["passage_id"], r["rank"]) for r in rows], relevant[q], judge_spec.rank_window))
            for q, rows in by_query
        ]
        session = GradingSession(judge, len(candidates), judge_spec.patience)
        asyncio.run(session.judge_all(selected, relevant))
        line: dict[str, Any] = {"setting": name, "judged": round(len(session.grades) / len(candidates), 3)}
        for rule_name, rule in rules.items():
            judged = [(q, [candidate(q, row, session.grades, relevant[q]) for row in rows]) for q, rows in by_query]
            examples, _ = mining.mine(
                judged, relevant, rule, spec.seed, lambda a, b: mining.near_duplicates(shingles[a], shingles[b])
            )
            hard = {(e.query_id, e.positive.passage_id, *(n.passage_id for n in e.negatives)) for e in examples
                    if e.kind == "hard"}  # fmt: skip
            all_hard.setdefault(rule_name, hard)
            line[rule_name] = {
                "examples": len(examples),
                "hard": len(hard),
                "same_hard_share": round(len(hard & all_hard[rule_name]) / len(all_hard[rule_name]), 3),
            }
        print(json.dumps(line), flush=True)
    return 0


def candidate(query: str, row: dict[str, Any], grades: dict[Pair, int], known: set[str]) -> Candidate:
    passage = row["passage_id"]
    grade = grades.get(Pair(query, passage))
    expected = None if grade is None else float(grade)
    return Candidate(passage, row["rank"], row["score"], grade, expected, passage in known)


if __name__ == "__main__":
    sys.exit(main())
