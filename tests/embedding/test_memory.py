"""Batch sizes on a CPU are fixed; on a GPU they follow its memory."""

from pathlib import Path

import pytest

from embedding.test_encoder import TEXTS, encoder
from pyrite.embedding import memory
from pyrite.embedding.memory import encoding_tokens, training_texts
from pyrite.embedding.models import Size

GB = 10**9

#: By their configurations: 6 layers of 384, 24 layers of 1,024, 28 layers of 3,584.
MINILM, LARGE, SEVEN_B = (
    Size(22_700_000, 10_600_000, 384),
    Size(335_000_000, 303_000_000, 1024),
    Size(7_600_000_000, 6_500_000_000, 3584),
)


def test_a_cpu_has_fixed_batch_sizes() -> None:
    assert {training_texts(None, size, 128) for size in (MINILM, SEVEN_B)} == {24}
    assert {encoding_tokens(None, size) for size in (MINILM, SEVEN_B)} == {4096}


@pytest.mark.parametrize(
    ("gigabytes", "size", "texts", "tokens"),
    [
        (16, MINILM, 388, 65_536),
        (16, LARGE, 21, 65_536),
        (24, LARGE, 40, 65_536),
        (80, LARGE, 170, 65_536),
        (24, SEVEN_B, 1, 4_096),
        (40, SEVEN_B, 1, 19_695),
        (141, MINILM, 512, 65_536),
    ],
)
def test_batches_grow_with_the_memory_of_a_gpu(gigabytes: int, size: Size, texts: int, tokens: int) -> None:
    assert training_texts(gigabytes * GB, size, 128) == texts
    assert encoding_tokens(gigabytes * GB, size) == tokens


def test_longer_texts_have_smaller_micro_batches() -> None:
    assert training_texts(80 * GB, LARGE, 512) == training_texts(80 * GB, LARGE, 128) // 4


def test_the_encoder_uses_the_setting_before_the_memory(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "device_memory", lambda _: 16 * GB)
    unset = encoder(tiny_model, tiny_model, tmp_path)
    assert unset._batch_tokens == 65_536
    few = encoder(tiny_model, tiny_model, tmp_path, resources={"encode_tokens": 256})
    assert few._batch_tokens == 256
    assert abs(unset.encode(TEXTS, "document") - few.encode(TEXTS, "document")).max() < 0.02, "rounding in bfloat16"
