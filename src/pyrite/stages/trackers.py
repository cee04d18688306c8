"""Trackers that finetune.report_to names: are they there, and where what TensorBoard writes is kept."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pyrite.errors import UserError
from pyrite.sources.files import suggest
from pyrite.stages.context import StepContext


def check(names: Sequence[str]) -> None:
    """See that each tracker is known and installed.

    Raises:
        UserError: one is not.
    """
    from transformers.integrations import integration_utils

    known, installed = (
        integration_utils.INTEGRATION_TO_CALLBACK,
        integration_utils.get_available_reporting_integrations(),
    )
    for name in names:
        if name not in known:
            raise UserError(f"finetune.report_to: {name!r} is no tracker. {suggest(name, sorted(known))}")
        if name not in installed:
            raise UserError(f"finetune.report_to: {name} is not installed here. Install its package, or leave it out.")


@contextmanager
def kept_logs(ctx: StepContext) -> Iterator[None]:
    """While the body trains, TensorBoard writes to logs/<step>/ of the run, and not below scratch, which is dropped."""
    prefix = f"{ctx.prefix}/logs/{ctx.step.name}"
    folder = ctx.store.local_path(prefix)
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(folder))
    yield
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            ctx.store.write(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())
