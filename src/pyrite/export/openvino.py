"""The OpenVINO format: the transformer without its pooling, with int8 weights."""

from pathlib import Path

from pyrite.errors import UserError

PACKAGES = ("onnx", "onnxscript", "openvino", "nncf")

FILES = ("openvino/openvino_model_qint8.xml", "openvino/openvino_model_qint8.bin")


def write(source: Path, out: Path) -> None:
    """Write the model in ``source`` to openvino/ below ``out``."""
    raise UserError(f"{source}: not written yet ({out})")
