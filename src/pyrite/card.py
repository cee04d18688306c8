"""The model card of what a run hands over: what sentence-transformers' users know, and judge, mining and split."""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from pyrite.embedding.models import BUILTIN
from pyrite.evaluation.scoring import METRICS
from pyrite.spec import RunSpec

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def write(
    folder: Path,
    report: dict[str, Any],
    spec: RunSpec,
    queries: pa.Table,
    judges: Iterable[str],
    model: "SentenceTransformer",
    base: Path,
) -> None:
    """Write README.md into the model folder.

    Args:
        report: the run's report, as ``pyrite.report.data.build`` makes it.
        queries: QUERIES, all splits.
        judges: fingerprints of the judges whose grades the run used.
        model: what ``folder`` holds, loaded.
        base: folder of the base model.
    """
    counts = Counter(queries["split"].to_pylist())
    split, unseen = _held_out(report["data"], queries)
    judge = f"{spec.judge.label}, fingerprint {', '.join(sorted(judges))}"
    licence = _licence(base)
    facts = {
        "dimensions": model.get_embedding_dimension(),
        "maximum sequence length": f"{model.max_seq_length} tokens",
        "similarity function": model.similarity_fn_name,
        "prompt of queries": _quoted(model.prompts.get("query")),
        "prompt of passages": _quoted(model.prompts.get("document")),
        "base model": f"{spec.model.base}, revision {spec.model.revision or 'not pinned'}",
        "licence": f"{licence}, as the base model's card says"
        if licence
        else "the base model's, whose card names none",
        "chosen": f"{report['chosen']}, on validation",
        "judge": judge,
        "mining": f"rule {spec.mine.rule}, {spec.mine.num_negatives} negatives per example",
        "training examples": "; ".join(
            f"{row['examples']:,} in iteration {row['iteration']}" for row in report["loss"]
        ),
        "loss": spec.finetune.loss,
        "learning rate": f"{spec.finetune.learning_rate:g}",
        "warm-up": f"{spec.finetune.warmup:g} of the steps",
        "batch size": spec.finetune.batch_size,
        "epochs per iteration": f"{spec.finetune.epochs:g}",
        "iterations": spec.iterations,
        "split": f"{split}: " + ", ".join(f"{count} {name}" for name, count in counts.items()),
        "seed": spec.seed,
        "versions": ", ".join(f"{name} {number}" for name, number in report["versions"].items()),
    }
    environment = Environment(  # Markdown, not HTML: no escaping
        loader=PackageLoader("pyrite", "report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("card.md.j2").render(
        report=report,
        facts=facts,
        metrics=list(METRICS),
        licence=licence,
        unseen=unseen,
        base_id=_hub_id(spec.model.base),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _held_out(data: dict[str, Any], queries: pa.Table) -> tuple[str, str]:
    """How the queries were split, and what may be said of those of test: no more than the data bears out."""
    how = "as the data set assigns it" if data["splits_given"] else "by topic"
    if all(queries["topic"].to_pylist()) and not data["shared_topics"]:
        return how, " of topics that training never saw"
    if data["splits_given"]:
        return how, " that training never saw, some perhaps of topics that it did see"
    return "by question, for not all have a topic", " that training never saw, some perhaps of subjects that it did see"


def _quoted(prompt: str | None) -> str:
    return f"`{prompt}`" if prompt else "none"


def _hub_id(base: str) -> str | None:
    """What the hub calls the base model: its own page links to this one. None where it is a folder."""
    if base == BUILTIN:
        return "sentence-transformers/all-MiniLM-L6-v2"
    return base if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base) and not Path(base).exists() else None


def _licence(base: Path) -> str | None:
    """What the front matter of the base model's own card says."""
    card = base / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    if not text.startswith("---\n"):
        return None
    try:
        told = yaml.safe_load(text[4:].partition("\n---")[0])
    except yaml.YAMLError:
        return None
    licence = told.get("license") if isinstance(told, dict) else None
    return licence if isinstance(licence, str) else None
