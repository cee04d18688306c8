"""The noise rehearsal that calibrate and report quote."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from people.finished_run import write_run
from pyrite.cli import app
from pyrite.judges.base import graded_by
from pyrite.judges.calibration import Calibration
from pyrite.report import rehearsal
from pyrite.store.folder import FolderStore
from report.report_factory import make

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import bench_noise  # noqa: E402
import rehearsal_table  # noqa: E402
from bench_noise import Condition  # noqa: E402


def row(mrr: float, kappa: float) -> dict[str, Any]:
    """A finished run of bench_noise.py. The base model has .5 in both metrics."""
    base = {"mrr@5": 0.5, "dcg@5": 0.5}
    return {"mrr@5": mrr, "dcg@5": 0.9, "base": base, "chosen": "iteration-1", "kappa": kappa, "bias": 0.1}


RUNS = {
    Condition("known", 1.0, 0.0): [row(0.6, 1.0), row(0.6, 1.0)],
    Condition("known", 0.7, 0.0): [row(0.595, 0.71)],  # one run
    Condition("known", 0.5, 0.0): [row(0.6, 0.52), row(0.58, 0.52)],
    Condition("known", 0.5, 0.5): [row(0.59, 0.49), row(0.57, 0.49)],
    Condition("hidden", 1.0, 0.0): [row(0.6, 1.0), row(0.6, 1.0)],
    Condition("hidden", 0.5, 0.0): [row(0.63, 0.5), row(0.49, 0.5)],
}
BY_CONDITION = {condition: {(0, seed): each for seed, each in enumerate(rows)} for condition, rows in RUNS.items()}
RESULTS = {condition.name: bench_noise.summarize(BY_CONDITION, condition) for condition in BY_CONDITION}
# Its reference is not measured.
ALONE = Condition("hidden", 0.3, 0.0)
RESULTS[ALONE.name] = bench_noise.summarize({ALONE: {(0, 0): row(0.6, 0.3)}}, ALONE)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The table as the script writes it from a benchmark's output."""
    (tmp_path / "out").write_text("a table\n" + json.dumps(RESULTS) + "\n")
    file = tmp_path / "rehearsal.yaml"
    monkeypatch.setattr(sys, "argv", ["rehearsal_table", str(tmp_path / "out"), "--file", str(file)])
    assert rehearsal_table.main() == 0
    text = file.read_text()
    assert text.startswith("# Results of `make bench-noise`")
    monkeypatch.setattr(rehearsal, "table", lambda: yaml.safe_load(text))


@pytest.mark.usefixtures("measured")
def test_the_nearest_rehearsal_is_quoted_as_a_simulation() -> None:
    text = rehearsal.sentence(0.44, 0.2)
    assert text is not None
    assert "simulated kappa of .50, the nearest to .44" in text
    assert (
        "knows the answers, 90% (lowest of 2 runs 80%; similarity 0) or 80% (lowest of 2 runs 70%; similarity .5)"
        in text
    )
    assert "if it does not, 60% (lowest of 2 runs -10%; similarity 0)" in text
    assert "1 of 6 runs handed over a model below base" in text
    assert "a simulation on MedQuAD (NIDDK, NINDS)" in text
    assert "not a promise" in text
    assert "bias" not in text
    biased = rehearsal.sentence(0.68, -0.9)
    assert biased is not None
    assert "kappa of .70" in biased
    assert "95% (one run; similarity 0)" in biased
    assert "This judge's bias is -.90 grades, the simulated ones' +.10" in biased


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("kappa", [0.9, 0.3])
def test_a_judge_far_from_all_rehearsed_ones_is_not_compared(kappa: float) -> None:
    text = rehearsal.sentence(kappa, 0.0)
    assert text is not None
    assert f"no simulated judge has a kappa near {kappa:.2f}".replace("0.", ".") in text
    assert "(simulated: .50, .70)" in text
    assert "%" not in text


@pytest.mark.usefixtures("measured")
def test_report_quotes_the_rehearsal_of_its_calibrated_judge(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    name = write_run(store, make())
    manifest = {"step": "judge-1.0", "key": "", "outputs": [], "inputs": {}, "external": {}, "settings": {}}
    fitted = {"x": [1.0, 4.0], "y": [1.0, 4.0], "cut_points": [1.5, 2.5, 3.5]}

    def judged_by(judge: str) -> None:
        judged = {**manifest, "summary": {"judge": judge}}
        store.write(f"runs/{name}/steps/judge-1.0.json", json.dumps(judged).encode())

    judged_by("labels-v3")
    store.write(f"runs/{name}/report/report.html", b"")

    def report(**calibrations: tuple[str, float, str]) -> str:
        for file, (judge, kappa, finished) in calibrations.items():
            content = {
                "judge": {"fingerprint": judge},
                "kappa": kappa,
                "bias": 0.0,
                "finished": finished,
                "calibration": fitted,
                "recalibration": {"after": 0.72},
            }
            store.write(f"runs/{name}/calibration/{file}.json", json.dumps(content).encode())
        result = CliRunner().invoke(app, ["report", name, "--store", str(tmp_path / "store")])
        assert result.exit_code == 0, result.output
        return " ".join(result.stdout.split())

    assert "Rehearsal" not in report()
    assert "Rehearsal" not in report(other=("another judge", 0.5, "2026-11-29T03:00:00+00:00"))
    assert "the nearest to .50" in report(first=("labels-v3", 0.5, "2026-11-29T01:00:00+00:00"))
    assert "the nearest to .71" in report(second=("labels-v3", 0.71, "2026-11-29T02:00:00+00:00"))
    store.write(
        f"runs/{name}/steps/judge-1.0.json",
        json.dumps({**manifest, "summary": {"judge": "labels-v3", "first": {}}}).encode(),
    )
    assert "Rehearsal" not in report(), "the other judge of a cascade was not measured"
    judged_by("labels-v3-and-more")
    assert "Rehearsal" not in report()
    digest = Calibration.of({"judge": {"fingerprint": "labels-v3"}, "calibration": fitted}).digest
    judged_by(graded_by("labels-v3", digest))
    assert "the nearest to .72" in report(), "with the calibration"


def test_without_results_nothing_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "table", lambda: {"data": "", "pyrite": "", "rows": []})
    assert rehearsal.sentence(0.5, 0.0) is None


def test_the_packaged_table_can_be_quoted() -> None:
    rows = rehearsal.table()["rows"]
    assert (rehearsal.sentence(0.5, 0.0) is None) == (not rows)
