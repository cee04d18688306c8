"""`judge.calibration`: fitted by `pyrite calibrate`, applied to cached raw judgments, refused for another judge."""

import asyncio
import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from judges.stub_reranker import MODEL, StubReranker, as_logit, overlap
from pyrite.cli import app
from pyrite.config import load
from pyrite.errors import UserError
from pyrite.evaluation.isotonic import IsotonicMap
from pyrite.executors.step import open_run, run_step
from pyrite.judges import Judge, Judgment, Pair, external, fingerprint
from pyrite.judges.cache import JudgmentCache
from pyrite.judges.calibration import Calibration, final, final_table, read_calibration
from pyrite.judges.session import Block, JudgingSession
from pyrite.plan import Step
from pyrite.progress import NullProgress
from pyrite.store import Store, open_store
from pyrite.tables import JUDGMENTS


class TimidJudge(Judge):
    """A judge whose expected grade is 1 + (g - 1) / 4 for passage "g-...", and whose grade is always 1."""

    shareable = True
    fingerprint = "timid"
    in_flight = 1

    def __init__(self, calibration: Calibration | None):
        self.calibration = calibration
        self.graded: list[str] = []

    async def grade(self, pair: Pair) -> Judgment:
        self.graded.append(pair.passage_id)
        upper = (int(pair.passage_id[0]) - 1) / 12
        return Judgment(pair, 1, (1 - upper, 0.0, 0.0, upper))


TIMID = Calibration("timid", IsotonicMap((1.0, 1.75), (1.0, 4.0)), (1.5, 2.5, 3.5))
QUERIES_OF_SESSION = [("q", ["3-a", "2-b", "4-c", "1-d"])]


def judge_all(judge: Judge, store: Store, attempt: str) -> Any:
    session = JudgingSession(judge, JudgmentCache(store, judge, "r/1.0", attempt), 4, 0, NullProgress(), patience=2)

    async def run() -> Block:
        await session.load_cached({"q"})
        async with judge:
            block = await session.judge_all(QUERIES_OF_SESSION)
        await session.flush()
        return block

    return session.results(asyncio.run(run()))


def test_patience_and_results_use_calibrated_grades(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    plain = judge_all(TimidJudge(None), store, "first")
    assert plain["grade"].to_pylist() == [1, 1], "patience ends the query"
    assert set(plain["judge"].to_pylist()) == {"timid"}

    judge = TimidJudge(TIMID)
    table = judge_all(judge, store, "second")
    assert judge.graded == ["4-c", "1-d"], "the first two are cached"
    assert table["grade"].to_pylist() == [3, 2, 4, 1]
    assert table["expected"].to_pylist() == pytest.approx([3, 2, 4, 1])
    assert set(table["judge"].to_pylist()) == {f"timid-{TIMID.digest[:16]}"}
    cached = JudgmentCache(store, judge, "r/1.0", "third").read({"q"})
    assert set(cached["expected"].to_pylist()) == {1.0, 1.25, 1.5, 1.75}, "what is cached is not calibrated"
    assert set(cached["grade"].to_pylist()) == {1}


@given(st.lists(st.floats(-9, 9), min_size=1), st.lists(st.floats(-9, 9, width=32), min_size=2, unique=True))
def test_one_judgment_and_a_table_have_the_same_grades(scores: list[float], x: list[float]) -> None:
    y = [1 + 3 * i / (len(x) - 1) for i in range(len(x))]
    judge = TimidJudge(Calibration("timid", IsotonicMap(tuple(sorted(x)), tuple(y)), (1.3, 2.0, 3.9)))
    judgments = [Judgment(Pair("q", str(i)), 1, None, score=score) for i, score in enumerate(scores)]
    table = final_table(judge, pa.Table.from_pylist([each.row("timid") for each in judgments], JUDGMENTS))
    single = [final(judge, each) for each in judgments]
    assert table["grade"].to_pylist() == [each.grade for each in single]
    assert table["expected"].to_pylist() == pytest.approx([each.expected for each in single])
    ranked = sorted(single, key=lambda each: each.raw)
    assert [each.grade for each in ranked] == sorted(each.grade for each in single)


VALID = {"judge": {"fingerprint": "f"}, "calibration": {"x": [0, 1], "y": [1, 4], "cut_points": [1.5, 2.5, 3.5]}}


def changed(**calibration: Any) -> str:
    return json.dumps({**VALID, "calibration": {**VALID["calibration"], **calibration}})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps(VALID), r"fitted for another judge \(fingerprint f\) than m, prompt general .* to null, and run"),
        ("{", "is not JSON"),
        ("[]", "does not have the fingerprint of a judge and a calibration"),
        (json.dumps({**VALID, "calibration": None}), "has no calibration, because its pairs were too few or had all"),
        (changed(x=["a"]), "x, y and cut_points must be lists of numbers"),
        (changed(x=[1, 0]), "x must increase"),
        (changed(y=[0, 4]), "y must be from 1 to 4"),
        (changed(cut_points=[3, 2, 1]), "cut_points must be three increasing numbers"),
        (None, "cannot be read: No such file"),
    ],
)
@pytest.mark.parametrize("kind", ["llm", "cascade"])
def test_other_and_invalid_calibrations_fail_before_a_run(
    run_file: Path, tmp_path: Path, kind: str, content: str | None, message: str
) -> None:
    path = tmp_path / "calibration.json"
    if content is not None:
        path.write_text(content)
    place = "judge.first" if kind == "cascade" else "judge"
    servers = ["resources.judge_urls=[http://h:1]", "resources.first_judge_urls=[http://h:1]"]
    judge = [f"{place}={{kind: llm, model: m, calibration: {path}}}", *servers]
    second = ["judge.kind=cascade", "judge.second.kind=labels"] if kind == "cascade" else []
    with pytest.raises(UserError, match=message) as caught:
        open_run(load(run_file, [*judge, *second]), open_store(str(tmp_path / "store")))
    assert str(path) in str(caught.value)
    if content not in (None, json.dumps(VALID)):
        assert str(caught.value).endswith("; `pyrite calibrate RUN_FILE GRADED_FILE` writes such a file.")


def test_the_first_judge_of_a_cascade_is_calibrated_as_judge(run_file: Path, tmp_path: Path) -> None:
    (tmp_path / "calibration.json").write_text(json.dumps(VALID))
    first = f"{{kind: reranker, model: m, calibration: {tmp_path}/calibration.json}}"
    judge = f"judge={{kind: cascade, first: {first}, second: {{kind: labels}}}}"
    cascade = [judge, "resources.first_judge_urls=[http://h:1]"]
    spec = load(run_file, cascade)
    with pytest.raises(UserError, match=r"with the settings of judge\.first as judge, and its servers as resources"):
        open_run(spec, open_store(str(tmp_path / "store")))
    advised = load(run_file, [*cascade, "judge.kind=reranker", "judge.model=m"])
    assert spec.first_judge
    assert fingerprint(advised.main_judge) == fingerprint(spec.first_judge), "the file is valid for judge.first"


def truth(score: float) -> int:
    return 1 + (score > 0.25) + (score > 0.55) + (score > 0.85)


def test_a_run_uses_the_file_that_calibrate_wrote(run_file: Path, tmp_path: Path) -> None:
    words = [f"word{i}" for i in range(12)]
    people = tmp_path / "people.csv"
    with people.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["query", "passage", "grade"])
        for query in ("", *(f"again{n} " for n in range(11))):
            for count in range(13):
                writer.writerow([query + " ".join(words), query + " ".join(words[:count]) + " end", truth(count / 12)])
    store = str(tmp_path / "store")
    with StubReranker() as stub:
        stub.score = lambda query, document: as_logit(overlap(query, document))
        judge = ["judge.kind=reranker", f"judge.model={MODEL}", f"resources.judge_urls=[{stub.url}]", "judge.shards=1"]
        result = CliRunner().invoke(app, ["calibrate", str(run_file), str(people), "--store", store, *judge])
        assert result.exit_code == 0, result.output
        output = " ".join(result.output.split())
        assert "this judge needs the calibration" in output
        assert "To use it, set judge.calibration to this file:" in output
        path = result.output.rstrip().splitlines()[-1]
        assert json.loads(Path(path).read_text())["recalibration"]["after"] > 0.9

        again = [*judge, f"judge.calibration={path}"]
        result = CliRunner().invoke(app, ["calibrate", str(run_file), str(people), "--store", store, *again])
        assert "To use it" not in result.output
        assert "needs the calibration" not in result.output
        measured = json.loads(Path(result.output.rstrip().splitlines()[-1]).read_text())
        assert measured["kappa"] > 0.9, "of the calibrated judge, in a file of its own"
        assert json.loads(Path(path).read_text())["kappa"] < measured["kappa"]

        run = open_run(load(run_file, again), open_store(store))
        run.save_spec()
        steps = (Step("prepare"), Step("embed", 0, 0), Step("retrieve", 1), Step("judge", 1, 0))
        summary = [run_step(run, step, NullProgress()) for step in steps][-1]["summary"]
        requests = len(stub.pairs)
        rows = pq.read_table(tmp_path / "store/runs/small/iterations/1/judgments/shard-00000.parquet").to_pylist()
        text = {row["query_id"]: row["text"] for row in _rows(tmp_path, "queries/queries")}
        text |= {row["passage_id"]: row["text"] for row in _rows(tmp_path, "corpus/passages")}
        raw = {
            (row["query_id"], row["passage_id"]): overlap(text[row["query_id"]], text[row["passage_id"]])
            for row in rows
        }
        assert len(set(raw.values())) > 2
        for row in rows:
            share = raw[row["query_id"], row["passage_id"]]
            assert row["score"] == pytest.approx(as_logit(share), abs=1e-5)
            assert row["judge"] == summary["judge"] == f"{_fingerprint(path)}-{read_calibration(path).digest[:16]}"
            assert row["grade"] == truth(share)

        # Another calibration makes the step stale, but sends no request.
        other = tmp_path / "other.json"
        content = json.loads(Path(path).read_text())
        other.write_text(
            json.dumps({**content, "calibration": {**content["calibration"], "cut_points": [0.5, 0.5, 0.5]}})
        )
        changed = load(run_file, [*judge, f"judge.calibration={other}"])
        assert external(changed)["calibration"]() != external(run.spec)["calibration"]()
        again = run_step(open_run(changed, open_store(store)), Step("judge", 1, 0), NullProgress())["summary"]
        assert again["grades"] == {"1": 0, "2": 0, "3": 0, "4": summary["judged"]}
        assert again["judge"] != summary["judge"]
        assert len(stub.pairs) == requests


def _rows(tmp_path: Path, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(tmp_path / f"store/runs/small/{name}.parquet").to_pylist()
    return rows


def _fingerprint(path: str) -> str:
    return str(json.loads(Path(path).read_text())["judge"]["fingerprint"])
