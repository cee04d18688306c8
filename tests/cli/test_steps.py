"""Every stage has a verb of its own name, generated from its entry in STAGES."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from pyrite.cli import app, inspect, steps
from pyrite.plan import STAGES, StageInfo, Step, chain
from pyrite.spec import RunSpec

JOBS = Path(__file__).parents[2] / "jobs"


@pytest.mark.parametrize("stage", STAGES)
def test_the_job_of_a_stage_calls_its_verb(stage: str) -> None:
    job = yaml.safe_load((JOBS / f"{stage}.yaml").read_text())
    verb, *arguments = job["spec"]["template"]["spec"]["containers"][0]["args"]
    assert verb == stage
    arguments = ["0" if argument == "$(JOB_COMPLETION_INDEX)" else argument for argument in arguments]
    root: Any = typer.main.get_command(app)
    parsed = root.commands[stage].make_context(stage, arguments).params
    assert ("iteration" in parsed) == (STAGES[stage].first_iteration is not None)
    assert ("shard" in parsed) == (STAGES[stage].shards is not None)


def _count_words(context: Any) -> dict[str, Any]:
    """The ``run`` function of a stage that counts the words of the passages."""
    import pyarrow.parquet as pq

    texts = pq.read_table(context.input("corpus/passages.parquet"))["text"].to_pylist()
    words = sum(len(text.split()) for text in texts)
    context.output(f"iterations/{context.iteration}/words-{context.step.shard}.json").write_text(json.dumps(words))
    return {"words": words}


@pytest.fixture
def words_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage "words", registered like any stage: an entry in STAGES and a module with ``run``."""
    module = ModuleType("pyrite.stages.words")
    module.run = _count_words  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyrite.stages.words", module)
    info = StageInfo(
        help="Count the words.",
        settings=("seed",),
        parents=lambda _spec, _iteration: [Step("prepare")],
        headline=lambda summary: f"{summary['words']:,} words",
        first_iteration=1,
        shards=lambda _spec: 2,
    )
    monkeypatch.setitem(STAGES, "words", info)


@pytest.mark.usefixtures("words_stage")
def test_a_new_stage_needs_only_its_entry_and_module(
    questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "small.yaml").write_text(f"source: {{kind: jsonl, path: {questions}}}\niterations: 1\n")
    cli = typer.Typer()
    for module in (steps, inspect):
        module.register(cli)

    def call(verb: str, *options: str) -> tuple[int, str]:
        arguments = [verb, str(tmp_path / "small.yaml"), *options, "--store", str(tmp_path / "store")]
        result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
        return result.exit_code, result.output

    assert "Count the words." in CliRunner().invoke(cli, ["--help"]).output
    assert call("words", "-i", "0", "--shard", "0")[0] == 2, "the first iteration is 1"
    assert call("words", "-i", "1")[0] == 2, "the shard is required"
    assert call("prepare")[0] == 0
    code, output = call("words", "-i", "1", "--shard", "1")
    assert code == 0, output
    manifest = json.loads((tmp_path / "store/runs/small/steps/words-1.1.json").read_text())
    assert f"{manifest['summary']['words']:,} words" in output
    assert [entry["key"] for entry in manifest["outputs"]] == ["iterations/1/words-1.json"]
    assert f"{manifest['summary']['words']:,} words" in call("status")[1]

    spec = RunSpec.model_validate({"name": "small", "source": {"kind": "sample"}, "iterations": 1})
    assert chain(spec)[-2:] == [Step("words", 1, 0), Step("words", 1, 1)]
