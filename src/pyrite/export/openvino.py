"""The OpenVINO format: the transformer without its pooling, with int8 weights."""

from pathlib import Path

from pyrite.export import onnx

PACKAGES = (*onnx.PACKAGES, "openvino", "nncf")

FILES = ("openvino/openvino_model_qint8.xml", "openvino/openvino_model_qint8.bin")


def write(source: Path, out: Path) -> None:
    """Write the transformer of ``source``, a folder in the plain layout, to openvino/ below ``out``.

    Weights are int8, one scale per row, and are multiplied in floating point.

    Raises:
        UserError: as ``onnx.write``.
    """
    import nncf
    import openvino

    target = out / FILES[0]
    target.parent.mkdir(parents=True, exist_ok=True)
    with onnx.float32_graph(source, out) as graph, onnx.quiet():
        model = openvino.convert_model(graph)
        compressed = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
        openvino.save_model(compressed, target, compress_to_fp16=False)
