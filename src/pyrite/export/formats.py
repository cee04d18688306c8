"""The formats of ``pyrite export``: the files of each, how they are written, and how exact their embeddings must be."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from pyrite.errors import UserError
from pyrite.export import gguf, layout, onnx, openvino, static

#: Installs the packages of all formats, and the runtimes that check most of them, into the environment of Pyrite.
INSTALL = "pip install -r requirements-export.txt"


@dataclass(frozen=True)
class Format:
    """A format that a model is exported to.

    Attributes:
        name: its name in --to.
        files: what is written, relative to the export folder: files, and folders with all files in them. A runtime
            loads the first one.
        write: writes the format. Its arguments are a model folder in the plain layout, which must not be changed, and
            the export folder. It raises UserError if the model cannot be written in this format.
        packages: import names of the packages that ``write`` needs.
        min_cosine: the default of --min-cosine: the lowest cosine similarity of a text's embedding with that of the
            trained model. docs/results.md has the measurements that it follows from. None: the format is another model,
            whose metrics show what it costs, and no cosine is required.
        precision: the numbers of weights and arithmetic, in words.
    """

    name: str
    files: tuple[str, ...]
    write: Callable[[Path, Path], None]
    packages: tuple[str, ...]
    min_cosine: float | None
    precision: str = "float32"

    def check_packages(self) -> None:
        """Raise UserError if a package that ``write`` needs is not installed."""
        if missing := [name for name in self.packages if find_spec(name) is None]:
            raise UserError(f"--to {self.name} needs {' and '.join(missing)}. Install with: {INSTALL}")

    def size(self, folder: Path) -> int:
        """The size on disk in bytes of the files in the export folder."""
        paths = [path for name in self.files for path in [folder / name, *(folder / name).rglob("*")]]
        return sum(path.stat().st_size for path in paths if path.is_file())


#: The layout that every export has, which candle, TEI, vLLM and sentence-transformers read: the source of the others.
PLAIN = "plain"

#: The formats by name.
FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        Format(PLAIN, layout.FILES, layout.check, (), 0.9999),
        Format("onnx", onnx.FILES, onnx.write, onnx.PACKAGES, 0.9999),
        Format(
            "onnx-int8",
            onnx.INT8_FILES,
            onnx.write_int8,
            onnx.INT8_PACKAGES,
            0.95,
            "int8 weights, int8 arithmetic with scales computed for each input",
        ),
        Format(
            "openvino",
            openvino.FILES,
            openvino.write,
            openvino.PACKAGES,
            0.99,
            "int8 weights, float32 arithmetic",
        ),
        Format("gguf", gguf.FILES, gguf.write, gguf.PACKAGES, 0.9999),
        Format("static", static.FILES, static.write, static.PACKAGES, None, "float16, one embedding per token"),
    )
}
