"""`pyrite grade`: serves the page, resumes, and prints the corrected gain."""

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from people.finished_run import write_run
from people.grading import grading, send
from pyrite.store import open_store
from report.report_factory import make
from report.test_data import with_base_chosen

Pyrite = Callable[..., subprocess.CompletedProcess[str]]


def test_grading_resumes_and_prints_the_corrected_gain(tmp_path: Path, pyrite: Pyrite) -> None:
    store, inputs = tmp_path / "store", make()
    run = write_run(open_store(str(store)), inputs)
    nothing = pyrite("grade", run, "--show")
    assert nothing.returncode == 2
    assert "no pair is graded yet" in nothing.stderr.replace("\n", " ")

    with grading(store, run, "--pairs", "40") as (process, url):
        for position in range(25):
            assert send(f"{url}pairs/{position}", {"grade": 1 + position % 4})["graded"] == position + 1
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
    file = store / f"runs/{run}/people/grades.qrels"
    assert f"25 of 40 pairs graded: {file}" in output
    lines = [line.split() for line in file.read_text().splitlines()]
    assert [line[3] for line in lines] == [str(position % 4) for position in range(25)]
    assert {line[0] for line in lines} <= {row["query_id"] for row in inputs.queries.to_pylist()}

    with grading(store, run) as (process, url):
        assert send(f"{url}state") == {"pairs": 40, "graded": 25, "next": 25}
        for position in range(25, 40):
            send(f"{url}pairs/{position}", {"grade": 1})
        send(f"{url}finish", {})
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
    assert "corrected by 40 grades" in output
    assert max(len(line) for line in output.splitlines() if "grades.qrels" not in line and "http" not in line) <= 80
    result = json.loads((file.parent / "result.json").read_text())
    interval = result["corrected"]["difference_interval"]
    assert interval["low"] < result["corrected"]["difference"] < interval["high"]

    shown = pyrite("grade", run, "--show")
    assert shown.returncode == 0, shown.stderr
    table = shown.stdout[shown.stdout.index("corrected by") :]
    assert table == output[output.index("corrected by") :]
    assert pyrite("grade", run).stdout == shown.stdout, "all pairs are graded: the page is not needed"


def test_runs_that_cannot_be_graded_exit_with_code_2(tmp_path: Path, pyrite: Pyrite) -> None:
    store = open_store(str(tmp_path / "store"))
    run = write_run(store, with_base_chosen(make()))
    base = pyrite("grade", run)
    assert base.returncode == 2
    assert "chose the base model" in base.stderr.replace("\n", " ")
    store.delete(f"runs/{run}/steps/evaluate.json")
    unfinished = pyrite("grade", run)
    assert unfinished.returncode == 2
    assert "has no report yet" in unfinished.stderr.replace("\n", " ")
