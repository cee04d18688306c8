"""Divides the texts of a batch among the training processes, of which each has a GPU.

All processes read the same batches. Each one embeds its share of a batch's texts, gathers the other embeddings, and
computes the loss of the complete batch. Then the gradients of the weights are averaged. So a loss sees the same
embeddings as in one process, whatever it computes from them, and batches need not be divisible.

A part of a loss that embeds all texts in each process is also correct, but no faster: the average of equal gradients
is that gradient. Without a process group, all functions do nothing.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from sentence_transformers.util import get_rank, get_world_size
from torch import Tensor

#: The tokens of some texts, as the model's tokenizer returns them.
Features = dict[str, Any]


class PeerLost(Exception):
    """Another training process ended or failed, so this one cannot continue. The cause is the other one's error."""


def is_main() -> bool:
    """Whether this process saves and reports: the first one, or the only one."""
    return bool(get_rank() == 0)


def share(positions: Tensor) -> Tensor:
    """This process's share of ``positions``: every n-th. All shares are equally long.

    If the positions do not divide evenly, some processes embed one of them again, and ``gather`` drops it.
    """
    count, processes = len(positions), get_world_size()
    padded = torch.arange(-(-count // processes) * processes, device=positions.device) % count
    return positions if processes == 1 else positions[padded[get_rank() :: processes]]


def gather(own: Tensor, count: int) -> Tensor:
    """The embeddings of ``count`` texts, in order, from those of this process's ``share``."""
    return own if get_world_size() == 1 else _Gather.apply(own)[:count]  # type: ignore[no-untyped-call]


class _Gather(torch.autograd.Function):
    """Interleaves the rows of all processes.

    All processes compute the same loss, so each has the gradient of all rows and keeps that of its own. Times the
    number of processes, because ``average_gradients`` divides by it.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        del ctx
        parts = [torch.empty_like(own) for _ in range(get_world_size())]
        _collective(dist.all_gather, parts, own.contiguous())
        return torch.stack(parts, dim=1).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        del ctx
        processes: int = get_world_size()
        return processes * gradient[get_rank() :: processes]


def take_share(features: Features) -> Features:
    """The tokens of this process's share of the texts."""
    if get_world_size() == 1:
        return features
    rows = share(torch.arange(len(features["input_ids"]), device=features["input_ids"].device))
    return {name: value[rows] if isinstance(value, Tensor) else value for name, value in features.items()}


def embed_share(embed: Callable[[Features], Tensor], features: Features) -> Tensor:
    """``embed(features)``, with the texts divided among the processes.

    The features of a static embedding model are not divided: they have no row per text, and embedding them is fast.
    """
    if "attention_mask" not in features:
        return embed(features)
    return gather(embed(take_share(features)), len(features["input_ids"]))


def average_gradients(weights: Iterable[Tensor]) -> None:
    """Replace the gradients of ``weights`` by their averages over the processes, without which weights would differ."""
    if get_world_size() == 1:
        return
    weights = list(weights)
    # An expert of a mixture of experts has no gradient in a process whose texts were not routed to it.
    present = torch.tensor([weight.grad is not None for weight in weights], device=weights[0].device, dtype=torch.uint8)
    _collective(dist.all_reduce, present, dist.ReduceOp.MAX)
    for weight, anywhere in zip(weights, present.tolist(), strict=True):
        if anywhere:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            _collective(dist.all_reduce, weight.grad)  # a sum: the backend gloo has no average
            weight.grad /= get_world_size()


def barrier() -> None:
    """Wait for all processes."""
    if get_world_size() > 1:
        _collective(dist.barrier)


def _collective(operation: Callable[..., Any], *arguments: Any) -> None:
    """Run a collective operation. Raises PeerLost if it fails, because another process ended."""
    try:
        operation(*arguments)
    except RuntimeError as error:
        raise PeerLost(str(error)) from error
