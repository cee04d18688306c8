"""The noise rehearsal: conditions, shares of the gain, and complete runs with known and with hidden answers."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import yaml

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import bench_common  # noqa: E402
import bench_noise  # noqa: E402
from bench_common import Results  # noqa: E402
from bench_noise import DEFAULT, Condition  # noqa: E402


def row(mrr: float, base: float = 0.5, **more: Any) -> dict[str, Any]:
    return {"mrr@5": mrr, "dcg@5": 1.0, "base": {"mrr@5": base, "dcg@5": 1.0}, "chosen": "iteration-1", **more}


def test_every_condition_has_its_reference() -> None:
    found = bench_noise.conditions(["hidden", "known"], [0.5, 1.0], [0.0, 0.5])
    assert found[0] == DEFAULT
    assert len(found) == len(set(found)) == 6
    assert all(condition.reference in found for condition in found)
    assert len({condition.name for condition in found}) == 6
    assert Condition("hidden", 0.5, 0.5).name == "hidden-kappa-0.5-similarity-0.5"


def test_the_share_of_the_gain_is_that_of_the_means() -> None:
    hidden, noisy = Condition("hidden", 1.0, 0.0), Condition("hidden", 0.5, 0.0)
    by_condition = {
        DEFAULT: {(0, 0): row(0.75), (0, 1): row(0.75)},  # gains .5 and .5
        hidden: {(0, 0): row(0.7), (0, 1): row(0.6)},  # .4 and .2
        noisy: {(0, 0): row(0.6, kappa=0.4), (0, 1): row(0.49, kappa=0.6)},  # .2 and -.02
    }
    result = bench_noise.summarize(by_condition, noisy)
    assert result["gain"] == {"mrr@5": 0.09, "dcg@5": 0.0}
    assert result["gain_share"] == {
        "mrr@5": {"mean": 0.3, "worst": -0.1, "pairs": 2},
        "dcg@5": {"mean": None, "worst": None, "pairs": 2},
    }
    assert bench_noise.summarize({noisy: by_condition[noisy]}, noisy)["gain_share"]["mrr@5"]["mean"] is None
    assert result["gain_share_of_default"]["mrr@5"] == {"mean": 0.18, "worst": -0.04, "pairs": 2}
    assert result["below_base"] == {"mrr@5": 1, "dcg@5": 0}
    assert result["kappa"] == 0.5
    assert result["runs"] == 2


def test_finished_results_are_summarized_without_training(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "results.jsonl"
    monkeypatch.setattr(
        sys, "argv", ["bench_noise", str(run_file), "--seeds", "1", "--finished-only", "--results", str(path)]
    )
    assert bench_noise.main() == 2
    assert "no finished result" in capsys.readouterr().err
    options = Namespace(data=run_file, set=[], retention=None)
    results = Results(path, "bench_noise.py", bench_noise.WITHOUT_ANSWERS)
    measured = Condition("hidden", 0.5, 0.5), Condition("known", 0.5, 0.0), DEFAULT
    quality = dict.fromkeys(bench_noise.QUALITY, 0.5)
    for condition in measured:
        key = {"condition": condition.name, "split": 0, "seed": 0, **bench_common.data_key(options)}
        results.once(key, lambda: row(0.7, **quality))
    assert bench_noise.main() == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [Condition(**each["condition"]) for each in found.values()] == [DEFAULT, measured[1], measured[0]]
    assert found["known-kappa-0.5"]["gain_share"]["mrr@5"] == {"mean": 1.0, "worst": 1.0, "pairs": 1}
    assert found["hidden-kappa-0.5-similarity-0.5"]["gain_share"]["mrr@5"]["mean"] is None


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--similarity", "0.95"), "similarity: must be less than or equal to 0.894 (it is 0.95).\n"),
        (("--kappa", "2"), "known-kappa-2: kappa: must be less than or equal to 1 (it is 2.0).\n"),
    ],
)
def test_an_invalid_condition_fails_before_the_first_run(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    run_file: Path,
    option: tuple[str, str],
    message: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_noise", str(run_file), *option, "--answers", "known"])
    monkeypatch.setattr(bench_noise, "Rehearsal", None)  # nothing is trained
    assert bench_noise.main() == 2
    assert capsys.readouterr().err.endswith(message)


@pytest.mark.slow
def test_noise_benchmark_measures_and_resumes(run_file: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load(run_file.read_text())
    settings |= {"evaluate": {"blends": [], "resamples": 200}}
    run_file.write_text(yaml.safe_dump(settings))
    options = ["--seeds", "1", "--kappa", "0.5", "--similarity", "0.5", "--store", str(tmp_path / "store")]
    options += ["--results", str(tmp_path / "results.jsonl")]

    def measure() -> tuple[str, dict[str, Any]]:
        command = [sys.executable, SCRIPTS / "bench_noise.py", run_file, *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout, json.loads(done.stdout.splitlines()[-1])

    def summary(run: str, step: str) -> dict[str, Any]:
        manifest = tmp_path / f"store/split-0/runs/{run}-0/steps/{step}.json"
        found: dict[str, Any] = json.loads(manifest.read_text())["summary"]
        return found

    output, result = measure()
    noisy = {answers: f"{answers}-kappa-0.5-similarity-0.5" for answers in ("known", "hidden")}
    assert list(result) == ["known-kappa-1", noisy["known"], "hidden-kappa-1", noisy["hidden"]]
    for name, each in result.items():
        assert each["kappa"] == pytest.approx(1.0 if "kappa-1" in name else 0.5, abs=0.03)
        assert each["examples"] > 0
    assert result["known-kappa-1"]["false_negatives"] == result["hidden-kappa-1"]["false_positives"] == 0
    assert result[noisy["known"]]["false_positives"] == 0, "the positives are known answers"
    assert result[noisy["hidden"]]["false_positives"] > 0
    for answers, run in noisy.items():
        mined, retrieved = summary(run, "mine-1"), summary(run, "retrieve-1")
        assert (mined["judged_positives"] == 0) == (answers == "known")
        assert (mined["known_positives"] == 0) == (answers == "hidden")
        if answers == "hidden":
            assert retrieved["known_relevant_below_range_max"] == 0
    assert "false neg." in output
    resumed_output, resumed = measure()
    assert resumed == result
    assert "start finetune" not in resumed_output
