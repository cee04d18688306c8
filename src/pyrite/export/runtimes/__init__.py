"""The runtimes that check an export: standalone programs that embed texts with the exported folder, as a user would.

A program is called as ``PROGRAM FOLDER REQUEST.json OUTPUT_FOLDER``. It imports its runtime, numpy, and at most
``standalone`` beside it, but never Pyrite, because it may run in another virtual environment or in Node. It takes all
settings from FOLDER: prompts, pooling, normalisation and window. A wrong setting there is then seen in the embeddings.

REQUEST.json is a ``Request``. The program writes to OUTPUT_FOLDER, which exists and is empty:

- vectors.f32: the embeddings of ``texts`` as little-endian float32, row by row.
- result.json: ``{"dims": 384, "texts_per_second": {"1": 50.1, "32": 123.4}, "versions": {"onnxruntime": "1.32.0"},
  "notes": []}``. The speed is that of ``speed_texts`` with 1 text and with ``batch_size`` texts in a batch.

If it fails, its exit code is not 0, and the last line of its standard error is the reason.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from pyrite.errors import UserError
from pyrite.export.formats import INSTALL, PLAIN

#: The folder with the environments of further runtimes, which `make runtimes` creates.
RUNTIMES_FOLDER = "PYRITE_RUNTIMES"

#: Where a runtime is installed: in Pyrite's own environment, or in one of its own.
Place = Literal["own", "python", "node", "vllm"]

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Request:
    """What a program embeds.

    Attributes:
        file: the format's file or folder that a user would name to the runtime, relative to the export folder.
        texts: the texts to embed, without prompts.
        kinds: "query" or "document" for each text: the name of its prompt.
        batch_size: number of texts in a batch, in the given order.
        speed_texts: texts to measure the speed with, as passages; at least ``batch_size``.
    """

    file: str
    texts: Sequence[str]
    kinds: Sequence[str]
    batch_size: int
    speed_texts: Sequence[str]


@dataclass(frozen=True, eq=False)
class Result:
    """What a program returned.

    Attributes:
        vectors: the embeddings, shape (texts, dims).
        texts_per_second: the speed by batch size.
        versions: the version of each package that matters.
        notes: sentences for the user.
    """

    vectors: Floats
    texts_per_second: dict[int, float]
    versions: dict[str, str]
    notes: list[str]


@dataclass(frozen=True)
class Runtime:
    """A program that reads a format.

    Attributes:
        name: its name for the user.
        formats: the formats that it reads.
        program: the file in this folder that embeds with it.
        package: the package that must be installed: its import name, or its name in node_modules.
        place: where the package is installed.
        install: the command that installs it.
    """

    name: str
    formats: tuple[str, ...]
    program: str
    package: str
    place: Place
    install: str

    def command(self) -> list[str] | None:
        """The command that runs a program with this runtime; None if the runtime is not installed."""
        return _PLACES[self.place](self.package)

    def embed(self, folder: Path, request: Request, scratch: Path) -> Result:
        """Embed the texts of ``request`` with the export in ``folder``.

        Args:
            scratch: an empty folder for the program's files.

        Raises:
            UserError: the program failed, or its embeddings have another shape or are not finite.
        """
        command = self.command()
        if command is None:
            raise UserError(f"{self.name} is not installed. Install with: {self.install}")
        asked, output = scratch / "request.json", scratch / "output"
        asked.write_text(json.dumps(asdict(request)), encoding="utf-8")
        output.mkdir()
        program = Path(__file__).parent / self.program
        arguments = [program, *(path.resolve() for path in (folder, asked, output))]
        # The folder of node_modules, from which a program in Node resolves its packages.
        where = _folder() / "node" if self.place == "node" else scratch
        # A model that is incomplete must fail here, and not be completed from the hub.
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run(
            [*command, *map(str, arguments)],
            cwd=where,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise UserError(f"{self.name} cannot embed with {request.file} of the export: {lines[-1].strip()}")
        return _read(output, self.name, len(request.texts))


def _read(output: Path, name: str, texts: int) -> Result:
    content = json.loads((output / "result.json").read_text(encoding="utf-8"))
    vectors: Floats = np.fromfile(output / "vectors.f32", dtype="<f4").astype(np.float32)
    if vectors.size != texts * content["dims"]:
        raise UserError(f"{name} returned {vectors.size} numbers for {texts} texts of {content['dims']} dimensions.")
    if not np.isfinite(vectors).all():
        raise UserError(f"{name} returned embeddings that are not finite.")
    speed = {int(size): float(each) for size, each in content["texts_per_second"].items()}
    return Result(vectors.reshape(texts, -1), speed, content["versions"], content["notes"])


def _folder() -> Path:
    return Path(os.environ.get(RUNTIMES_FOLDER, ".venv-runtimes")).absolute()


def _own(package: str) -> list[str] | None:
    return [sys.executable] if find_spec(package) else None


def _python(package: str, python: Path | None = None) -> list[str] | None:
    python = python or _folder() / "python/bin/python"
    if not python.exists():
        return None
    check = "import sys, importlib.util; sys.exit(importlib.util.find_spec(sys.argv[1]) is None)"
    found = subprocess.run([str(python), "-c", check, package], capture_output=True, check=False)
    return None if found.returncode else [str(python)]


def _node(package: str) -> list[str] | None:
    node = shutil.which("node")
    return [node] if node and (_folder() / "node/node_modules" / package).is_dir() else None


def _vllm(package: str) -> list[str] | None:
    return _python(package, Path(".venv-real-vllm/bin/python").absolute())


#: For each place: the command that runs a program there; None if the package is not installed.
_PLACES: dict[Place, Callable[[str], list[str] | None]] = {
    "own": _own,
    "python": _python,
    "node": _node,
    "vllm": _vllm,
}

#: The runtimes by name. The first one that reads a format is the one that always checks it.
RUNTIMES: dict[str, Runtime] = {
    each.name: each
    for each in (
        Runtime(
            "sentence-transformers",
            (PLAIN,),
            "sentence_transformers_runtime.py",
            "sentence_transformers",
            "own",
            "pip install sentence-transformers",
        ),
        Runtime(
            "onnxruntime",
            ("onnx", "onnx-int8"),
            "onnxruntime_runtime.py",
            "onnxruntime",
            "own",
            INSTALL,
        ),
        Runtime("openvino", ("openvino",), "openvino_runtime.py", "openvino", "own", INSTALL),
        Runtime("fastembed", ("onnx", "onnx-int8"), "fastembed_runtime.py", "fastembed", "python", "make runtimes"),
        Runtime(
            "transformers.js",
            ("onnx", "onnx-int8"),
            "transformersjs_runtime.mjs",
            "@huggingface/transformers",
            "node",
            "make runtimes",
        ),
        Runtime("llama.cpp", ("gguf",), "llama_cpp_runtime.py", "llama_cpp", "python", "make runtimes"),
        Runtime("vllm", (PLAIN,), "vllm_runtime.py", "vllm", "vllm", "make real-vllm ARGS=--install-only"),
        Runtime("model2vec", ("static",), "model2vec_runtime.py", "model2vec", "own", INSTALL),
    )
}


def runtimes_of(name: str) -> list[Runtime]:
    """The runtimes that read the format ``name``. It is always checked with the first one."""
    return [runtime for runtime in RUNTIMES.values() if name in runtime.formats]


def how_to_skip(name: str, runtime: Runtime) -> str:
    """What the user can do if the format ``name`` does not work in ``runtime``."""
    if runtime != runtimes_of(name)[0]:
        return f"Leave {runtime.name} out of --check-in"
    # The plain layout is always written.
    return f"Leave {name} out of --to" if name != PLAIN else "Serve the model's own folder with sentence-transformers"
