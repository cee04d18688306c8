"""Complete runs on the sample corpus with a judge that cannot judge: SmolLM2-135M on a real vLLM server.

The probe says no-go, so `pyrite train` needs --force. The model that it then hands over must not be worse than the base
model, because validation chooses it by the answer key. In the second case, more than a quarter of the examples have a
wrong positive.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from real.vllm import VARYING, serving

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from bench_common import METRICS, Run  # noqa: E402
from bench_noise import judged_quality  # noqa: E402

pytestmark = pytest.mark.real


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


@pytest.mark.parametrize(
    ("template", "known_first"),
    [
        pytest.param((), True, id="the model's own template"),
        # Grades of 1 and 4 that depend on a prompt's length, and mining believes them: most positives are wrong.
        pytest.param((VARYING,), False, id="arbitrary positives"),
    ],
)
def test_a_no_go_judge_gives_no_worse_model(
    template: tuple[str, ...],
    known_first: bool,
    tmp_path: Path,
    pyrite: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    run_file = tmp_path / "wires.yaml"
    settings: dict[str, Any] = {
        "source": {"kind": "sample"},
        "iterations": 1,
        # Small, so that the test takes minutes.
        "prepare": {"max_train_queries": 30, "context": "none"},
        "judge": {"kind": "llm", "model": "judge", "prompt": "medical"},
        "mine": {"known_first": known_first},
        "finetune": {"learning_rate": 2e-4},
        "evaluate": {"blends": []},
    }
    folder = tmp_path / "store/runs/wires"
    with serving(*template) as url:
        run_file.write_text(yaml.safe_dump({**settings, "resources": {"judge_urls": [url]}}))
        probe = pyrite("probe", run_file, "--queries", 10, "--candidates", 6)
        assert probe.returncode == 3, probe.stdout + probe.stderr
        refused = pyrite("train", run_file)
        assert refused.returncode == 2, refused.stdout + refused.stderr
        message = " ".join(refused.stderr.split())
        failed = [check["name"] for check in read(folder / "probe/probe.json")["checks"] if not check["passed"]]
        assert "known above random" in failed
        assert "--force" in message
        assert all(name in message for name in failed)
        trained = pyrite("train", run_file, "--force", timeout=3000)
        assert trained.returncode == 0, trained.stdout + trained.stderr
    assert "judge failed its probe" in " ".join((trained.stdout + trained.stderr).split())
    report = read(folder / "report/report.json")
    assert sum(row["judgments"] for row in report["mining"]) > 250
    mined = judged_quality(Run(tmp_path / "store", "wires", None))
    print(mined)
    assert mined["examples"] > 0
    if known_first:
        assert mined["false_positives"] == 0, "the positives are known answers"
    else:
        assert mined["false_positives"] > 0.25
    assert {row["name"] for row in report["candidates"]} == {"base", "iteration-1"}
    assert all(row["val"] > 0 for row in report["candidates"])
    assert [row["name"] for row in report["candidates"] if row["chosen"]] == [report["chosen"]]
    compared = report["comparisons"]["iteration-1"]
    assert any(compared[metric]["difference"] != 0 for metric in METRICS), "training changed nothing"
    for metric in METRICS:
        values = report["means"]["test"]
        print(metric, {model: round(values[model][metric], 4) for model in values}, "chosen:", report["chosen"])
        print(compared[metric])
        if report["chosen"] != "base":
            assert compared[metric]["difference_interval"]["high"] >= 0, compared[metric]
    print(report["verdict"], probe.stdout, trained.stdout)
