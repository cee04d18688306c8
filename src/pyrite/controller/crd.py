"""The CustomResourceDefinition of TrainingRun, made from the RunSpec itself."""

from collections.abc import Callable
from typing import Any

from pyrite.controller.resource import GROUP, KIND, PLURAL, VERSION, Control, Status
from pyrite.spec import RunSpec

Schema = dict[str, Any]

_KEPT = (
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

#: Every name that the controller makes begins with the run's, and has 63 characters at most, a pod's index among them.
MOST_CHARACTERS = 32

#: What the RunSpec's own validators refuse, as CEL rules, by the place that they look at: a mistake is told at once.
RULES: dict[str, list[tuple[str, str]]] = {
    "": [
        (
            f"self.metadata.name.size() <= {MOST_CHARACTERS} && "
            "self.metadata.name.matches('^[a-z0-9]([a-z0-9-]*[a-z0-9])?$')",
            f"metadata.name: use 1 to {MOST_CHARACTERS} lower-case letters, digits and dashes",
        )
    ],
    "spec": [
        (
            "!has(self.finetune) || !has(self.finetune.loss) || self.finetune.loss != 'triplet' || "
            "!has(self.mine) || !has(self.mine.num_negatives) || self.mine.num_negatives == 1",
            "finetune.loss triplet takes one negative: set mine.num_negatives to 1",
        ),
        (
            "!has(self.generate) || (has(self.generate.model) && self.generate.model != '') || "
            "(has(self.judge) && has(self.judge.model) && self.judge.model != '')",
            "generate needs generate.model (or judge.model): the name under which the server serves it",
        ),
        (
            "!has(self.generate) || (has(self.judge) && has(self.judge.kind) && self.judge.kind != 'labels') || "
            "(has(self.generate.share_from_passages) && self.generate.share_from_passages >= 1.0)",
            "judge.kind labels cannot grade a question that is tied to no passage: set share_from_passages to 1",
        ),
    ],
    "spec.source": [
        (
            "self.kind in ['sample', 'huggingface'] || has(self.path)",
            "a source of this kind needs path: the file, folder or archive",
        ),
        ("self.kind != 'huggingface' || has(self.id)", "a huggingface source needs id"),
    ],
    "spec.judge": [
        (
            "!has(self.kind) || self.kind != 'llm' || (has(self.model) && self.model != '')",
            "kind llm needs model: the name under which the server serves it",
        )
    ],
    "spec.generate": [
        (
            "(has(self.min_words) ? self.min_words : 4) <= (has(self.max_words) ? self.max_words : 40)",
            "min_words is above max_words",
        )
    ],
    "spec.mine": [
        (
            "!has(self.negative_grade) || self.negative_grade < 3",
            "a passage graded 3 or above is relevant and can never be a negative: set negative_grade to 1 or 2",
        )
    ],
    "spec.prepare": [
        (
            "(has(self.min_chars) ? self.min_chars : 500) <= (has(self.max_chars) ? self.max_chars : 1000)",
            "min_chars is above max_chars",
        )
    ],
    "spec.prepare.split": [
        (
            "(has(self.train) ? self.train : 0.7) + (has(self.val) ? self.val : 0.15) + "
            "(has(self.test) ? self.test : 0.15) <= 1.000001 && "
            "(has(self.train) ? self.train : 0.7) + (has(self.val) ? self.val : 0.15) + "
            "(has(self.test) ? self.test : 0.15) >= 0.999999",
            "train, val and test must add up to 1",
        )
    ],
}

_COLUMNS = [
    ("Phase", "string", ".status.phase", 0),
    ("Step", "string", ".status.step", 0),
    ("Progress", "string", ".status.progress", 0),
    ("MRR@5", "string", ".status.bestMrr", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("Best", "string", ".status.best", 1),
    ("Cost", "string", ".status.cost", 1),
    ("Message", "string", ".status.message", 1),
]


def definition() -> dict[str, Any]:
    """The CustomResourceDefinition as a manifest."""
    spec = _structural(RunSpec.model_json_schema(by_alias=True))
    del spec["properties"]["name"]  # it is metadata.name
    spec["required"].remove("name")
    spec["properties"] |= _structural(Control.model_json_schema())["properties"]
    root = {
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": _structural(Status.model_json_schema(by_alias=True)),
        },
    }
    for place, rules in RULES.items():
        node: Schema = root
        for name in filter(None, place.split(".")):
            node = node["properties"][name]
        node["x-kubernetes-validations"] = [{"rule": rule, "message": message} for rule, message in rules]
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


def _structural(schema: Schema) -> Schema:
    """A JSON schema of pydantic's as Kubernetes takes it: no references, no unions, bounds as OpenAPI 3.0 has them."""
    definitions = schema.get("$defs", {})

    def convert(node: Schema) -> Schema:
        if "$ref" in node:
            return convert({**definitions[node["$ref"].rpartition("/")[2]], **_without(node, "$ref")})
        if "anyOf" in node:
            return _optional(node, convert)
        if "oneOf" in node:
            return _merged([convert(each) for each in node["oneOf"]], node)
        result = {name: node[name] for name in _KEPT if name in node}
        if "const" in node:
            result["enum"] = [node["const"]]
        for bound in ("Minimum", "Maximum"):
            if f"exclusive{bound}" in node:
                result |= {bound.lower(): node[f"exclusive{bound}"], f"exclusive{bound}": True}
        if node.get("default") not in (None, [], {}) and not isinstance(node["default"], dict):
            result["description"] = f"{node.get('description', '')} (default: {_written(node['default'])})".strip()
        if "properties" in node:
            result["properties"] = {name: convert(each) for name, each in node["properties"].items()}
            if node.get("required"):
                result["required"] = list(node["required"])
        if "items" in node:
            result["items"] = convert(node["items"])
        return result

    return convert(schema)


def _optional(node: Schema, convert: Callable[[Schema], Schema]) -> Schema:
    """A value or null."""
    (value,) = [each for each in node["anyOf"] if each.get("type") != "null"]
    return {**convert({**value, **_without(node, "anyOf")}), "nullable": True}


def _merged(kinds: list[Schema], union: Schema) -> Schema:
    """One object for a union that is told apart by ``kind``: all their fields; which of them a kind needs, CEL says."""
    properties: Schema = {}
    for kind in kinds:
        for name, each in kind["properties"].items():
            known = properties.setdefault(name, each)
            if name == "kind":
                known["enum"] = list(dict.fromkeys([*known["enum"], *each["enum"]]))
    properties["kind"].pop("description", None)
    return {
        "type": "object",
        "description": union["description"],
        **({} if "default" in union else {"required": ["kind"]}),
        "properties": properties,
    }


def _without(node: Schema, name: str) -> Schema:
    return {key: value for key, value in node.items() if key != name}


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
