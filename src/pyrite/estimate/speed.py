"""How fast a machine embeds, trains, searches and computes: measured on this one, or estimated for a GPU."""

import hashlib
import time
from dataclasses import dataclass

from pyrite.costs import CHARACTERS_PER_TOKEN, Machine
from pyrite.embedding import models
from pyrite.embedding.encoder import Encoder
from pyrite.embedding.models import Size
from pyrite.estimate.footprint import Needs
from pyrite.sources import open_source
from pyrite.sources.base import Document
from pyrite.spec import SampleSource

#: A training step relative to encoding the same characters: forward and backward pass, and the optimizer. Measured
#: with all-MiniLM-L6-v2 on 2 cores of an AMD EPYC with AVX-512 BF16 (docs/results.md).
_TRAINING = 3.7

#: Encoding in float32 against bf16.
_FLOAT32 = 2.7

#: Multiplications a second of the search on 2 cores (``make bench-search``).
_SEARCHED = 12e9

#: Seconds that the longest call of a measurement takes at most, about.
_MEASURED_SECONDS = 1.0

#: Rounds of ``_measure_core``, and the CPU seconds that they take on the core to which ``Needs.cpu`` refers.
_CORE_ROUNDS, _CORE_SECONDS = 100_000, 0.05


@dataclass(frozen=True)
class Speed:
    """Seconds for each unit of the work in ``Needs``."""

    per_encoded: float
    per_encoded_float32: float
    per_trained: float
    per_compared: float
    per_cpu: float = 1.0

    def seconds(self, needs: Needs) -> float:
        """The duration of a step without calls of LLMs."""
        return (
            needs.cpu * self.per_cpu
            + needs.encoded * self.per_encoded
            + needs.encoded_float32 * self.per_encoded_float32
            + needs.trained * self.per_trained
            + needs.compared * self.per_compared
        )


def measure_speed(encoder: Encoder, characters: float, size: Size) -> Speed:
    """The speed of this machine with the model of ``encoder`` and passages of ``characters`` characters."""
    per_character = _measure(encoder, max(50, round(characters)))
    # Without bf16, nothing is scored again in float32.
    slower = _FLOAT32 if models.uses_bf16(encoder.precision, encoder.device) else 0.0
    training = per_character * _TRAINING
    return Speed(per_character, per_character * slower, training, size.dims / _SEARCHED, _measure_core())


def _measure(encoder: Encoder, characters: int) -> float:
    """Seconds per character of passages with this length."""
    records = open_source(SampleSource(kind="sample")).records()
    text = "\n".join(record.text for record in records if isinstance(record, Document))[:characters]
    texts = 16
    while True:  # the longest call counts: in short ones, the start of each batch takes a larger share
        begin = time.perf_counter()
        encoder.encode([text] * texts, "document")
        elapsed = time.perf_counter() - begin
        if 2 * elapsed > _MEASURED_SECONDS:
            return elapsed / (texts * len(text))
        texts *= 2


def _measure_core() -> float:
    """CPU seconds of Python code on one core of this machine, relative to ``_CORE_SECONDS``."""
    begin = time.process_time()
    digests = [hashlib.sha256(b"%d" % number).digest() for number in range(_CORE_ROUNDS)]
    len(set(digests))
    return (time.process_time() - begin) / _CORE_SECONDS


def gpu_speed(on: Machine, size: Size) -> Speed:
    """The speed of one GPU of the machine, by its arithmetic: 2 operations for a weight and a token."""
    per_token = 2 * size.multiplied / (on.gpu_teraflops * 1e12)
    encoded = per_token / CHARACTERS_PER_TOKEN
    searched = 2 * size.dims * _FLOAT32 / (on.gpu_teraflops * 1e12)
    return Speed(encoded, encoded * _FLOAT32, encoded * _TRAINING, searched)
