"""The ONNX formats: the transformer without its pooling, in float32 and with int8 weights."""

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pyrite.errors import DISK_FULL, UserError

#: Packages that the formats need.
PACKAGES = ("onnx", "onnxscript")
INT8_PACKAGES = (*PACKAGES, "onnxruntime")

FILES = ("onnx/model.onnx",)
#: The name that transformers.js reads for its dtype q8.
INT8_FILES = ("onnx/model_quantized.onnx",)

#: Inputs that a model may have, in the order that other exporters write them.
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")

#: The only output: the embeddings of the tokens, shape (texts, tokens, dims).
OUTPUT = "last_hidden_state"

#: An ONNX file has at most 2 GiB, and not all loaders read weights in a separate file.
_MAX_BYTES = 2 << 30

_OPSET = 18


def write(source: Path, out: Path) -> None:
    """Write the transformer of ``source``, a folder in the plain layout, to onnx/model.onnx below ``out``.

    Raises:
        UserError: the model cannot be written as ONNX.
    """
    export_graph(source, _create(out, FILES[0]))


def write_int8(source: Path, out: Path) -> None:
    """As ``write``, with int8 weights and dynamic quantisation of the activations."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    target = _create(out, INT8_FILES[0])
    with float32_graph(source, out) as graph, quiet():
        quantize_dynamic(graph, target, weight_type=QuantType.QInt8, per_channel=True)


@contextlib.contextmanager
def float32_graph(source: Path, out: Path) -> Iterator[Path]:
    """The transformer in ``source`` as a float32 ONNX file: the one in ``out`` if it exists, or a temporary one.

    Raises:
        UserError: as ``write``.
    """
    if (out / FILES[0]).is_file():
        yield out / FILES[0]
        return
    with TemporaryDirectory(dir=out) as folder:
        export_graph(source, Path(folder) / "model.onnx")
        yield Path(folder) / "model.onnx"


def export_graph(source: Path, target: Path) -> None:
    """Write the transformer of ``source`` in float32 to the ONNX file ``target``.

    Raises:
        UserError: as ``write``.
    """
    import torch
    from torch import nn
    from transformers import AutoModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # Pyrite has its own
    if (size := (source / "model.safetensors").stat().st_size) > _MAX_BYTES:
        raise UserError(f"the weights have {size / 2**30:.1f} GiB, and an ONNX file has at most 2. Use another format.")
    model = AutoModel.from_pretrained(
        str(source), dtype=torch.float32, use_safetensors=True, local_files_only=True
    ).eval()
    accepted = inspect.signature(model.forward).parameters
    names = [name for name in _INPUTS if name in accepted]

    class Tokens(nn.Module):
        """The model with its output as a tensor."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: Any) -> Any:
            return self.model(**dict(zip(names, inputs, strict=True))).last_hidden_state

    # Two texts of three and two tokens: other sizes than 1 and equal sizes would be taken for constants.
    ids = torch.zeros((2, 3), dtype=torch.long)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    example = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=_positions(model))}
    try:
        with quiet():
            torch.onnx.export(
                Tokens(),
                tuple(example[name] for name in names),
                str(target),
                dynamo=True,
                input_names=names,
                output_names=[OUTPUT],
                dynamic_shapes=(tuple(sizes for _ in names),),
                opset_version=_OPSET,
                external_data=False,
                verbose=False,
            )
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise
        reason = str(error).strip().splitlines() or [""]
        raise UserError(
            f"torch cannot export a {type(model).__name__} to ONNX ({type(error).__name__}: {reason[0]}). Leave the "
            "format out of --to."
        ) from error


def _positions(model: Any) -> int:
    """The largest number of tokens that the graph must accept."""
    return int(getattr(model.config, "max_position_embeddings", 0) or 1 << 17)


def _create(out: Path, name: str) -> Path:
    """The path ``name`` below ``out``, whose folder is created."""
    path = out / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop the notes of exporters about their own work. Errors are raised."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
