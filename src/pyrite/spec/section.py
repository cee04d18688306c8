"""The base class of all sections of a RunSpec."""

from pydantic import BaseModel, ConfigDict

#: Help text of the settings that name a prompt.
PROMPT = "general, medical, finance, legal or programming, or the path of a prompt file."


class Section(BaseModel):
    """A section of the RunSpec. Unknown keys are errors; values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)
