"""`pyrite calibrate`: agreement with human grades from qrels or texts; errors name the row."""

import csv
import json
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pyrite.cli import app
from pyrite.errors import UserError
from pyrite.judge_eval import calibration
from pyrite.judge_eval.calibration import Item, measure
from pyrite.judges import Judge, Judgment, Pair
from stub_judge import MODEL, Stub, grade

Pyrite = Callable[..., subprocess.CompletedProcess[str]]


class BiasedJudge(Judge):
    """A judge with a known bias: for a passage that begins with its true grade g, it expects 1 + (g - 1) / 2."""

    fingerprint = "biased"
    in_flight = 4

    def __init__(self, passages: Any):
        self._texts = dict(zip(passages["passage_id"].to_pylist(), passages["text"].to_pylist(), strict=True))
        self.judged: list[str] = []

    async def grade(self, pair: Pair) -> Judgment:
        text = self._texts[pair.passage_id]
        self.judged.append(text)
        upper = (int(text[0]) - 1) / 6  # the probability of grade 4; that of grade 1 is the rest
        return Judgment(pair, 4 if upper > 0.5 else 1, (1 - upper, 0.0, 0.0, upper))


class ScatteredJudge(BiasedJudge):
    """A judge whose grades are right, and whose expected grades are random."""

    async def grade(self, pair: Pair) -> Judgment:
        text = self._texts[pair.passage_id]
        upper = random.Random(text).random()
        return Judgment(pair, int(text[0]), (1 - upper, 0.0, 0.0, upper))


@pytest.fixture
def calibrate(monkeypatch: pytest.MonkeyPatch, run_file: Path, tmp_path: Path) -> Callable[..., tuple[str, Any]]:
    """``pyrite calibrate`` in this process with a BiasedJudge: (output, judge)."""
    opened: list[BiasedJudge] = []

    def open_biased(spec: Any, queries: Any, passages: Any, qrels: Any) -> BiasedJudge:
        del spec, queries, qrels
        opened.append(kinds[-1](passages))
        return opened[-1]

    kinds: list[type[BiasedJudge]] = []

    def call(file: Path, *overrides: str, kind: type[BiasedJudge] = BiasedJudge) -> tuple[str, Any]:
        kinds.append(kind)
        monkeypatch.setattr(calibration, "open_judge", open_biased)
        judge = ("judge.kind=llm", "judge.model=biased")
        arguments = ["calibrate", str(run_file), str(file), *judge, "--store", str(tmp_path / "store"), *overrides]
        result = CliRunner().invoke(app, arguments, env={"COLUMNS": "80"})
        if result.exception:
            raise result.exception
        return result.output, opened[-1]

    return call


def test_labels_agree_with_qrels_by_ids_of_the_source(pyrite: Pyrite, run_file: Path, tmp_path: Path) -> None:
    qrels = tmp_path / "people.qrels"
    rows = [f"{number} 0 {number} 1\n{number} 0 {(number + 29) % 60 + 1} 0\n" for number in range(1, 31)]
    qrels.write_text("".join(rows) + "31 0 no-such-document 0\n")
    result = pyrite("calibrate", run_file, qrels)
    assert result.returncode == 0, result.stdout + result.stderr
    path = Path(result.stdout.rstrip().splitlines()[-1])
    assert path == tmp_path / "store/runs/small/calibration/people.qrels-labels-v3.json"
    content = json.loads(path.read_text())
    assert (content["n"], content["queries"], content["rows_unknown"]) == (60, 30, 1)
    assert content["scale"]["name"] == "0-1"
    assert content["kappa"] == content["kappa_relevant"] == content["auc"] == content["spearman"] == 1
    assert content["confusion"] == [[30, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 30]]
    assert content["auc_interval"]["low"] < 1
    assert "1 row skipped" in result.stdout

    # The run's own ids are accepted too.
    passages = pq.read_table(tmp_path / "store/runs/small/queries/qrels.parquet").to_pylist()[:5]
    qrels.write_text("".join(f"{row['query_id']} Q0 {row['passage_id']} 4\n" for row in passages))
    again = pyrite("calibrate", run_file, qrels)
    assert again.returncode == 0, again.stderr
    content = json.loads(path.read_text())
    assert content["confusion"][3][3] == content["n"] == 5
    assert content["kappa"] is None  # undefined if all grades are equal
    assert content["recalibration"] is None
    assert "Warning: too few pairs to draw conclusions" in again.stdout
    assert "cut points" not in again.stdout
    assert "too few" not in result.stdout


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_a_strict_judge_is_detected_with_better_cut_points(
    calibrate: Callable[..., tuple[str, Any]], tmp_path: Path, kind: str
) -> None:
    draw = random.Random(0)
    rows = []
    for number in range(40):
        grade = draw.choice((1, 2, 3, 4))
        query = f"What is thing {number // 4}?"
        rows.append({"query": query, "passage": f'{grade} "so" they, say\tof {number}', "grade": grade, "by": "me"})
    path = tmp_path / f"people.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="," if kind == "csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    output, judge = calibrate(path)
    assert sorted(judge.judged) == sorted(row["passage"] for row in rows)
    content = json.loads((tmp_path / f"store/runs/small/calibration/people.{kind}-biased.json").read_text())
    assert (content["n"], content["queries"], content["scale"]["name"]) == (40, 10, "1-4")
    assert content["spearman"] == content["auc"] == 1
    assert content["bias"] < -0.5
    assert all(one["truth"] > one["expected"] for one in content["reliability"] if one["expected"] > 1.01)
    recalibration = content["recalibration"]
    assert recalibration["before"] == content["kappa"] < 0.5
    assert recalibration["after"] == 1
    assert recalibration["gain"]["low"] > 0
    assert recalibration["cut_points"] == [1.5, 2.5, 3.5], "on the calibrated expected grade"
    assert (content["calibration"]["x"], content["calibration"]["y"]) == ([1, 1.5, 2, 2.5], [1, 2, 3, 4])
    assert "Recalibration would help" in " ".join(output.split())
    # The file has texts, so the run need not be prepared.
    assert not (tmp_path / "store/runs/small/steps").exists()


def test_a_recalibration_that_cannot_help_is_not_recommended(calibrate: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "people.csv"
    passages = "".join(f"q{n // 4},{1 + n % 4} of {n},{1 + n % 4}\n" for n in range(80))
    path.write_text("query,passage,grade\n" + passages)
    output = " ".join(calibrate(path, kind=ScatteredJudge)[0].split())
    assert "Recalibration makes the grades worse: do not use it." in output
    assert "To use it" not in output

    path.write_text("query,passage,grade\n" + "".join(f"q{n // 4},{1 + n % 4} of {n},4\n" for n in range(80)))
    output = " ".join(calibrate(path)[0].split())
    assert "all human grades are equal, so there is no calibration to write" in output
    assert "To use it" not in output
    content = json.loads((tmp_path / "store/runs/small/calibration/people.csv-biased.json").read_text())
    assert content["calibration"] is None


def test_a_document_counts_as_its_best_passage_if_all_graded() -> None:
    items = [
        Item("q1", ("a", "b"), 4),
        Item("q1", ("c",), 1),
        Item("q2", ("d", "e"), 3),
        Item("q2", ("f",), 1),
    ]
    grades = {"a": 1, "b": 4, "c": 1, "d": 3, "f": 2}  # e is missing
    query_of = {passage: item.query_id for item in items for passage in item.passage_ids}
    pairs = {Pair(query_of[passage], passage): grade for passage, grade in grades.items()}
    content = measure(items, {pair: Judgment(pair, grade, None) for pair, grade in pairs.items()}, 0)
    assert content["n"] == 3
    assert content["confusion"] == [[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]


BAD = {
    "fields.qrels": ("1 0 2 1\n1 0 3\n", r"fields\.qrels:2: the number of fields is 3 instead of 4"),
    "grade.qrels": ("1 0 2 1\n1 0 3 high\n", r"grade\.qrels:2: grade 'high'"),
    "junk.qrels": ("1 0 2 1\n\n1 0 3 -2\n", r"junk\.qrels:1: no scale has both grade 1 and grade -2"),
    "seven.qrels": ("1 0 2 7\n1 0 3 7\n", r"seven\.qrels:1: no scale has grade 7\."),
    "five.qrels": ("1 0 2 0\n1 0 3 5\n", r"five\.qrels:2: no scale has both grade 5 and grade 0"),
    "doubt.qrels": ("1 0 2 1\n1 0 3 2\n", r"doubt\.qrels: its grades are 1, 2.*--scale"),
    "twice.qrels": ("1 0 2 1\n1 0 2 0\n", r"twice\.qrels:2: this pair has grade 0 here and 1 at .*twice\.qrels:1"),
    "empty.qrels": ("\n", r"empty\.qrels: no graded pair"),
    "strange.qrels": ("x 0 y 0\n", r"strange\.qrels:1: query 'x' with document 'y' is not in this run"),
    "column.csv": ("query,passage,grades\na,b,1\n", r"column\.csv: no column 'grade'\. Did you mean 'grades'"),
    "short.csv": ('query,passage,grade\n"a\nb",c,1\nd,e\n', r"short\.csv:4: the number of fields differs"),
    "quote.csv": ('query,passage,grade\na,"b"c,1\n', r"quote\.csv:2: not CSV"),
    "blank.csv": ("query,passage,grade\na, ,1\n", r"blank\.csv:2: 'passage' is empty"),
    "half.tsv": ("query\tpassage\tgrade\na\tb\t2.5\n", r"half\.tsv:2: grade '2\.5' is not an integer"),
    "json.jsonl": ('{"query": "a", "passage": "b", "grade": 1}\n{"query"\n', r"json\.jsonl:2: not JSON"),
    "surrogate.jsonl": (
        '{"query": "a", "passage": "\\ud83d", "grade": 1}\n',
        r"surrogate\.jsonl:1: 'passage' has an invalid Unicode character",
    ),
    "true.jsonl": ('{"query": "a", "passage": "b", "grade": true}\n', r"true\.jsonl:1: grade True"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_name_the_line_of_a_bad_row(calibrate: Callable[..., Any], tmp_path: Path, name: str) -> None:
    text, message = BAD[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        calibrate(tmp_path / name)
    assert not (tmp_path / "store/runs/small/calibration").exists()


def test_wrong_encoding_missing_file_and_scale_are_reported(calibrate: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "latin.csv"
    path.write_bytes("query,passage,grade\ncafé,b,1\n".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        calibrate(path)
    with pytest.raises(UserError, match="no such file"):
        calibrate(tmp_path / "none.csv")
    path.write_text("query,passage,grade\na,1 b,1\na,2 c,2\n")
    with pytest.raises(UserError, match=r"latin\.csv:3: grade 2 is not on the scale 0-1"):
        calibrate(path, "--scale", "0-1")
    output, _ = calibrate(path, "--scale", "0-3")
    assert "0 to 3, each read as one more" in output


def test_texts_are_judged_once_and_cached(pyrite: Pyrite, run_file: Path, tmp_path: Path) -> None:
    pairs = [(f"Why {number % 5}?", f"Because,\nas {number} says.") for number in range(20)]
    path = tmp_path / "people.jsonl"
    rows = [{"query": pair[0], "passage": pair[1], "grade": grade(pair)} for pair in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Stub() as server:
        judge = ("judge.kind=llm", f"judge.model={MODEL}", f"resources.judge_urls=[{server.url}]")
        result = pyrite("calibrate", run_file, path, *judge)
        assert result.returncode == 0, result.stdout + result.stderr
        server.down()
        again = pyrite("calibrate", run_file, path, *judge)
        assert again.returncode == 0, again.stderr
        assert all(server.graded[pair] == 1 for pair in pairs), "no pair is judged twice"
    content = json.loads(Path(result.stdout.rstrip().splitlines()[-1]).read_text())
    assert content["n"] == 20
    assert content["kappa"] == 1
    assert content["calibration_error"] > 0  # expected grades are not integers: the distribution is used


def test_judgments_of_probe_and_calibrate_are_cached(pyrite: Pyrite, run_file: Path, tmp_path: Path) -> None:
    with Stub() as server:
        judge = ("judge.kind=llm", f"judge.model={MODEL}", f"resources.judge_urls=[{server.url}]")
        assert pyrite("probe", run_file, *judge).returncode == 3
        probed = len(server.graded)
        folder = tmp_path / "store/runs/small/queries"
        split = {row["query_id"]: row["split"] for row in pq.read_table(folder / "queries.parquet").to_pylist()}
        qrels = pq.read_table(folder / "qrels.parquet").to_pylist()
        path = tmp_path / "people.qrels"
        path.write_text("".join(f"{row['query_id']} 0 {row['passage_id']} {n % 2}\n" for n, row in enumerate(qrels)))
        for _ in range(2):
            result = pyrite("calibrate", run_file, path, *judge)
            assert result.returncode == 0, result.stderr
            assert set(server.graded.values()) == {1}, "no pair is judged twice"
            server.down()  # the second time needs no server
    assert len(server.graded) - probed >= sum(split[row["query_id"]] != "train" for row in qrels) > 0
    content = json.loads(Path(result.stdout.rstrip().splitlines()[-1]).read_text())
    assert content["n"] == content["known"] == len(qrels)


@pytest.mark.parametrize("verb", ["probe", "calibrate"])
def test_judgments_before_a_failure_are_cached(pyrite: Pyrite, run_file: Path, tmp_path: Path, verb: str) -> None:
    assert pyrite("prepare", run_file).returncode == 0
    qrels = pq.read_table(tmp_path / "store/runs/small/queries/qrels.parquet").to_pylist()
    path = tmp_path / "people.qrels"
    path.write_text("".join(f"{row['query_id']} 0 {row['passage_id']} {n % 2}\n" for n, row in enumerate(qrels)))
    with Stub() as server:
        server.fault = lambda number, _pair: (401, {}) if number > 30 else None
        judge = ("judge.kind=llm", f"judge.model={MODEL}", f"resources.judge_urls=[{server.url}]")
        result = pyrite(verb, run_file, *([path] if verb == "calibrate" else []), *judge)
        assert result.returncode == 2, result.stderr
        assert server.faults["401"]
    cached = [pq.read_table(part) for part in (tmp_path / "store/judgments").rglob("*.parquet")]
    assert sum(table.num_rows for table in cached) == server.graded.total() == 30


def test_labels_cannot_judge_texts(pyrite: Pyrite, run_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "people.csv"
    path.write_text("query,passage,grade\na,b,1\na,c,4\n")
    result = pyrite("calibrate", run_file, path)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "judge.kind labels grades only" in result.stderr.replace("\n", " ")


def test_a_server_that_rejects_every_pair_is_the_users_mistake(pyrite: Pyrite, run_file: Path) -> None:
    with Stub() as server:
        server.fault = lambda _number, _pair: (400, {})
        judge = ("judge.kind=llm", f"judge.model={MODEL}", f"resources.judge_urls=[{server.url}]")
        assert pyrite("prepare", run_file).returncode == 0
        result = pyrite("probe", run_file, *judge)
        assert server.faults["400"] >= 20
    assert result.returncode == 2, result.stderr


@pytest.mark.parametrize("verb", ["probe", "calibrate"])
def test_noise_of_a_run_is_refused_outside_of_runs(pyrite: Pyrite, run_file: Path, tmp_path: Path, verb: str) -> None:
    path = tmp_path / "people.qrels"
    path.write_text("q 0 p 0\nq 0 r 1\n")
    result = pyrite(verb, run_file, *([path] if verb == "calibrate" else []), "judge.noise={kappa: 0.5}")
    assert result.returncode == 2
    assert "judge.noise needs the candidates of iteration 1" in " ".join(result.stderr.split())
    assert not (tmp_path / "store").exists(), "refused before any work"


def test_a_pair_that_stays_without_a_grade_does_not_stop_calibrate(
    pyrite: Pyrite, run_file: Path, tmp_path: Path
) -> None:
    """Regression: the second call judged only the missing pair, and failed because it graded none of its pairs."""
    path = tmp_path / "people.csv"
    path.write_text("query,passage,grade\n" + "".join(f"q{n % 3},passage {n},{1 + n % 4}\n" for n in range(12)))
    with Stub() as stub:
        stub.fault = lambda _number, pair: "banana" if pair[1] == "passage 7" else None
        judge = ("judge.kind=llm", f"judge.model={MODEL}", f"resources.judge_urls=[{stub.url}]")
        for _ in range(2):
            result = pyrite("calibrate", run_file, path, *judge)
            assert result.returncode == 0, result.stderr
        assert stub.faults["banana"] == 6
    assert "1 pair missing: the judge did not return a grade" in result.stdout
