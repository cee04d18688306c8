"""RunSpec: the one description of a run. A YAML file, command-line overrides and a custom resource share it.

Everything under ``resources`` decides how a run is done, and what comes out differs by rounding alone, so that finished
steps stay good; all other settings are part of what a step's result depends on.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from pyrite.addresses import normalize_server_urls


class Section(BaseModel):
    """A part of the RunSpec: unknown keys are refused, values never change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# --- where questions and documents come from -------------------------------------------------------------------------


class SampleSource(Section):
    """The built-in practice corpus of everyday medicine."""

    kind: Literal["sample"] = "sample"


class MedquadSource(Section):
    """MedQuAD's XML: a folder, or the .tar.xz, .tar.gz or .zip as published."""

    kind: Literal["medquad"] = "medquad"
    path: str = Field(description="folder or archive; a path, or s3://bucket/key")
    collections: list[str] = Field(
        default=[],
        description="sources to keep, e.g. [NIDDK, NINDS], as each document names its own; empty: all",
    )


class QaSource(Section):
    """Questions with their answers, one a row, in a JSONL or Parquet file (or a folder of them)."""

    kind: Literal["jsonl", "parquet"]
    path: str = Field(description="file, or folder of files; a path, or s3://bucket/key")
    question: str = Field(default="question", description="column that holds the question")
    answer: str = Field(default="answer", description="column that holds the answer")
    id: str | None = Field(default=None, description="column of a unique id; without it, the row's number")
    topic: str | None = Field(
        default=None, description="column to split by; without it, each question is its own topic"
    )
    type: str | None = Field(default=None, description="column of the question's type, for the report")
    title: str | None = Field(default=None, description="column of the answer's title")


class BeirSource(Section):
    """A BEIR folder, or an archive of one: corpus.jsonl, queries.jsonl and qrels/{train,dev,test}.tsv."""

    kind: Literal["beir"] = "beir"
    path: str = Field(description="folder, or .tar.xz, .tar.gz or .zip of it; a path, or s3://bucket/key")


class HuggingfaceSource(Section):
    """A data set of questions and answers read through the ``datasets`` library: a hub id, or a local folder."""

    kind: Literal["huggingface"] = "huggingface"
    id: str = Field(description="data set id, or a local path")
    name: str | None = Field(default=None, description="configuration of the data set")
    revision: str | None = Field(default=None, description="commit of the data set; pin it")
    split: str = Field(default="train", description="which split to read")
    question: str = "question"
    answer: str = "answer"
    topic: str | None = None
    type: str | None = None
    title: str | None = None


class DocumentsSource(Section):
    """Documents without questions: a folder of .txt and .md files, or a JSONL or Parquet file, a document a row."""

    kind: Literal["documents"] = "documents"
    path: str = Field(description="folder or file; a path, or s3://bucket/key")
    text: str = Field(default="text", description="rows: column that holds the document's text")
    title: str | None = Field(default=None, description="rows: column of its title; of a file, its name")
    topic: str | None = Field(
        default=None, description="rows: column to split by; without it, each document is its own topic"
    )
    id: str | None = Field(default=None, description="rows: column of a unique id; without it, the row's number")


SourceSpec = Annotated[
    SampleSource | MedquadSource | QaSource | BeirSource | HuggingfaceSource | DocumentsSource,
    Field(discriminator="kind"),
]

# --- the model and the stages -----------------------------------------------------------------------------------------


class ModelSpec(Section):
    """The model that is adapted."""

    base: str = Field(
        default="builtin:all-MiniLM-L6-v2",
        description="folder, hub id, or builtin:all-MiniLM-L6-v2 (packaged)",
    )
    revision: str | None = Field(default=None, description="commit of a hub model; pin it")
    query_prompt: str | None = Field(
        default=None,
        description="put before every query; unset: what the model's own configuration or family says",
    )
    passage_prompt: str | None = Field(default=None, description="put before every passage; unset: likewise")
    max_tokens: int | None = Field(
        default=None, ge=16, description="cut texts at this many tokens; unset: the model's window"
    )
    trust_remote_code: bool = Field(default=False, description="run code that comes with a hub model")


class SplitSpec(Section):
    """Shares of the topics. They must add up to 1."""

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
    """Documents to passages, and questions to splits."""

    min_chars: int = Field(
        default=500, ge=1, description="a passage is at least this long where its document allows it"
    )
    max_chars: int = Field(default=1000, ge=50, description="a passage is never longer than this, in characters")
    split: SplitSpec = SplitSpec()
    max_train_queries: int | None = Field(
        default=None, ge=1, description="keep this many training queries, drawn by seed; unset: all"
    )

    @model_validator(mode="after")
    def _ordered(self) -> "PrepareSpec":
        if self.min_chars > self.max_chars:
            raise ValueError(f"min_chars ({self.min_chars}) is above max_chars ({self.max_chars})")
        return self


class GenerateSpec(Section):
    """Questions that an LLM makes, where the data has none or few (arXiv 2512.08088; InPars, arXiv 2202.05144).

    The LLM is asked at resources.judge_urls, as the judge is.
    """

    queries: int = Field(default=2000, ge=3, description="questions to ask for; filters leave fewer")
    share_from_passages: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="share that is made from a passage, which is then known to answer it; the others are made after "
        "examples, are tied to no passage, and serve for training alone",
    )
    shots: int = Field(default=5, ge=1, description="examples shown for a question that is tied to no passage")
    min_words: int = Field(default=4, ge=1, description="a shorter question is dropped")
    max_words: int = Field(default=40, ge=1, description="a longer one too")
    answerable_grade: int | None = Field(
        default=3,
        ge=2,
        le=4,
        description="drop a question whose own passage the judge grades lower; unset: do not ask. "
        "With judge.kind labels there is nobody to ask",
    )
    shards: int = Field(default=2, ge=1, le=10_000, description="parts that are made independently")
    model: str | None = Field(default=None, description="the model's name on the server; unset: judge.model")
    prompt: str = Field(
        default="general",
        description="general, medical, finance, legal or programming, or the path of a prompt file",
    )
    temperature: float = Field(
        default=0.7, ge=0, le=2, description="each request has its own seed, so 0.7 is repeatable where the server is"
    )

    @model_validator(mode="after")
    def _ordered(self) -> "GenerateSpec":
        if self.min_words > self.max_words:
            raise ValueError(f"min_words ({self.min_words}) is above max_words ({self.max_words})")
        return self


class RetrieveSpec(Section):
    """Which candidates are looked at."""

    range_max: int = Field(default=50, ge=2, description="candidates per query")


class SampleSpec(Section):
    """Which ranks of a query are judged where not all are (arXiv 2512.08088: the top 5, and 10 from deeper ranks)."""

    top: int = Field(default=5, ge=1, description="judge the first so many ranks")
    deeper: int = Field(default=10, ge=0, description="and draw so many from below, by seed")
    decay: float = Field(default=0.1, gt=0, description="a rank's chance falls by exp(-decay) from rank to rank")


class JudgeSpec(Section):
    """Who grades the pairs, and which pairs are worth grading."""

    kind: Literal["labels", "llm"] = Field(
        default="labels",
        description="labels: the data set's own answer key; llm: an LLM behind an OpenAI-compatible server "
        "(its address: resources.judge_urls)",
    )
    shards: int = Field(default=2, ge=1, le=10_000, description="parts that are judged independently")
    model: str | None = Field(default=None, description="llm: the model's name on the server")
    prompt: str = Field(
        default="general",
        description="llm: general, medical, finance, legal or programming, or the path of a prompt file",
    )
    rank_window: int | None = Field(
        default=None,
        ge=2,
        description="judge this many ranks of a query; null: all. Unset: all, but 10 with kind llm where neither "
        "patience nor sample is set, or 10 more than mine.positive_rank with mine.rule rank",
    )
    patience: int | None = Field(
        default=None, ge=1, description="leave a query after so many passages in a row graded below 3; unset: never"
    )
    sample: SampleSpec | None = Field(default=None, description="judge a sample of a query's ranks; unset: all")
    max_missing: float = Field(
        default=0.02, ge=0, le=1, description="share of a shard's pairs that may stay ungraded before the shard stops"
    )

    @model_validator(mode="after")
    def _named(self) -> "JudgeSpec":
        if self.kind == "llm" and not self.model:
            raise ValueError("kind llm needs model: the name under which the server serves it")
        return self


class MineSpec(Section):
    """How judged candidates become training examples."""

    rule: Literal["nearest", "rank", "paper"] = Field(
        default="nearest",
        description="nearest: the highest-ranked relevant passage against the highest-ranked irrelevant ones; "
        "rank: relevant but ranked low, irrelevant but ranked high; "
        "paper: the highest grade against grades 1 and 2 (arXiv 2512.08088)",
    )
    positive_grade: int | None = Field(
        default=None,
        ge=2,
        le=4,
        description="least grade of a positive; unset: the rule's own (rank 3, others 4)",
    )
    positive_rank: int = Field(default=10, ge=0, description="rank rule: a hard positive is ranked below this")
    negative_grade: int = Field(default=2, ge=1, le=3, description="greatest grade of a negative; 3 and above never")
    negative_rank: int = Field(default=5, ge=1, description="rank rule: a hard negative is ranked at or above this")
    num_negatives: int = Field(default=1, ge=1, le=32, description="negatives per example, beside those of its batch")
    num_positives: int = Field(default=1, ge=1, description="positives per query, each its own example")
    relative_margin: float | None = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="prefer negatives that score this share below the positive (0.05: at most 95% of its score, "
        "NV-Retriever); unset: any score",
    )
    neighbours: int = Field(
        default=4, ge=1, description="put up to so many examples that are each other's hard negatives in one batch"
    )
    easy_per_hard: float | None = Field(
        default=None, ge=0, description="easy examples kept for each hard one, against forgetting; unset: all"
    )
    accumulate: bool = Field(default=False, description="keep the examples of earlier iterations")

    @field_validator("negative_grade")
    @classmethod
    def _never_relevant(cls, value: int) -> int:
        if value >= 3:
            raise ValueError("a passage graded 3 or above is relevant and can never be a negative; use 1 or 2")
        return value


class FinetuneSpec(Section):
    """How the model is trained on the examples."""

    loss: Literal["multiple-negatives", "cached-multiple-negatives", "triplet", "distill"] = Field(
        default="multiple-negatives",
        description="multiple-negatives: with the mined negatives and the batch's; "
        "cached-multiple-negatives: the same for large batches in little memory; "
        "triplet: cosine distance; distill: KL divergence to the judge's expected grades",
    )
    start: Literal["previous", "base"] = Field(default="previous", description="which weights an iteration starts from")
    learning_rate: float = Field(default=1e-4, gt=0)
    epochs: float = Field(default=1.0, gt=0)
    batch_size: int = Field(default=32, ge=2)
    warmup: float = Field(default=0.1, ge=0, lt=1, description="share of the steps")
    scale: float = Field(default=20.0, gt=0, description="multiple-negatives: inverse temperature")
    margin: float = Field(default=0.1, gt=0, description="triplet: margin in cosine distance")
    max_tokens: int | None = Field(
        default=128, ge=16, description="cut texts at this many tokens in training only; unset: the model's window"
    )
    dropout: bool = Field(default=False, description="train with the model's own dropout")
    weight_decay: float = Field(default=0.0, ge=0)
    checkpoint_every: int = Field(default=20, ge=1, description="steps between checkpoints")
    report_to: list[str] = Field(default=[], description="trackers, as transformers names them, e.g. [tensorboard]")


class RetentionSpec(Section):
    """A BEIR folder from another field, and how much may be lost there."""

    path: str = Field(description="folder, or .tar.xz, .tar.gz or .zip of it; a path, or s3://bucket/key")
    max_loss: float = Field(default=0.02, ge=0, le=1, description="share of base nDCG@10 that a candidate may lose")

    @model_validator(mode="before")
    @classmethod
    def _folder_alone(cls, values: Any) -> Any:
        """The short form that a run file may use: ``retention: another-field``."""
        return {"path": values} if isinstance(values, str) else values


class GateSpec(Section):
    """When a run counts as a success. Shares of the base model's value."""

    mrr: float = Field(default=0.15, alias="mrr@5", description="least relative gain in MRR@5 on test")
    dcg: float = Field(default=0.15, alias="dcg@5", description="least relative gain in DCG@5 on test")
    p_value: float = Field(default=0.05, gt=0, le=1, description="greatest p-value of the paired test on MRR@5")

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class EvaluateSpec(Section):
    """How the models are compared."""

    blends: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        default=[0.3, 0.6],
        description="shares of tuned weights averaged with the base (WiSE-FT); empty: none",
    )
    retention: RetentionSpec | None = None
    gate: GateSpec = GateSpec()
    resamples: int = Field(default=10_000, ge=100, description="bootstrap and permutation draws")


class ResourcesSpec(Section):
    """How a run is done on this machine. What comes out differs by rounding alone: bf16 or float32, other batches."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    encode_tokens: int = Field(default=4096, ge=256, description="tokens in one encoding batch")
    search_block: int = Field(default=65_536, ge=1, description="passages held in memory at a time while searching")
    judge_workers: int = Field(default=2, ge=1, description="judge shards that run at once on this machine")
    judge_urls: Annotated[list[str], AfterValidator(normalize_server_urls)] = Field(
        default=[], description="llm: addresses of servers that serve the same model, e.g. [http://localhost:8000]"
    )
    judge_concurrency: int = Field(default=64, ge=1, description="llm: most pairs in flight per server and shard")
    judge_timeout: float = Field(default=60.0, gt=0, description="llm: seconds to wait for one answer")
    judge_window: int | None = Field(
        default=None,
        ge=256,
        description="llm: tokens of the model's window, where its servers do not tell; longer passages are cut to fit",
    )
    judge_key_file: str | None = Field(
        default=None, description="llm: file that holds the API key; unset: PYRITE_JUDGE_API_KEY, or none"
    )


class RunSpec(Section):
    """The one description of a run."""

    name: str = Field(description="names the run's folder in the store: letters, digits, dot, dash")
    domain: str = Field(default="general", description="for the report and the model card")
    source: SourceSpec
    model: ModelSpec = ModelSpec()
    iterations: int = Field(default=2, ge=1, le=100)
    seed: int = Field(default=0, ge=0)
    prepare: PrepareSpec = PrepareSpec()
    generate: GenerateSpec | None = Field(default=None, description="unset: no questions are made")
    retrieve: RetrieveSpec = RetrieveSpec()
    judge: JudgeSpec = JudgeSpec()
    mine: MineSpec = MineSpec()
    finetune: FinetuneSpec = FinetuneSpec()
    evaluate: EvaluateSpec = EvaluateSpec()
    resources: ResourcesSpec = ResourcesSpec()

    @model_validator(mode="before")
    @classmethod
    def _few_where_they_cost(cls, values: Any) -> Any:
        """A language model judges 10 ranks where nothing is said: a fifth of the pairs, and as good a model.

        docs/judging.md. The rank rule's hard positives stand below mine.positive_rank, so there the 10 count from it.
        """
        judge, mine = (values.get("judge"), values.get("mine")) if isinstance(values, dict) else (None, None)
        if not isinstance(judge, dict) or judge.get("kind") != "llm":
            return values
        if "rank_window" in judge or judge.get("patience") or judge.get("sample"):
            return values
        above = 0
        if isinstance(mine, dict) and mine.get("rule") == "rank":
            above = mine.get("positive_rank", MineSpec.model_fields["positive_rank"].default)
        return {**values, "judge": {**judge, "rank_window": above + 10 if isinstance(above, int) else 10}}

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?", value):
            raise ValueError("use 1 to 63 lower-case letters, digits, dots and dashes, starting with a letter or digit")
        return value

    @model_validator(mode="after")
    def _fitting(self) -> "RunSpec":
        if self.finetune.loss == "triplet" and self.mine.num_negatives != 1:
            raise ValueError(
                f"finetune.loss triplet takes one negative: set mine.num_negatives to 1, not {self.mine.num_negatives}"
            )
        if self.generate and not (self.generate.model or self.judge.model):
            raise ValueError(
                "generate needs generate.model (or judge.model): the name under which the server serves it"
            )
        if self.generate and self.judge.kind == "labels" and self.generate.share_from_passages < 1:
            raise ValueError(
                "judge.kind labels cannot grade a question that is tied to no passage: set "
                f"generate.share_from_passages to 1, not {self.generate.share_from_passages:g}, or judge.kind to llm"
            )
        return self

    def settings(self, *names: str) -> dict[str, Any]:
        """The named settings (dotted: "model.max_tokens") as plain JSON values."""
        everything = self.model_dump(mode="json", by_alias=True)
        found = {}
        for name in names:
            value: Any = everything
            for part in name.split("."):
                value = value[part]
            found[name] = value
        return found
