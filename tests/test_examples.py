"""The run files that `pyrite init` writes."""

from pathlib import Path

import pytest
import yaml

import pyrite
from pyrite.spec import RunSpec

EXAMPLES = Path(pyrite.__file__).parent / "examples"


@pytest.mark.parametrize("kind", ["sample", "medquad", "jsonl", "parquet", "beir", "huggingface", "documents"])
def test_each_kind_of_source_has_a_valid_run_file(kind: str) -> None:
    text = (EXAMPLES / f"{kind}.yaml").read_text(encoding="utf-8")
    assert RunSpec.model_validate(yaml.safe_load(text)).source.kind == kind


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda file: file.stem)
def test_settings_that_are_commented_out_are_valid_too(file: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    # A commented setting stands indented under its section; prose starts at the margin or far to the right.
    opened = [line.replace("  # ", "  ", 1) if line.startswith("  # ") else line for line in lines]
    RunSpec.model_validate(yaml.safe_load("\n".join(opened)))
