"""The tiny model as an export's source: with prompts, and a corpus of a few texts."""

import json
import shutil
from pathlib import Path

from pyrite.export.parity import Statistics
from pyrite.export.source import Source
from pyrite.export.texts import Corpus
from pyrite.spec import ModelSpec
from small_data import KINDS, TOPICS

PROMPTS = {"query": "search query: ", "document": "passage: "}


def prompted(tiny_model: Path, folder: Path) -> Path:
    """A copy of the tiny model with prompts, in ``folder``."""
    shutil.copytree(tiny_model, folder)
    change(folder / "config_sentence_transformers.json", prompts=PROMPTS)
    return folder


def change(path: Path, **settings: object) -> None:
    """Replace settings in a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def source(folder: Path) -> Source:
    """The model in ``folder``, with questions and answers of which each topic's first is relevant."""
    queries, passages, relevant = {}, {}, {}
    for topic in TOPICS:
        for kind, (question, answer) in KINDS.items():
            queries[f"q {topic} {kind}"] = question.format(topic)
            passages[f"p {topic} {kind}"] = f"{topic}\n{answer.format(topic, topic[:4], topic[-3:])}"
            relevant[f"q {topic} {kind}"] = {f"p {topic} {kind}": 1}
    clusters = {query: query.split()[1] for query in queries}
    return Source(
        "tiny",
        folder,
        ModelSpec(base=str(folder)),
        Corpus(queries, passages, relevant),
        60,
        "a test",
        Statistics(clusters=clusters),
    )
