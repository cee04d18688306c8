"""The run files that `pyrite init` writes."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

import pyrite
from pyrite.cli.data import Kind
from pyrite.config import load
from pyrite.sources import SOURCES
from pyrite.spec import RunSpec

EXAMPLES = Path(pyrite.__file__).parent / "examples"


@pytest.mark.parametrize("kind", SOURCES)
def test_each_source_has_a_valid_run_file(kind: str) -> None:
    assert kind in list(Kind)
    spec = load(EXAMPLES / f"{kind}.yaml")
    assert (spec.source.kind, spec.name) == (kind, kind)


def test_a_run_has_the_name_of_its_file(tmp_path: Path) -> None:
    """Regression: all run files that `pyrite init` wrote had one name, so a second run had "other settings"."""
    file = tmp_path / "My tickets_2.yaml"
    file.write_text((EXAMPLES / "csv.yaml").read_text(encoding="utf-8"))
    assert load(file).name == "my-tickets-2"


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda file: file.stem)
def test_commented_settings_are_valid(file: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    # A commented setting is indented under its section; prose starts at the margin or far to the right.
    uncommented = [line.replace("  # ", "  ", 1) if line.startswith("  # ") else line for line in lines]
    RunSpec.model_validate({"name": "unset", **yaml.safe_load("\n".join(uncommented))})


@pytest.mark.parametrize(
    ("given", "command"),
    [
        ([], "train src/pyrite/examples/sample.yaml"),
        (["RUN=my-run.yaml"], "train my-run.yaml"),
        (["RUN=my-run.yaml", "ON=cluster", "ITER=3"], "submit my-run.yaml iterations=3"),
    ],
)
def test_make_train_sets_iterations_only_with_iter(given: list[str], command: str) -> None:
    root = Path(__file__).resolve().parents[2]
    environment = {"PATH": os.environ["PATH"]}  # without the variables of a `make` that runs the tests
    result = subprocess.run(["make", "-n", "train", *given], cwd=root, env=environment, capture_output=True, text=True)
    assert result.stdout.splitlines()[-1].split()[1:] == command.split()
    assert RunSpec.model_validate(yaml.safe_load((EXAMPLES / "sample.yaml").read_text())).iterations == 2
