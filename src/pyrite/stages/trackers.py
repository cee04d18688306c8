"""The experiment trackers in finetune.report_to: checks them, and saves TensorBoard's logs."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pyrite.errors import UserError
from pyrite.sources.files import suggest
from pyrite.stages.context import StepContext


def check_trackers(names: Sequence[str]) -> None:
    """Raise UserError unless each tracker is known and installed."""
    from transformers.integrations import integration_utils

    known = integration_utils.INTEGRATION_TO_CALLBACK
    installed = integration_utils.get_available_reporting_integrations()
    for name in names:
        if name not in known:
            raise UserError(f"finetune.report_to: {name!r} is not a tracker. {suggest(name, sorted(known))}")
        if name not in installed:
            raise UserError(f"finetune.report_to: {name} is not installed. Install its package, or remove it.")


@contextmanager
def save_tensorboard_logs(ctx: StepContext) -> Iterator[None]:
    """Context manager for a training: TensorBoard's logs are saved in the run's logs/<step>/.

    They are not in scratch, which is deleted when the step finishes.
    """
    prefix = f"{ctx.prefix}/logs/{ctx.step.name}"
    folder = ctx.store.local_path(prefix)
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(folder))
    yield
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            ctx.store.write(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())
