"""Settings of the stages, of the model, and of how a run is executed."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from pyrite.addresses import normalize_server_urls
from pyrite.spec.judge import EvaluationJudgeSpec
from pyrite.spec.section import PROMPT, Section
from pyrite.spec.servers import JudgeServers, Prefix


class ModelSpec(Section):
    """The embedding model to adapt."""

    base: str = Field(default="builtin:all-MiniLM-L6-v2", description="Folder, hub id or builtin:... (packaged).")
    revision: str | None = Field(default=None, description="Commit of a hub model. Pin it for reproducible runs.")
    query_prompt: str | None = Field(default=None, description="Prefix of every query; unset: the model's own.")
    passage_prompt: str | None = Field(default=None, description="Prefix of every passage; unset: the model's own.")
    max_tokens: int | None = Field(default=None, ge=16, description="Maximum tokens of a text; unset: the model's.")
    trust_remote_code: bool = Field(default=False, description="Run code that comes with a hub model.")


class SplitSpec(Section):
    """Shares of the topics in each split. They must add up to 1."""

    train: float = Field(default=0.70, gt=0, lt=1)
    val: float = Field(default=0.15, gt=0, lt=1)
    test: float = Field(default=0.15, gt=0, lt=1)

    @model_validator(mode="after")
    def _adds_up(self) -> "SplitSpec":
        total = self.train + self.val + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train, val and test add up to {total:g}, not 1")
        return self


class PrepareSpec(Section):
    """How documents are divided into passages and queries into splits."""

    min_chars: int = Field(default=500, ge=1, description="Minimum characters of a passage, if its document allows.")
    max_chars: int = Field(default=1000, ge=50, description="Maximum characters of a passage.")
    context: Literal["title", "none"] = Field(
        default="title",
        description="Text before each passage wherever a model reads it: its title, unless the passage starts with it.",
    )
    split: SplitSpec = SplitSpec()
    max_train_queries: int | None = Field(
        default=None, ge=1, description="Maximum training queries, drawn by seed; unset: all."
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        description="Seed of the splits, the drawn training queries and the generated questions, to vary seed on the "
        "same data; unset: seed.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> "PrepareSpec":
        if self.min_chars > self.max_chars:
            raise ValueError(f"min_chars ({self.min_chars}) is above max_chars ({self.max_chars})")
        return self


class GenerateSpec(Section):
    """Synthetic questions from an LLM, for data with few or no questions (arXiv 2512.08088; InPars, arXiv 2202.05144).

    The LLM is served at resources.judge_urls, like an LLM judge.
    """

    queries: int = Field(default=2000, ge=3, description="Questions to generate. Filters drop some of them.")
    share_from_passages: float = Field(
        default=0.5, ge=0, le=1, description="Share generated from a known passage. The others are for training only."
    )
    shots: int = Field(default=5, ge=1, description="Example questions in a prompt without a passage.")
    min_words: int = Field(default=4, ge=1, description="Drop questions with fewer words.")
    max_words: int = Field(default=40, ge=1, description="Drop questions with more words.")
    answerable_grade: int | None = Field(
        default=3,
        ge=2,
        le=4,
        description="Drop a question if the judge grades its own passage lower; null, or judge.kind labels: no check. "
        "The own passage of any other question is a known answer (mine.known_first).",
    )
    shards: int = Field(default=2, ge=1, le=10_000, description="Number of shards, generated independently.")
    model: str | None = Field(default=None, description="Model name on the server; unset: judge.model.")
    prompt: str = Field(default="general", description=PROMPT)
    temperature: float = Field(default=0.7, ge=0, le=2, description="Each request has its own seed.")

    @model_validator(mode="after")
    def _ordered(self) -> "GenerateSpec":
        if self.min_words > self.max_words:
            raise ValueError(f"min_words ({self.min_words}) is above max_words ({self.max_words})")
        return self


class RetrieveSpec(Section):
    """Which passages are candidates for a query."""

    range_max: int = Field(default=50, ge=2, description="Candidates per query, best first.")
    shards: int = Field(
        default=1,
        ge=1,
        le=10_000,
        description="Parts of the corpus, encoded and searched independently: on a cluster, the number of GPUs.",
    )


class MineSpec(Section):
    """How training examples are mined from judged candidates."""

    rule: Literal["nearest", "rank"] = Field(
        default="nearest",
        description="nearest: the highest-ranked relevant passage with the highest-ranked irrelevant ones. It is also "
        "the definition of positives and negatives in arXiv 2512.08088: grade 4 against grades 1 and 2. "
        "rank: relevant passages ranked low with irrelevant passages ranked high.",
    )
    positive_grade: int | None = Field(
        default=None, ge=2, le=4, description="Minimum grade of a positive; unset: 3 with rank, 4 with nearest."
    )
    known_first: bool = Field(
        default=True,
        description="Rule nearest: if a query has known answers, only they are its positives, whatever their grade. "
        "false: the grade alone decides.",
    )
    positive_rank: int = Field(default=10, ge=0, description="Rule rank: a hard positive is ranked below this.")
    negative_grade: int = Field(
        default=2, ge=1, le=2, description="Maximum grade of a negative; a passage graded 3 or 4 can never be one."
    )
    negative_rank: int = Field(default=5, ge=1, description="Rule rank: a hard negative has this rank or a better one.")
    num_negatives: int = Field(default=1, ge=1, le=32, description="Negatives per example, besides in-batch ones.")
    num_positives: int = Field(default=1, ge=1, description="Positives per query. Each one becomes an example.")
    relative_margin: float | None = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="Prefer negatives whose score is this share below the positive's (0.05: at most 95% of its score, "
        "as in NV-Retriever); null: any score.",
    )
    violating_grade: float | None = Field(
        default=1.5,
        ge=1,
        le=3,
        description="A negative whose score is above the limit of relative_margin is used like the others if its "
        "expected grade is at most this value. 2 includes all negatives of the judge labels, 3 those of any judge; "
        "null: none.",
    )
    neighbours: int = Field(default=4, ge=1, description="Maximum examples with similar passages in a batch.")
    easy_per_hard: float | None = Field(default=None, ge=0, description="Easy examples per hard example; unset: all.")
    accumulate: bool = Field(default=False, description="Also train on the examples of earlier iterations.")
    title_pairs: int = Field(
        default=0,
        ge=0,
        description="Maximum number of additional training pairs of a title and a passage, per iteration. They are "
        "drawn from the complete corpus, validation and test topics included. A title that repeats a held-out question "
        "gives no pair. 0: none.",
    )

    @property
    def min_positive_grade(self) -> int:
        """The minimum grade of a positive: ``positive_grade``, or the default of the rule."""
        return self.positive_grade or (3 if self.rule == "rank" else 4)

    @property
    def uses_known_answers(self) -> bool:
        """Whether known answers are positives whatever their grade. The rule rank uses grades only."""
        return self.known_first and self.rule != "rank"


class FinetuneSpec(Section):
    """How the model is fine-tuned on the examples."""

    loss: Literal["multiple-negatives", "cached-multiple-negatives", "triplet", "distill", "graded"] = Field(
        default="multiple-negatives",
        description="multiple-negatives: contrastive, with mined and in-batch negatives; "
        "cached-multiple-negatives: the same, with gradient caching for large batches; "
        "triplet: cosine distance; distill: KL divergence to the judge's expected grades; "
        "graded: multiple-negatives plus kl_weight times distill. With these two and mine.rule nearest, the "
        "mine.num_negatives negatives are spread over the ranks instead of the highest-ranked; set at least 4.",
    )
    train: Literal["both", "query"] = Field(
        default="both",
        description="query: the trained model embeds queries only. The base model embeds passages, so that an index "
        "stays valid.",
    )
    start: Literal["previous", "base"] = Field(
        default="previous",
        description="Start from the previous iteration's weights or the base model's. An iteration whose validation "
        "score is below that of the model it started from counts as skipped: the next one uses that model instead.",
    )
    learning_rate: float = Field(default=1e-4, gt=0, description="Peak learning rate.")
    epochs: float = Field(default=1.0, gt=0, description="Passes over the examples.")
    batch_size: int = Field(default=32, ge=2, description="Examples per batch.")
    gpus: int = Field(
        default=1,
        ge=1,
        le=16,
        description="GPUs of one machine to train on. A batch of batch_size examples is divided among them, so the "
        "result is that of one GPU except for rounding errors and, with dropout, other masks.",
    )
    warmup: float = Field(default=0.1, ge=0, lt=1, description="Share of the steps with a rising learning rate.")
    scale: float = Field(default=20.0, gt=0, description="multiple-negatives: inverse temperature.")
    margin: float = Field(default=0.1, gt=0, description="triplet: margin in cosine distance.")
    kl_weight: float = Field(default=1.0, ge=0, description="graded: weight of the KL divergence.")
    matryoshka: list[Annotated[int, Field(ge=8)]] | None = Field(
        default=None,
        min_length=1,
        description="Numbers of dimensions, e.g. [256, 128, 64], to which embeddings can be truncated with less loss "
        "(Matryoshka, arXiv 2205.13147): the loss of a batch is its mean over these and the complete embeddings; "
        "unset: the complete embeddings only.",
    )
    rehearsal: float = Field(
        default=10.0,
        ge=0,
        description="Pseudo-rehearsal against forgetting: weight of a loss term, the mean cosine distance between the "
        "embeddings of random-word texts under the trained and the base model.",
    )
    anchor: float = Field(
        default=0.0,
        ge=0,
        description="Weight of a loss term against forgetting: the mean cosine distance between the embeddings of the "
        "batch's passages under the trained and the base model, plus a fifth of that distance for its queries.",
    )
    l2_sp: float = Field(
        default=0.0,
        ge=0,
        description="Decoupled L2-SP (arXiv 1802.01483): each step moves the weights back by this times the learning "
        "rate, as a share of their distance to the base model's weights.",
    )
    soup_size: int = Field(
        default=1,
        ge=1,
        le=16,
        description="Trainings that start from the same model with seeds seed, seed + 1, ...; their weights are "
        "averaged (model soup, arXiv 2203.05482).",
    )
    max_tokens: int | None = Field(default=128, ge=16, description="Maximum tokens in training; null: the model's.")
    dropout: bool = Field(default=False, description="Train with the model's own dropout.")
    weight_decay: float = Field(default=0.0, ge=0, description="Weight decay of the optimizer.")
    checkpoint_every: int = Field(default=20, ge=1, description="Steps between checkpoints.")
    report_to: list[str] = Field(default=[], description="Trackers, as transformers names them, e.g. [tensorboard].")

    @property
    def uses_grades(self) -> bool:
        """Whether the loss fits the judge's expected grades, and so needs the column ``label``."""
        return self.loss in ("distill", "graded")

    @property
    def embeds_batches_with_base(self) -> bool:
        """Whether the loss of a batch needs its embeddings by the base model."""
        return self.anchor > 0 or self.train == "query"

    @property
    def needs_base(self) -> bool:
        """Whether the loss needs the base model: for a batch, or for the random texts of pseudo-rehearsal."""
        return self.embeds_batches_with_base or self.rehearsal > 0

    @field_validator("matryoshka")
    @classmethod
    def _distinct_dims(cls, value: list[int] | None) -> list[int] | None:
        if repeated := [dims for dims in value or () if (value or []).count(dims) > 1]:
            raise ValueError(f"{repeated[0]} is in the list twice: remove one")
        return value and sorted(value, reverse=True)

    @model_validator(mode="after")
    def _needs_no_cache(self) -> "FinetuneSpec":
        if self.train == "query" and self.loss == "cached-multiple-negatives":
            raise ValueError(
                "train query needs no gradient caching, because passages have no gradient: set loss to "
                "multiple-negatives, or train to both"
            )
        return self


class RetentionSpec(Section):
    """A BEIR data set of another domain, and the maximum loss of quality on it."""

    path: str = Field(
        description="builtin:general, or a folder or .tar.xz, .tar.gz or .zip archive: a path, or s3://bucket/key."
    )
    max_loss: float = Field(default=0.02, ge=0, le=1, description="Maximum relative loss of nDCG@10 against the base.")
    confidence: float = Field(
        default=0.8,
        ge=0.5,
        lt=1,
        description="Level of the loss's one-sided bound, which must be within max_loss. 0.5: about the loss itself.",
    )
    report: list[str] = Field(
        default=[],
        description="More sets, as in path. They have no part in the choice of the model, and are only reported.",
    )

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, values: Any) -> Any:
        """The short form ``retention: FOLDER``."""
        return {"path": values} if isinstance(values, str) else values

    @field_validator("report", mode="before")
    @classmethod
    def _one_path(cls, value: Any) -> Any:
        """The short form ``report: FOLDER``."""
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _distinct_names(self) -> "RetentionSpec":
        names = [retention_name(path) for path in (self.path, *self.report)]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"path and report have two sets named {repeated[0]}; rename a folder or remove one")
        return self


def retention_name(path: str) -> str:
    """The name of a retention set in tables and in the report: its folder or archive without the ending."""
    name = path.rstrip("/").rpartition("/")[2]
    return name.removesuffix(".zip").removesuffix(".xz").removesuffix(".gz").removesuffix(".tar")


class GateSpec(Section):
    """Minimum improvement over the base model for a run to succeed."""

    mrr: float = Field(default=0.15, alias="mrr@5", description="Minimum relative gain in MRR@5 on test.")
    dcg: float = Field(default=0.15, alias="dcg@5", description="Minimum relative gain in DCG@5 on test.")
    bound: Literal["point", "lower"] = Field(
        default="point",
        description="What must reach the minimum. point: the gain; lower: the lower end of its 95% interval.",
    )
    p_value: float = Field(default=0.05, gt=0, le=1, description="Maximum p-value of the paired test on MRR@5.")


class EvaluateSpec(Section):
    """How the models are evaluated and compared."""

    blends: list[Annotated[float, Field(gt=0, lt=1)]] | None = Field(
        default=None,
        description="Weights of the tuned model in blends with the base (WiSE-FT); empty: none. Unset: 0.3, 0.6 and "
        "0.8; but for an iteration that forgets too much, only the largest weight within the limit of retention.",
    )
    retention: RetentionSpec | None = Field(default=None, description="Check for forgetting; unset: no check.")
    judge: EvaluationJudgeSpec | None = Field(
        default=None,
        description="A second LLM that grades the first 10 passages of every candidate on validation and test; unset: "
        "none. With source.kind documents, its grades choose the model and are the result.",
    )
    smaller: bool = Field(
        default=True,
        description="Report the quality of smaller embeddings on test: truncated, int8 and binary. They are computed "
        "from the embeddings of the base model and the chosen model.",
    )
    gate: GateSpec = GateSpec()
    resamples: int = Field(default=10_000, ge=100, description="Resamples of the bootstrap and the permutation test.")

    @field_validator("blends")
    @classmethod
    def _distinct_blends(cls, value: list[float] | None) -> list[float] | None:
        names = [f"{weight:g}" for weight in value or ()]  # as in the names of models
        if repeated := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{repeated[0]} is in the list twice: remove one")
        return value

    @property
    def searches_blend(self) -> bool:
        """Whether validate searches for the tuned weight of an iteration's blend."""
        return self.blends is None and self.retention is not None


class ResourcesSpec(Section):
    """How a run is executed. These settings change results only by rounding errors (bf16 or float32, batch sizes)."""

    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: cuda if there is a GPU.")
    encode_tokens: int | None = Field(
        default=None,
        ge=256,
        description="Tokens per encoding batch; unset: 4,096 on a CPU, 4,096 to 65,536 on a GPU, by its memory.",
    )
    judge_workers: int = Field(default=2, ge=1, description="Judge shards that run at the same time on this machine.")
    judge_urls: list[str] = Field(
        default=[], description="llm: servers of the same model, e.g. [http://localhost:8000]."
    )
    judge_concurrency: int = Field(default=64, ge=1, description="llm: requests in flight per server and shard.")
    judge_timeout: float = Field(default=60.0, gt=0, description="llm: timeout of a request in seconds.")
    judge_window: int | None = Field(
        default=None, ge=256, description="llm: context length in tokens, if the servers do not report it."
    )
    judge_key_file: str | None = Field(default=None, description="llm: API key file; unset: PYRITE_JUDGE_API_KEY.")
    first_judge_urls: list[str] = Field(default=[], description="cascade: servers of judge.first, if it needs any.")
    first_judge_key_file: str | None = Field(
        default=None, description="cascade: API key file of first_judge_urls; unset: PYRITE_FIRST_JUDGE_API_KEY."
    )
    evaluate_judge_urls: list[str] = Field(
        default=[],
        description="evaluate.judge: servers of its model. judge_concurrency, judge_timeout and judge_window apply to "
        "them too.",
    )
    evaluate_judge_key_file: str | None = Field(
        default=None, description="evaluate.judge: API key file; unset: PYRITE_EVALUATE_JUDGE_API_KEY."
    )

    @field_validator("judge_urls", "first_judge_urls", "evaluate_judge_urls")
    @classmethod
    def _normalized(cls, urls: list[str], info: ValidationInfo) -> list[str]:
        prefix: Any = str(info.field_name).removesuffix("judge_urls")
        return normalize_server_urls(urls, JudgeServers((), prefix=prefix).set_key)

    def servers(self, prefix: Prefix, model_setting: str) -> JudgeServers:
        """The servers whose settings start with ``prefix``. ``model_setting``: the setting with their model's name."""
        return JudgeServers(
            tuple(getattr(self, f"{prefix}judge_urls")),
            self.judge_concurrency,
            self.judge_timeout,
            None if prefix == "first_" else self.judge_window,
            getattr(self, f"{prefix}judge_key_file"),
            model_setting=model_setting,
            prefix=prefix,
        )
