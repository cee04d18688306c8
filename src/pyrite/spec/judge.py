"""Settings of the judges: ``judge``."""

import math
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from pyrite.spec.section import PROMPT, Section


class CommonJudgeSpec(Section):
    """Settings and properties that all judges have."""

    #: Whether grades come from an OpenAI-compatible server at resources.judge_urls, and cost time and money.
    needs_server: ClassVar[bool] = False
    #: Whether the judge reads texts, so that it can grade any query and passage, not only those of the data set.
    reads_text: ClassVar[bool] = False
    #: Default of rank_window, plus mine.positive_rank with mine.rule rank. None: all ranks.
    default_window: ClassVar[int | None] = None

    kind: str
    shards: int = Field(default=2, ge=1, le=10_000, description="Number of shards, judged independently.")
    rank_window: int | None = Field(
        default=None,
        ge=2,
        description="Judge this many ranks of a query; null: all. Unset: all with labels; 10 with llm unless patience "
        "is set (10 more than mine.positive_rank with mine.rule rank).",
    )
    patience: int | None = Field(
        default=None, ge=1, description="Skip the rest of a query after this many grades below 3 in a row; unset: no."
    )
    max_missing: float = Field(default=0.02, ge=0, le=1, description="Stop a shard above this share of ungraded pairs.")

    @property
    def identity(self) -> dict[str, Any]:
        """Kind, model, prompt and simulated errors of the judge, for reports. What the judge does not have is None."""
        return {name: getattr(self, name, None) for name in ("kind", "model", "prompt", "errors")}

    @property
    def label(self) -> str:
        """The judge's identity as text."""
        return f"{self.server_model}, prompt {self.identity['prompt']}" if self.server_model else self.kind

    @property
    def reads_first_candidates(self) -> bool:
        """Whether grades of all iterations depend on the candidates of iteration 1."""
        return False

    @property
    def server_model(self) -> str | None:
        """Name of the model that the judge's server has to serve; None if it needs no server."""
        model: str | None = self.identity["model"]
        return model


class NoiseSpec(Section):
    """Simulated errors of the judge labels, to rehearse with a judge that errs (pyrite.judges.noise)."""

    kappa: float = Field(
        gt=0, lt=1, description="Quadratic kappa of noisy and true grades on the candidates of iteration 1."
    )
    bias: float = Field(default=0.0, ge=-3, le=3, description="Grades to add before rounding; above 0: generous.")
    # The rest of the variance is 0.2, which the pairs of a query share.
    similarity: float = Field(
        default=0.0,
        ge=0,
        le=math.sqrt(0.8),
        description="Correlation of a pair's error with its score by the base model, 0 to 0.894. LLM judges are misled "
        "by passages that resemble the query.",
    )
    seed: int = Field(default=0, ge=0, description="Seed of the errors.")


class LabelsJudgeSpec(CommonJudgeSpec):
    """The data set's own relevance labels as the judge. Free, and unaware of answers that are not labelled."""

    kind: Literal["labels"] = "labels"
    noise: NoiseSpec | None = Field(
        default=None, description="labels: simulate a judge that errs, by the kappa of its grades; unset: no errors."
    )
    confusion: str | None = Field(
        default=None,
        description="labels: simulate a judge that errs, by the confusion matrix in a .json file of pyrite calibrate; "
        "unset: no errors.",
    )

    @model_validator(mode="after")
    def _one_kind_of_errors(self) -> "LabelsJudgeSpec":
        if self.noise and self.confusion:
            raise ValueError("noise and confusion are two ways to simulate errors: unset one of them")
        return self

    @property
    def errors(self) -> str | None:
        """The simulated errors, in a few words; None without any."""
        return f"noise of kappa {self.noise.kappa:g}" if self.noise else self.confusion and "a confusion matrix"

    @property
    def label(self) -> str:
        return f"{self.kind} with simulated errors ({self.errors})" if self.errors else self.kind

    @property
    def reads_first_candidates(self) -> bool:
        return self.noise is not None


class LlmJudgeSpec(CommonJudgeSpec):
    """An LLM behind an OpenAI-compatible server (resources.judge_urls) as the judge."""

    needs_server: ClassVar[bool] = True
    reads_text: ClassVar[bool] = True
    # A fifth of the pairs, with the same quality: docs/judging.md, "Judging fewer pairs".
    default_window: ClassVar[int | None] = 10

    kind: Literal["llm"] = "llm"
    model: str = Field(description="llm: model name on the server.")
    prompt: str = Field(default="general", description=f"llm: {PROMPT}")

    @model_validator(mode="before")
    @classmethod
    def _require_model(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("model"):
            raise ValueError("kind llm needs model: the name under which the server serves it")
        return values


#: The judges. To add one, add its settings above, its class to this union, and a file ``judges/<kind>.py``.
JudgeSpec = Annotated[LabelsJudgeSpec | LlmJudgeSpec, Field(discriminator="kind")]

JUDGES: dict[str, type[CommonJudgeSpec]] = {v.model_fields["kind"].default: v for v in get_args(get_args(JudgeSpec)[0])}
JUDGE_SETTINGS = {name for variant in JUDGES.values() for name in variant.model_fields}
