"""What the Python programs of runtimes share. It imports numpy and the standard library only."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

#: Embeds one batch: texts without their prompt, and the name of the prompt. Returns shape (texts, dims).
Embed = Callable[[Sequence[str], str], Floats]

#: Seconds for which the speed is measured with each batch size.
_SPEED_SECONDS = 1.0


def run(start: Callable[[Path, str], Embed], packages: Sequence[str], notes: Sequence[str] = ()) -> None:
    """Run a program: read the request, embed its texts, measure the speed, and write the result.

    Args:
        start: loads the model from the export folder and the file to load in it.
        packages: the packages whose versions the result has.
        notes: sentences for the user.
    """
    folder, asked, output = (Path(argument) for argument in sys.argv[1:4])
    request = json.loads(asked.read_text(encoding="utf-8"))
    embed = start(folder, request["file"])
    vectors = _embed_all(embed, request["texts"], request["kinds"], request["batch_size"])
    vectors.astype("<f4").tofile(output / "vectors.f32")
    sizes = (1, request["batch_size"])
    result = {
        "dims": vectors.shape[1],
        "texts_per_second": {str(size): texts_per_second(embed, request["speed_texts"], size) for size in sizes},
        "versions": {package: version(package) for package in packages},
        "notes": list(notes),
    }
    (output / "result.json").write_text(json.dumps(result), encoding="utf-8")


def _embed_all(embed: Embed, texts: Sequence[str], kinds: Sequence[str], batch_size: int) -> Floats:
    """The embeddings of ``texts``. A batch has texts of one kind only."""
    rows: list[Floats] = []
    order: list[int] = []
    for kind in sorted(set(kinds)):
        own = [position for position, each in enumerate(kinds) if each == kind]
        for first in range(0, len(own), batch_size):
            batch = own[first : first + batch_size]
            rows.append(np.asarray(embed([texts[position] for position in batch], kind), dtype=np.float32))
            order += batch
    vectors = np.concatenate(rows)
    result = np.empty_like(vectors)
    result[order] = vectors
    return result


def texts_per_second(embed: Embed, texts: Sequence[str], batch_size: int) -> float:
    """The number of texts that are embedded per second, with ``batch_size`` of them in a batch."""
    batches = [texts[first : first + batch_size] for first in range(0, len(texts), batch_size)]
    embed(batches[0], "document")  # the first call also prepares the runtime
    done, start = 0, time.perf_counter()
    while True:
        for batch in batches:
            embed(batch, "document")
            done += len(batch)
            if (seconds := time.perf_counter() - start) >= _SPEED_SECONDS:
                return done / seconds


def read_json(path: Path) -> Any:
    """The content of a JSON file; an empty dict if there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def prompts(folder: Path) -> dict[str, str]:
    """The prompt of each kind of text, from config_sentence_transformers.json."""
    saved = read_json(folder / "config_sentence_transformers.json").get("prompts") or {}
    return {kind: saved.get(kind) or "" for kind in ("query", "document")}


def window(folder: Path) -> int | None:
    """The maximum number of tokens of a text with its prompt, from sentence_bert_config.json; None without maximum."""
    length = read_json(folder / "sentence_bert_config.json").get("max_seq_length")
    return None if length is None else int(length)


def modules(folder: Path) -> list[tuple[str, Any]]:
    """The class name and the configuration of each module after the transformer, in their order."""
    listed = read_json(folder / "modules.json")
    named = [(each["type"].rpartition(".")[2], folder / each["path"] / "config.json") for each in listed]
    return [(name, read_json(path)) for name, path in named[1:]]


def pool(tokens: Floats, mask: npt.NDArray[np.int64], configurations: list[tuple[str, Any]]) -> Floats:
    """The embeddings of texts from those of their tokens.

    Args:
        tokens: shape (texts, tokens, dims).
        mask: 1 for tokens of the text and 0 for padding on the right, shape (texts, tokens).
        configurations: the modules to apply, as ``modules`` returns them.

    Raises:
        ValueError: a module is not supported.
    """
    vectors: Floats | None = None
    for name, settings in configurations:
        if name == "Pooling" and vectors is None:
            vectors = _pool(tokens, mask, settings)
        elif name == "Normalize" and vectors is not None:
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        else:
            raise ValueError(f"the module {name} is not supported")
    if vectors is None:
        raise ValueError("modules.json has no Pooling module")
    return vectors


def _pool(tokens: Floats, mask: npt.NDArray[np.int64], settings: dict[str, Any]) -> Floats:
    chosen = [
        name.removeprefix("pooling_mode_") for name, on in settings.items() if name.startswith("pooling_mode_") and on
    ]
    if chosen == ["mean_tokens"]:
        weights = mask[:, :, None].astype(np.float32)
        means: Floats = (tokens * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1e-9)
        return means
    if chosen == ["cls_token"]:
        return tokens[:, 0]
    if chosen == ["lasttoken"]:
        last: Floats = tokens[np.arange(len(tokens)), mask.sum(axis=1) - 1]
        return last
    raise ValueError(f"the pooling {' and '.join(chosen) or settings} is not supported")
