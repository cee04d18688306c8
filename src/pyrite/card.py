"""The model card of what a run hands over: what sentence-transformers' users know, and judge, mining and split."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pyrite.evaluation.scoring import METRICS
from pyrite.spec import RunSpec


def write(folder: Path, report: dict[str, Any], spec: RunSpec, split: dict[str, int]) -> None:
    """Write README.md into the model folder.

    Args:
        report: the run's report, as ``pyrite.report.data.build`` makes it.
        split: number of queries in train, val and test.
    """
    facts = {
        "chosen": f"{report['chosen']}, on validation",
        "judge": spec.judge.kind,
        "mining": f"rule {spec.mine.rule}, {spec.mine.negatives} negatives per example",
        "loss": spec.finetune.loss,
        "learning rate": f"{spec.finetune.learning_rate:g}",
        "batch size": spec.finetune.batch_size,
        "epochs per iteration": f"{spec.finetune.epochs:g}",
        "iterations": spec.iterations,
        "split": "by topic: " + ", ".join(f"{count} {name}" for name, count in split.items()),
        "seed": spec.seed,
    }
    environment = Environment(  # Markdown, not HTML: no escaping
        loader=PackageLoader("pyrite", "report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("card.md.j2").render(report=report, facts=facts, metrics=list(METRICS))
    (folder / "README.md").write_text(text, encoding="utf-8")
