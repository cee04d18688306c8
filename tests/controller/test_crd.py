"""The CRD is generated from the RunSpec, including unions that `kind` discriminates."""

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, Field

from pyrite.controller.crd import definition, structural


def test_crd_file_matches_the_run_spec() -> None:
    """`make lint` checks it too; here, so that `make test` fails after a change of the RunSpec."""
    path = Path(__file__).parents[2] / "charts/pyrite/crds/trainingruns.yaml"
    assert yaml.safe_load(path.read_text()) == definition()


class Plain(BaseModel):
    """No settings of its own."""

    kind: Literal["plain"] = "plain"
    size: int = 1


class Named(BaseModel):
    """Needs a name."""

    kind: Literal["named"] = "named"
    name: str
    size: int | None = 1


class Spec(BaseModel):
    needed: Annotated[Plain | Named, Field(discriminator="kind")]
    optional: Annotated[Plain | Named, Field(discriminator="kind")] = Plain()


def test_union_becomes_one_object_with_all_fields() -> None:
    """Only the union without a default needs `kind`; a field that one kind needs is not required."""
    properties = structural(Spec.model_json_schema())["properties"]
    for union in properties.values():
        assert union["properties"]["kind"] == {"type": "string", "enum": ["plain", "named"]}
        assert union["properties"]["name"] == {"type": "string"}
        assert union["properties"]["size"]["nullable"], "null is valid for one of the kinds"
        assert union["description"] == "plain: No settings of its own. named: Needs a name."
    assert properties["needed"]["required"] == ["kind"]
    assert "required" not in properties["optional"]
