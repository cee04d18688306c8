"""Batch sizes for a device's memory. They change results only by rounding errors.

Those for a GPU are estimates from the formula of Korthikanti et al. (arXiv 2205.05198): training stores 34 bytes per
token, layer and hidden unit with 16-bit activations and an attention that stores no matrix of scores. Autocast keeps
some activations in float32, so this takes twice as much. Half of the memory that the weights leave is used.
"""

from pyrite.embedding.models import Size

#: Texts per forward pass in training, and tokens per encoding batch, on a CPU: sized for its caches.
CPU_TEXTS, CPU_TOKENS = 24, 4096

#: Limits on a GPU: larger batches are hardly faster.
_MAX_TEXTS, _MAX_TOKENS = 512, 65_536

#: Bytes per token, layer and hidden unit.
_ACTIVATIONS = 2 * 34

#: Bytes per weight in training: float32 weights, gradients and two moments, and the frozen base model's weights.
_TRAINED_WEIGHT = 20

#: Bytes per weight in encoding: float32 at most.
_WEIGHT = 4


def device_memory(device: str) -> int | None:
    """The total memory of a GPU in bytes; None for the CPU. It does not depend on what else uses the GPU."""
    import torch

    return int(torch.cuda.get_device_properties(device).total_memory) if device == "cuda" else None


def training_texts(memory: int | None, size: Size, tokens: int) -> int:
    """Texts of ``tokens`` tokens per forward pass in training. ``memory``: see ``device_memory``."""
    if memory is None:
        return CPU_TEXTS
    return _fitting(memory - training_bytes(size, 0), activation_bytes(size, tokens), 1, _MAX_TEXTS)


def training_bytes(size: Size, tokens: int) -> float:
    """The memory that training needs with forward passes of ``tokens`` tokens in total."""
    return _TRAINED_WEIGHT * size.weights + activation_bytes(size, tokens)


def encoding_tokens(memory: int | None, size: Size) -> int:
    """Tokens per encoding batch. Encoding stores the activations of one layer at a time."""
    if memory is None:
        return CPU_TOKENS
    return _fitting(memory - _WEIGHT * size.weights, _ACTIVATIONS * size.dims, CPU_TOKENS, _MAX_TOKENS)


def activation_bytes(size: Size, tokens: float) -> float:
    """The activations that training stores for ``tokens`` tokens.

    A layer multiplies each token by 12 * hidden ** 2 weights, so a model has multiplied / (12 * hidden ** 2) layers.
    """
    return _ACTIVATIONS * size.multiplied / (12 * size.dims) * tokens


def _fitting(free: float, item: float, least: int, most: int) -> int:
    """How many items of ``item`` bytes fit into half of ``free`` bytes, from ``least`` to ``most``."""
    return max(least, min(most, int(free / 2 / max(1.0, item))))
