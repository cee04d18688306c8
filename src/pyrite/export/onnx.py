"""The ONNX formats: the transformer without its pooling, in float32 and with int8 weights."""

from pathlib import Path

from pyrite.errors import UserError

#: Packages that both formats need.
PACKAGES = ("onnx", "onnxscript", "onnxruntime")

FILES = ("onnx/model.onnx",)
#: The name that transformers.js reads for its dtype q8.
INT8_FILES = ("onnx/model_quantized.onnx",)


def write(source: Path, out: Path) -> None:
    """Write the model in ``source`` to onnx/model.onnx below ``out``."""
    raise UserError(f"{source}: not written yet ({out})")


def write_int8(source: Path, out: Path) -> None:
    """Write the model in ``source`` to onnx/model_quantized.onnx below ``out``."""
    raise UserError(f"{source}: not written yet ({out})")
