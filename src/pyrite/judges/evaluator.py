"""The second judge, ``evaluate.judge``: whether its model is of another family than those of the training data."""

import re

from pyrite.spec import RunSpec

#: Words in names of models that say nothing about the family. Words of one or two letters are ignored, too.
_NO_FAMILY = (
    {"base", "chat", "coder", "distill", "distilled", "instruct", "judge", "local", "model", "thinking", "vision"}
    | {"large", "latest", "long", "medium", "mini", "moe", "nano", "preview", "pro", "small", "test", "turbo", "flash"}
    | {"awq", "gguf", "gptq", "int", "quantized"}
)


def family_notes(spec: RunSpec) -> list[str]:
    """Warnings if the name of evaluate.judge shares a word with a model that created the training data."""
    second = spec.evaluate.judge
    if second is None:
        return []
    judges = [judge for judge in (spec.main_judge, spec.first_judge) if judge]
    models = {judge.spec.server_model: f"{judge.section}.model" for judge in judges}
    models.setdefault(spec.generator_model, "generate.model")  # unset, it is the judge's model
    return [
        f"evaluate.judge {second.model} may be of the same family as {model} ({setting}), which judges or writes the "
        f"training data: both names contain {' and '.join(sorted(shared))}. Models of one family share mistakes, so "
        "the gain may be too high. Use a model of another family."
        for model, setting in models.items()
        if model and (shared := {model} & {second.model} or _family(model) & _family(second.model))
    ]


def _family(model: str) -> set[str]:
    """The words of a model's name that may name its family: Qwen/Qwen2.5-7B-Instruct gives {qwen}."""
    return {word for word in re.findall(r"[a-z]{3,}", model.lower()) if word not in _NO_FAMILY}
