"""The projection separates a wrong setting of a runtime from rounding errors; rankings use the model's similarity."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrite.export.parity import Statistics, Variant, compare_embeddings, projection
from pyrite.export.texts import Corpus, Text


@given(st.integers(0, 1000), st.floats(0, 0.3), st.booleans())
def test_projection_recognises_a_setting_beside_noise(seed: int, noise: float, wrong: bool) -> None:
    rng = np.random.default_rng(seed)
    trained, change, errors = (rng.standard_normal((40, 64), dtype=np.float32) for _ in range(3))
    variant = Variant("with a wrong setting", list(range(8, 40)), (trained + 0.3 * change)[8:])
    embedded = trained + wrong * 0.3 * change + noise * errors
    assert abs(projection(trained, embedded, variant) - wrong) < 0.2


def test_a_setting_without_effect_is_not_recognised() -> None:
    trained = np.eye(4, dtype=np.float32)
    assert projection(trained, trained[::-1], Variant("with another window", [0, 1, 2, 3], trained)) == 0


@pytest.mark.parametrize(("dot", "overlap"), [(True, 0), (False, 1)])
def test_rankings_depend_on_lengths_only_with_dot_product(dot: bool, overlap: float) -> None:
    passages = {str(number): f"passage {number}" for number in range(20)}
    texts = [Text("a query", "query", "query"), *(Text(each, "document", "passage") for each in passages.values())]
    lengths = np.arange(1, 21, dtype=np.float32)
    trained, other = (np.append(1, each)[:, None].astype(np.float32) for each in (lengths, lengths[::-1]))
    found = compare_embeddings(trained, other, texts, Corpus({"q": "a query"}, passages), [], dot, Statistics())
    assert (found.min_cosine, found.overlap) == (1, overlap)
