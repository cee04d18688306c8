"""The labels judge, and the assignment of queries to shards."""

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prepared_tables import prepare_tables
from pyrite import judges, tables
from pyrite.config import load
from pyrite.errors import UserError
from pyrite.executors.step import open_run, run_step
from pyrite.identity import query_id
from pyrite.judges import Pair, open_judge
from pyrite.plan import Step, parents
from pyrite.progress import NullProgress
from pyrite.sources.base import Document, Question
from pyrite.spec import LabelsJudgeSpec, MineSpec, PrepareSpec, RunSpec, SampleSource
from pyrite.stages.pairs import shard_of
from pyrite.store import open_store


def parent(topic: str, kind: str) -> dict[str, object]:
    return {"document_id": "d", "start": 0, "end": 1, "topic": topic, "type": kind}


def test_grades_follow_labels_topics_and_types() -> None:
    queries = pa.Table.from_pylist(
        [
            {"query_id": "q", "text": "?", "topic": "Gout", "type": "symptoms", "split": "train", "question_ids": []},
            {"query_id": "bare", "text": "?", "topic": "", "type": "", "split": "train", "question_ids": []},
        ],
        tables.QUERIES,
    )
    parents = {
        "own": [parent("gout", "symptoms")],
        "elsewhere": [parent("asthma", "causes"), parent("GOUT", "symptoms")],
        "topic": [parent("gout ", "treatment"), parent("asthma", "symptoms")],
        "other": [parent("asthma", "symptoms")],
        "bare": [parent("", "")],
    }
    defaults = {"title": "", "context": "", "split": "train"}
    rows = [{"passage_id": c, "text": c, "parents": p, **defaults} for c, p in parents.items()]
    passages = pa.Table.from_pylist(rows, tables.PASSAGES)
    qrels = pa.Table.from_pylist([{"query_id": "q", "passage_id": "own", "grade": 1}], tables.QRELS)
    judge = open_judge(RunSpec(name="r", source=SampleSource()).main_judge, queries, passages, qrels)
    pairs = [Pair("q", passage) for passage in parents] + [Pair("bare", "bare"), Pair("bare", "own")]
    graded = [asyncio.run(judge.grade(pair)) for pair in pairs]
    assert [judgment.grade for judgment in graded] == [4, 3, 2, 1, 1, 1, 1]
    expected = [judgment.expected for judgment in graded]
    assert expected[:4] == [4, 3, 2, 1]
    assert all(MineSpec().violating_grade < each < 2 for each in expected[4:]), "unknown topics: it may be relevant"
    assert all(sum(judgment.distribution) == 1 for judgment in graded)


def test_a_query_matches_all_its_topics_and_types() -> None:
    def row(key: str, topic: str, kind: str) -> Document:
        return Document(key, f"{topic}, {kind}: {key}", topic=topic, type=kind)

    documents = [row("0", "gout", "causes"), row("1", "gout", "symptoms"), row("2", "asthma", "causes")]
    questions = [Question(d.id, "What is it?", topic=d.topic, type=d.type, relevant={d.id: 1}) for d in documents]
    others = [row(f"other {label}", *label.split()) for label in ("gout symptoms", "asthma causes", "asthma symptoms")]
    filling = [Question(f"f{n}", f"And {n}?", topic=f"t{n}", relevant={f"d{n}": 1}) for n in range(3)]
    answers = [row(f"d{n}", f"t{n}", "causes") for n in range(3)]
    prepared = prepare_tables([*documents, *questions, *others, *filling, *answers], PrepareSpec(), 0, "r")
    judge = open_judge(
        RunSpec(name="r", source=SampleSource()).main_judge, prepared.queries, prepared.passages, prepared.qrels
    )
    query = query_id("What is it?")
    graded = {
        passage["parents"][0]["document_id"]: asyncio.run(judge.grade(Pair(query, passage["passage_id"]))).grade
        for passage in prepared.passages.to_pylist()
    }
    assert graded == {
        **{"0": 4, "1": 4, "2": 4},
        **{"other gout symptoms": 3, "other asthma causes": 3, "other asthma symptoms": 2},
        **{"d0": 1, "d1": 1, "d2": 1},
    }


def test_shards_are_even_and_deterministic() -> None:
    counts = Counter(shard_of(f"query-{i}", 4) for i in range(4000))
    assert min(counts.values()) > 900
    assert shard_of("query-1", 4) == 3


# --- simulated errors -------------------------------------------------------------------------------------------------


def spec_with(**judge: Any) -> RunSpec:
    return RunSpec.model_validate({"name": "r", "source": {"kind": "sample"}, "judge": judge})


def write_confusion(path: Path, diagonal: int) -> str:
    rows = [[diagonal if i == j else 1 for j in range(4)] for i in range(4)]
    path.write_text(json.dumps({"confusion": rows, "finished": path.name}))
    return str(path)


def test_the_fingerprint_covers_everything_about_the_errors(tmp_path: Path) -> None:
    noise = {"kappa": 0.5, "bias": 0.0, "similarity": 0.0, "seed": 0}
    changes = [{}, {"kappa": 0.4}, {"bias": 0.1}, {"similarity": 0.1}, {"seed": 1}]
    files = [write_confusion(tmp_path / f"{n}.json", n) for n in (7, 8)]
    variants: list[dict[str, Any]] = [{}, *({"noise": noise | change} for change in changes)]
    specs = [spec_with(**judge) for judge in [*variants, *({"confusion": file} for file in files)]]
    fingerprints = [judges.fingerprint(spec.main_judge) for spec in specs]
    assert len(set(fingerprints)) == len(specs)
    assert fingerprints[0] == "labels-v3"
    empty = [schema.empty_table() for schema in (tables.QUERIES, tables.PASSAGES, tables.QRELS)]
    assert [open_judge(spec.main_judge, *empty).fingerprint for spec in specs] == fingerprints
    same = spec_with(confusion=write_confusion(tmp_path / "again.json", 7))
    assert judges.fingerprint(same.main_judge) == fingerprints[-2]
    assert [list(judges.external(spec)) for spec in specs] == [[]] * 6 + [["confusion"]] * 2
    assert judges.external(same)["confusion"]() == judges.external(specs[-2])["confusion"]()
    assert judges.external(specs[-1])["confusion"]() != judges.external(specs[-2])["confusion"]()


def test_errors_are_either_noise_or_a_confusion_matrix(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unset one of them"):
        LabelsJudgeSpec.model_validate({"noise": {"kappa": 0.5}, "confusion": "c.json"})
    with pytest.raises(UserError, match=r"judge.confusion: .*none.json cannot be read: No such file"):
        judges.fingerprint(spec_with(confusion=str(tmp_path / "none.json")).main_judge)
    assert spec_with(noise={"kappa": 0.5}).judge.label == "labels with simulated errors (noise of kappa 0.5)"


def test_a_confusion_matrix_decides_the_grades(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("source: {kind: sample}\njudge: {confusion: swapped.json}\n")
    swapped = [[0, 0, 0, 1], [0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0]]
    (tmp_path / "swapped.json").write_text(json.dumps({"confusion": swapped}))
    document = Document("d", "Gout is painful.", topic="gout", type="symptoms")
    others = [Document(f"d{n}", f"Illness {n} is rare.", topic=f"t{n}", type="causes") for n in range(3)]
    asked = [Question(f"q{n}", f"What is {n}?", topic=f"t{n}", relevant={f"d{n}": 1}) for n in range(3)]
    prepared = prepare_tables([document, *others, *asked], PrepareSpec(), 0, "r")
    judge = open_judge(load(tmp_path / "run.yaml").main_judge, prepared.queries, prepared.passages, prepared.qrels)
    query = query_id("What is 1?")
    for passage in prepared.passages.to_pylist():
        judgment = asyncio.run(judge.grade(Pair(query, passage["passage_id"])))
        is_own = passage["parents"][0]["document_id"] == "d1"
        assert (judgment.grade, judgment.distribution) == (1 if is_own else 4, None)


def test_noise_is_the_same_in_every_shard(run_file: Path, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))

    def judgments(shards: int) -> tuple[dict[Pair, int], list[dict[str, Any]]]:
        name = f"shards-{shards}"
        overrides = [f"name={name}", f"judge.shards={shards}", "judge.noise={kappa: 0.5, similarity: 0.5}"]
        run = open_run(load(run_file, overrides), store)
        for step in (Step("prepare"), Step("embed", 0, 0), Step("retrieve", 1)):
            run_step(run, step, NullProgress())
        steps = [Step("judge", 1, shard) for shard in range(shards)]
        summaries = [run_step(run, step, NullProgress())["summary"] for step in steps]
        files = sorted((tmp_path / f"store/runs/{name}/iterations/1/judgments").glob("shard-*.parquet"))
        rows = [row for file in files for row in pq.read_table(file).to_pylist()]
        assert {row["judge"] for row in rows} == {judges.fingerprint(run.spec.main_judge)}
        return {Pair(row["query_id"], row["passage_id"]): row["grade"] for row in rows}, summaries

    one, (summary,) = judgments(1)
    three, summaries = judgments(3)
    assert one == three
    assert summary["noise"]["kappa"] == pytest.approx(0.5, abs=0.02)
    assert all(each["noise"] == summary["noise"] for each in summaries)


def test_judging_with_noise_depends_on_the_first_candidates() -> None:
    noisy, exact = spec_with(noise={"kappa": 0.5}), spec_with()
    assert Step("retrieve", 1) in parents(noisy, Step("judge", 2, 0))
    assert Step("retrieve", 1) not in parents(exact, Step("judge", 2, 0))
