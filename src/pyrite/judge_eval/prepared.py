"""A run's prepared tables, for what is no step of the run but reads what prepare wrote: probing and calibrating."""

from pyrite.errors import UserError
from pyrite.executors.step import Run
from pyrite.plan import Step
from pyrite.progress import Progress
from pyrite.stages.context import StepContext


def missing_steps(run: Run) -> list[Step]:
    """The steps that make the run's corpus and questions, as far as they are not done as things are now."""
    making = ("prepare", "generate")
    return [state.step for state in run.survey() if state.step.stage in making and state.state != "done"]


def prepared_context(run: Run, progress: Progress) -> StepContext:
    """What the stages' own functions read tables by; it is the context of no step, and nothing is written through it.

    Raises:
        UserError: the run is not prepared.
    """
    if missing_steps(run):
        raise UserError(f"run {run.spec.name} is not prepared, or its source or settings have changed since.")
    return StepContext(
        spec=run.spec,
        step=Step("retrieve", 1),
        store=run.store,
        prefix=run.prefix,
        manifests=run.manifests(),
        scratch_key=f"{run.prefix}/scratch/aside",
        progress=progress,
    )
