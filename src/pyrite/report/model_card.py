"""The model card of the chosen model: usage, metrics, training settings, judge and data split."""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from pyrite.embedding.models import BUILTIN, window
from pyrite.evaluation.scoring import METRICS
from pyrite.evaluation.selection import BASE, parse_model_name
from pyrite.report.formatting import JUDGED_METRICS, ONE_RUN
from pyrite.report.leaks import about_title_pairs
from pyrite.spec import RunSpec

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


#: How passages were embedded, by the setting ``prepare.context``.
PASSAGE_FORMAT = {
    "title": "title, line break, text; the text alone if it has no title or starts with it",
    "none": "the text alone, without its title",
}


def template(name: str) -> Template:
    """The Markdown template ``name``, such as report/model_card.md.j2. It does not escape HTML."""
    environment = Environment(
        loader=PackageLoader("pyrite", "."), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name)


def write(
    folder: Path,
    report: dict[str, Any],
    spec: RunSpec,
    queries: pa.Table,
    judges: Iterable[str],
    model: "SentenceTransformer",
    base: Path,
) -> None:
    """Write the model card to ``README.md`` in the model folder.

    Args:
        report: the run's report, as returned by ``pyrite.report.data.build``.
        queries: QUERIES table with all splits.
        judges: fingerprints of the judges whose grades the run used.
        model: the loaded model of ``folder``.
        base: folder of the base model.
    """
    counts = Counter(queries["split"].to_pylist())
    split, unseen = _held_out(report["data"], queries)
    licence, length = _licence(base), window(model)
    facts = {
        "dimensions": model.get_embedding_dimension(),
        "smaller embeddings": _smaller(report),
        "maximum sequence length": "none" if length is None else f"{length} tokens",
        "similarity function": model.similarity_fn_name,
        "query prompt": _quoted(model.prompts.get("query")),
        "passage prompt": _quoted(model.prompts.get("document")),
        "passage format": PASSAGE_FORMAT[spec.prepare.context],
        "base model": f"{spec.model.base}, revision {spec.model.revision or 'not pinned'}",
        "licence": f"{licence} (from the base model's card)"
        if licence
        else "that of the base model, which its card does not name",
        "chosen candidate": f"{report['chosen']}, by validation score",
        "judge": f"{spec.judge.label}, fingerprint {', '.join(sorted(judges))}",
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
    text = template("report/model_card.md.j2").render(
        report=report,
        facts=facts,
        metrics=list(METRICS),
        judged=report["judged"],
        judged_metrics=JUDGED_METRICS,
        one_run=ONE_RUN,
        query_encoder=spec.finetune.train == "query" and report["chosen"] != BASE,
        licence=licence,
        unseen=unseen,
        title_pairs=about_title_pairs(_title_pairs(report, spec)),
        passage_format=PASSAGE_FORMAT[spec.prepare.context],
        example="a title\\nits text" if spec.prepare.context == "title" else "a passage",
        base_id=_hub_id(spec.model.base),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _smaller(report: dict[str, Any]) -> str:
    """The quality of each smaller form of the model's embeddings, and which dimensions were trained."""
    found = report["smaller"]
    if not found:
        return "not measured"
    chosen = (row["comparisons"][report["chosen"]]["mrr@5"]["other"] for row in found["rows"])
    values = (f"{row['label']} {value:.4f}" for row, value in zip(found["rows"], chosen, strict=True))
    dims = report["chosen"] != BASE and found["trained_dims"]
    trained = f"; training optimised {', '.join(map(str, dims))} dimensions too" if dims else ""
    return f"MRR@5 on test: {'; '.join(values)}{trained}"


def _title_pairs(report: dict[str, Any], spec: RunSpec) -> int:
    """Number of title pairs that the chosen model was trained on."""
    iteration = parse_model_name(report["chosen"])[0]
    first = iteration - 1 if spec.finetune.start == "base" else 0
    return sum(report["data"]["title_pairs"][first:iteration]) if iteration else 0


def _held_out(data: dict[str, Any], queries: pa.Table) -> tuple[str, str]:
    """How the queries were split, and how the test queries differ from the training queries."""
    split = "as given by the data set" if data["splits_given"] else "by topic"
    if all(queries["topic"].to_pylist()) and not data["shared_topics"]:
        return split, " of topics that are not in the training split"
    if data["splits_given"]:
        return split, " that are not in the training split; their topics may be"
    return "by query, because some have no topic", " that are not in the training split; their subjects may be"


def _quoted(prompt: str | None) -> str:
    return f"`{prompt}`" if prompt else "none"


def _hub_id(base: str) -> str | None:
    """The base model's id on the Hugging Face Hub, whose page then links to this model. None for a folder."""
    if base == BUILTIN:
        return "sentence-transformers/all-MiniLM-L6-v2"
    return base if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base) and not Path(base).exists() else None


def _licence(base: Path) -> str | None:
    """The licence in the front matter of the base model's card."""
    card = base / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    if not text.startswith("---\n"):
        return None
    try:
        front_matter = yaml.safe_load(text[4:].partition("\n---")[0])
    except yaml.YAMLError:
        return None
    licence = front_matter.get("license") if isinstance(front_matter, dict) else None
    return licence if isinstance(licence, str) else None
