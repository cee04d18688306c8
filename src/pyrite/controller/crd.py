"""The CustomResourceDefinition of TrainingRun, generated from the RunSpec."""

from typing import Any

from pyrite.controller.resource import GROUP, KIND, PLURAL, VERSION, Control, Status
from pyrite.spec import RunSpec

Schema = dict[str, Any]

#: Names of Jobs and pods start with the run's name and have at most 63 characters, including a pod's index.
MAX_NAME_LENGTH = 32

#: The only rule that is not in RunSpec's schema. If a run breaks a rule across fields, which only RunSpec's validators
#: check, the controller sets it to Failed with the validator's message.
_NAME_RULE = {
    "rule": f"self.metadata.name.size() <= {MAX_NAME_LENGTH} && "
    "self.metadata.name.matches('^[a-z0-9]([a-z0-9-]*[a-z0-9])?$')",
    "message": f"metadata.name: use 1 to {MAX_NAME_LENGTH} lower-case letters, digits and dashes",
}

_COPIED_KEYWORDS = (
    "type",
    "description",
    "enum",
    "minimum",
    "maximum",
    "minItems",
    "maxItems",
    "pattern",
    "minLength",
    "maxLength",
)

_COLUMNS = [
    ("Phase", "string", ".status.phase", 0),
    ("Step", "string", ".status.step", 0),
    ("Progress", "string", ".status.progress", 0),
    ("Probe", "string", ".status.probe.verdict", 0),
    ("MRR@5", "string", ".status.bestMrr", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("Best", "string", ".status.best", 1),
    ("Cost", "string", ".status.cost", 1),
    ("Message", "string", ".status.message", 1),
]


def definition() -> dict[str, Any]:
    """The CustomResourceDefinition as a manifest."""
    spec = structural(RunSpec.model_json_schema(by_alias=True))
    del spec["properties"]["name"]  # it is metadata.name
    spec["required"].remove("name")
    spec["properties"] |= structural(Control.model_json_schema())["properties"]
    root = {
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": structural(Status.model_json_schema(by_alias=True)),
        },
        "x-kubernetes-validations": [_NAME_RULE],
    }
    columns = [
        {"name": name, "type": kind, "jsonPath": path, **({"priority": priority} if priority else {})}
        for name, kind, path, priority in _COLUMNS
    ]
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": columns,
        "schema": {"openAPIV3Schema": {"description": "A run of Pyrite.", **root}},
    }
    names = {"kind": KIND, "listKind": f"{KIND}List", "plural": PLURAL, "singular": KIND.lower(), "shortNames": ["tr"]}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {"group": GROUP, "scope": "Namespaced", "names": names, "versions": [version]},
    }


def structural(schema: Schema) -> Schema:
    """A pydantic JSON schema as a Kubernetes structural schema: no references or unions, bounds as in OpenAPI 3.0."""
    definitions = schema.get("$defs", {})

    def convert(node: Schema, required: bool = True) -> Schema:
        if "$ref" in node:
            return convert({**definitions[node["$ref"].rpartition("/")[2]], **_without(node, "$ref")}, required)
        if "anyOf" in node:  # a value or null
            (value,) = [each for each in node["anyOf"] if each.get("type") != "null"]
            return {**convert({**value, **_without(node, "anyOf")}, required), "nullable": True}
        if "oneOf" in node:
            return _merge_kinds([convert(each) for each in node["oneOf"]], node.get("description"), required)
        result = {name: node[name] for name in _COPIED_KEYWORDS if name in node}
        if "const" in node:
            result["enum"] = [node["const"]]
        for bound in ("Minimum", "Maximum"):
            if f"exclusive{bound}" in node:
                result |= {bound.lower(): node[f"exclusive{bound}"], f"exclusive{bound}": True}
        if node.get("default") not in (None, "", [], {}) and not isinstance(node["default"], dict):
            result["description"] = f"{node.get('description', '')} (default: {_literal(node['default'])})".strip()
        if "properties" in node:
            names = node.get("required", [])
            result["properties"] = {name: convert(each, name in names) for name, each in node["properties"].items()}
            if names:
                result["required"] = list(names)
        if "items" in node:
            result["items"] = convert(node["items"])
        return result

    return convert(schema)


def _merge_kinds(kinds: list[Schema], description: str | None, required: bool) -> Schema:
    """One object with the fields of all members of a union that ``kind`` discriminates.

    A field may be required by one kind and unknown to another, so only ``kind`` can be required. An optional union has
    a default kind, so it does not require ``kind``.
    """
    choices = [f"{'/'.join(each['properties']['kind']['enum'])}: {each.get('description', '')}" for each in kinds]
    properties: Schema = {}
    for member in kinds:
        for name, each in member["properties"].items():
            merged = properties.setdefault(name, each)
            if name == "kind":
                merged["enum"] = list(dict.fromkeys([*merged["enum"], *each["enum"]]))
            elif each.get("nullable"):
                merged["nullable"] = True
    properties["kind"].pop("description", None)
    return {
        "type": "object",
        "description": description or " ".join(choices),
        **({"required": ["kind"]} if required else {}),
        "properties": properties,
    }


def _without(node: Schema, name: str) -> Schema:
    return {key: value for key, value in node.items() if key != name}


def _literal(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
