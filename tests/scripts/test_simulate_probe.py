"""The simulation of probes with judges that err."""

import sys
from pathlib import Path

import pytest

from pyrite.config import load
from pyrite.executors.step import open_run, run_step
from pyrite.plan import Step
from pyrite.progress import NullProgress
from pyrite.store import open_store

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import simulate_probe  # noqa: E402


def test_every_simulated_judge_has_shares_and_aucs(
    run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = open_run(load(run_file), open_store(str(tmp_path)))
    for step in (Step("prepare"), Step("embed", 0, 0), Step("retrieve", 1)):
        run_step(run, step, NullProgress())
    options = ["--queries", "2", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", ["simulate_probe", str(tmp_path / "runs/small"), *options])
    assert simulate_probe.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(simulate_probe.JUDGES)
    assert all("'auc similar': " in line for line in lines)
