"""Settings of the judges: ``judge``."""

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, ValidationInfo, field_validator, model_validator

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
        description="Judge this many ranks of a query; null: all. Unset: all with labels; 10 with llm and reranker "
        "unless patience is set (10 more than mine.positive_rank with mine.rule rank).",
    )
    patience: int | None = Field(
        default=None, ge=1, description="Skip the rest of a query after this many grades below 3 in a row; unset: no."
    )
    stop: Literal["example"] | None = Field(
        default=None,
        description="example: skip the rest of a query as soon as no grade can change its training examples. It needs "
        "mine.rule nearest and a loss without grades. Known answers are not judged, except a sample of 100. Unset: no.",
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
    def chat_model(self) -> str | None:
        """Name of the judge's model if it can also generate questions."""
        return None

    @property
    def server_model(self) -> str | None:
        """Name of the model that the judge's server has to serve; None if it needs no server."""
        model: str | None = self.identity["model"]
        return model


class NoiseSpec(Section):
    """Simulated errors of the judge labels, to rehearse with a judge that errs (pyrite.judges.noise)."""

    kappa: float = Field(
        gt=0,
        le=1,
        description="Quadratic kappa of noisy and true grades on the candidates of iteration 1. 1: no wrong grade, but "
        "expected grades as soft as with errors.",
    )
    bias: float = Field(default=0.0, ge=-3, le=3, description="Grades to add before rounding; above 0: generous.")
    # At most the square root of 0.8: the rest of the variance, 0.2, is shared by the pairs of a query.
    similarity: float = Field(
        default=0.0,
        ge=0,
        le=0.894,
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


class ServerJudgeSpec(CommonJudgeSpec):
    """A model behind HTTP servers (resources.judge_urls) as the judge."""

    needs_server: ClassVar[bool] = True
    reads_text: ClassVar[bool] = True
    # A fifth of the pairs, with the same quality: docs/judging.md, "Judging fewer pairs".
    default_window: ClassVar[int | None] = 10

    model: str = Field(description="llm, reranker: model name on the server.")
    calibration: str | None = Field(
        default=None,
        description="llm, reranker: the .json file that pyrite calibrate wrote for this judge. It maps the judge's "
        "expected grades, or scores, to grades by people; unset: they are used as they are.",
    )

    @model_validator(mode="before")
    @classmethod
    def _require_model(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("model"):
            kind = cls.model_fields["kind"].default
            raise ValueError(f"kind {kind} needs model: the name under which the server serves it")
        return values


class LlmJudgeSpec(ServerJudgeSpec):
    """An LLM behind an OpenAI-compatible server as the judge."""

    kind: Literal["llm"] = "llm"
    prompt: str = Field(
        default="general",
        description=f"llm: {PROMPT} With -yes-no (general-yes-no) a prompt asks two questions instead of a grade.",
    )

    @property
    def chat_model(self) -> str:
        return self.model


class RerankerJudgeSpec(ServerJudgeSpec):
    """A cross-encoder behind a server with a scoring API as the judge."""

    kind: Literal["reranker"] = "reranker"
    query_template: str = Field(
        default="{query}",
        description="reranker: what to send as the query, if the server does not apply the model's template; {query} "
        "is the query.",
    )
    document_template: str = Field(
        default="{document}", description="reranker: what to send as the document; {document} is the passage."
    )

    @field_validator("query_template", "document_template")
    @classmethod
    def _has_placeholder(cls, value: str, info: ValidationInfo) -> str:
        placeholder = f"{{{str(info.field_name).removesuffix('_template')}}}"
        if value.count(placeholder) != 1:
            raise ValueError(f"the template must contain {placeholder} once")
        return value

    @property
    def label(self) -> str:
        return f"reranker {self.model}"


#: The judges of a cascade.
SingleJudgeSpec = Annotated[LabelsJudgeSpec | LlmJudgeSpec | RerankerJudgeSpec, Field(discriminator="kind")]


class CascadeJudgeSpec(CommonJudgeSpec):
    """A cheap first judge, and a second judge for the pairs that the first cannot decide.

    Probe, calibrate and generate use the second judge.
    """

    kind: Literal["cascade"] = "cascade"
    stop: Literal["example"] | None = Field(
        default="example",
        description="As judge.stop of other kinds, but with the default example.",
    )
    first: SingleJudgeSpec = Field(
        description="cascade: the cheap judge, with its kind and settings. Its servers are resources.first_judge_urls."
    )
    second: SingleJudgeSpec = Field(
        description="cascade: the judge of the pairs that the first cannot decide, with its kind and settings."
    )
    pilot: int = Field(
        default=100,
        ge=1,
        description="cascade: queries per shard that the second judge grades alone, to calibrate the first judge.",
    )
    tolerance: float = Field(
        default=0.2,
        ge=0,
        lt=0.5,
        description="cascade: the first judge decides a pair if the second would contradict it with at most this "
        "probability: on whether the passage is relevant, and whether mining can use it.",
    )
    audit: float = Field(
        default=0.05, ge=0, le=1, description="cascade: share of the first judge's decisions that the second checks."
    )
    max_drift: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="cascade: stop if the second judge contradicts more than this share of the audited decisions, by "
        "the lower bound of the 95% interval.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "CascadeJudgeSpec":
        for name, judge in (("first", self.first), ("second", self.second)):
            for setting, field in CommonJudgeSpec.model_fields.items():
                if setting != "kind" and getattr(judge, setting) != field.default:
                    raise ValueError(f"{name}.{setting} has no effect in a cascade: set judge.{setting} instead")
        if getattr(self.first, "confusion", None) and getattr(self.second, "confusion", None):
            raise ValueError("first.confusion and second.confusion would make both judges err alike: use noise for one")
        noises = [getattr(judge, "noise", None) for judge in (self.first, self.second)]
        if noises[0] and noises[1] and noises[0].seed == noises[1].seed:
            raise ValueError(
                "first.noise.seed and second.noise.seed are equal, so both judges would err alike: change one"
            )
        return self

    def idle_first(self, queries: int) -> str:
        """A note for shards of that many queries, all of which are in the pilot."""
        return (
            f"judge.pilot ({self.pilot}) covers all queries of a shard ({queries:,}), so judge.first decides nothing: "
            "lower judge.pilot or judge.shards."
        )

    @property
    def needs_server(self) -> bool:  # type: ignore[override]  # here it depends on the second judge
        return self.second.needs_server

    @property
    def reads_text(self) -> bool:  # type: ignore[override]  # as above
        return self.second.reads_text

    @property
    def identity(self) -> dict[str, Any]:
        return {**self.second.identity, "kind": self.kind}

    @property
    def chat_model(self) -> str | None:
        return self.second.chat_model

    @property
    def label(self) -> str:
        return f"cascade of {self.first.label} and {self.second.label}"

    @property
    def reads_first_candidates(self) -> bool:
        return self.first.reads_first_candidates or self.second.reads_first_candidates


class EvaluationJudgeSpec(Section):
    """A second judge, which grades the results of all candidates: ``evaluate.judge``.

    Always an LLM: the labels would be the answer key again. It grades every pair, so it has no shards, window or
    patience.
    """

    kind: Literal["llm"] = Field(
        default="llm", description="llm: an LLM behind an OpenAI-compatible server (resources.evaluate_judge_urls)."
    )
    model: str = Field(description="Model name on the server; of another family than judge.model.")
    prompt: str = Field(default="general", description=PROMPT)
    max_missing: float = Field(default=0.02, ge=0, le=1, description="Stop above this share of ungraded pairs.")


#: The judges. To add one, add its settings above, its class to this union, and a file ``judges/<kind>.py``.
JudgeSpec = Annotated[
    LabelsJudgeSpec | LlmJudgeSpec | RerankerJudgeSpec | CascadeJudgeSpec, Field(discriminator="kind")
]

JUDGES: dict[str, type[CommonJudgeSpec]] = {v.model_fields["kind"].default: v for v in get_args(get_args(JudgeSpec)[0])}
JUDGE_SETTINGS = {name for variant in JUDGES.values() for name in variant.model_fields}
