"""The registry of losses."""

from typing import get_args

from pyrite.spec import FinetuneSpec
from pyrite.training.losses import LOSSES


def test_every_loss_in_the_spec_is_registered() -> None:
    assert set(get_args(FinetuneSpec.model_fields["loss"].annotation)) == set(LOSSES)
