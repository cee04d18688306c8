"""The projection separates a wrong setting of a runtime from rounding errors."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pyrite.export.parity import Variant, projection


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
