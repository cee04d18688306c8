"""RunSpec: the settings of a run, from a YAML file, command-line overrides or a custom resource.

The settings under ``resources`` decide how a run is executed. They change results only by rounding errors, so finished
steps stay valid when they change. All other settings can change the result of a step.
"""

import re
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from pyrite.addresses import normalize_server_urls

_PROMPT = "general, medical, finance, legal or programming, or the path of a prompt file."


class Section(BaseModel):
    """A section of the RunSpec. Unknown keys are errors; values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


# --- source: questions and documents ----------------------------------------------------------------------------------


class SampleSource(Section):
    """The built-in sample corpus about everyday medicine."""

    kind: Literal["sample"] = "sample"


class MedquadSource(Section):
    """MedQuAD's XML files: a folder, or the published .tar.xz, .tar.gz or .zip archive."""

    kind: Literal["medquad"] = "medquad"
    path: str = Field(description="Folder or archive: a path, or s3://bucket/key.")
    collections: list[str] = Field(default=[], description="Collections to read, e.g. [NIDDK, NINDS]; empty: all.")


class _QuestionColumns(Section):
    question: str = Field(default="question", description="Column with the question.")
    answer: str = Field(default="answer", description="Column with the answer.")
    topic: str | None = Field(default=None, description="Column with the topic; unset: one topic per question.")
    type: str | None = Field(default=None, description="Column with the question's type, for the report.")
    title: str | None = Field(default=None, description="Column with the answer's title.")


class QaSource(_QuestionColumns):
    """Question-answer pairs, one per row, in a JSONL or Parquet file or a folder of such files."""

    kind: Literal["jsonl", "parquet"]
    path: str = Field(description="File, or folder of files: a path, or s3://bucket/key.")
    id: str | None = Field(default=None, description="Column with a unique id; unset: the row number.")


class BeirSource(Section):
    """A BEIR data set: a folder or archive with corpus.jsonl, queries.jsonl and qrels/{train,dev,test}.tsv."""

    kind: Literal["beir"] = "beir"
    path: str = Field(description="Folder, or .tar.xz, .tar.gz or .zip archive: a path, or s3://bucket/key.")


class HuggingfaceSource(_QuestionColumns):
    """Question-answer pairs read with the ``datasets`` library, from the Hugging Face hub or a local folder."""

    kind: Literal["huggingface"] = "huggingface"
    id: str = Field(description="Data set id on the hub, or a local path.")
    name: str | None = Field(default=None, description="Configuration of the data set.")
    revision: str | None = Field(default=None, description="Commit of the data set. Pin it for reproducible runs.")
    split: str = Field(default="train", description="Split to read.")


class DocumentsSource(Section):
    """Documents without questions: a folder of .txt and .md files, or a JSONL or Parquet file of one per row."""

    kind: Literal["documents"] = "documents"
    path: str = Field(description="Folder or file: a path, or s3://bucket/key.")
    text: str = Field(default="text", description="Rows: column with the text.")
    title: str | None = Field(default=None, description="Rows: column with the title. Files: their name.")
    topic: str | None = Field(default=None, description="Rows: column with the topic; unset: one topic per document.")
    id: str | None = Field(default=None, description="Rows: column with a unique id; unset: the row number.")


SourceSpec = Annotated[
    SampleSource | MedquadSource | QaSource | BeirSource | HuggingfaceSource | DocumentsSource,
    Field(discriminator="kind"),
]


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
    split: SplitSpec = SplitSpec()
    max_train_queries: int | None = Field(
        default=None, ge=1, description="Maximum training queries, drawn by seed; unset: all."
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
        description="Drop a question if the judge grades its own passage lower; null, or judge.kind labels: no check.",
    )
    shards: int = Field(default=2, ge=1, le=10_000, description="Number of shards, generated independently.")
    model: str | None = Field(default=None, description="Model name on the server; unset: judge.model.")
    prompt: str = Field(default="general", description=_PROMPT)
    temperature: float = Field(default=0.7, ge=0, le=2, description="Each request has its own seed.")

    @model_validator(mode="after")
    def _ordered(self) -> "GenerateSpec":
        if self.min_words > self.max_words:
            raise ValueError(f"min_words ({self.min_words}) is above max_words ({self.max_words})")
        return self


class RetrieveSpec(Section):
    """Which passages are candidates for a query."""

    range_max: int = Field(default=50, ge=2, description="Candidates per query, best first.")


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
        """Kind, model and prompt of the judge, for reports. A setting that the judge does not have is None."""
        return {name: getattr(self, name, None) for name in ("kind", "model", "prompt")}

    @property
    def label(self) -> str:
        """The judge's identity as text."""
        return f"{self.server_model}, prompt {self.identity['prompt']}" if self.server_model else self.kind

    @property
    def server_model(self) -> str | None:
        """Name of the model that the judge's server has to serve; None if it needs no server."""
        model: str | None = self.identity["model"]
        return model


class LabelsJudgeSpec(CommonJudgeSpec):
    """The data set's own relevance labels as the judge. Free, and unaware of answers that are not labelled."""

    kind: Literal["labels"] = "labels"


class LlmJudgeSpec(CommonJudgeSpec):
    """An LLM behind an OpenAI-compatible server (resources.judge_urls) as the judge."""

    needs_server: ClassVar[bool] = True
    reads_text: ClassVar[bool] = True
    # A fifth of the pairs, with the same quality: docs/judging.md, "Judging fewer pairs".
    default_window: ClassVar[int | None] = 10

    kind: Literal["llm"] = "llm"
    model: str = Field(description="llm: model name on the server.")
    prompt: str = Field(default="general", description=f"llm: {_PROMPT}")

    @model_validator(mode="before")
    @classmethod
    def _require_model(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("model"):
            raise ValueError("kind llm needs model: the name under which the server serves it")
        return values


#: The judges. To add one, add its settings above, its class to this union, and a file ``judges/<kind>.py``.
JudgeSpec = Annotated[LabelsJudgeSpec | LlmJudgeSpec, Field(discriminator="kind")]

_JUDGES: dict[str, type[CommonJudgeSpec]] = {
    v.model_fields["kind"].default: v for v in get_args(get_args(JudgeSpec)[0])
}
_JUDGE_SETTINGS = {name for variant in _JUDGES.values() for name in variant.model_fields}


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
    positive_rank: int = Field(default=10, ge=0, description="Rule rank: a hard positive is ranked below this.")
    negative_grade: int = Field(default=2, ge=1, le=3, description="Maximum grade of a negative, 1 or 2.")
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
    neighbours: int = Field(default=4, ge=1, description="Maximum examples with similar passages in a batch.")
    easy_per_hard: float | None = Field(default=None, ge=0, description="Easy examples per hard example; unset: all.")
    accumulate: bool = Field(default=False, description="Also train on the examples of earlier iterations.")

    @field_validator("negative_grade")
    @classmethod
    def _never_relevant(cls, value: int) -> int:
        if value >= 3:
            raise ValueError("a passage graded 3 or above is relevant and can never be a negative; use 1 or 2")
        return value


class FinetuneSpec(Section):
    """How the model is fine-tuned on the examples."""

    loss: Literal["multiple-negatives", "cached-multiple-negatives", "triplet", "distill"] = Field(
        default="multiple-negatives",
        description="multiple-negatives: contrastive, with mined and in-batch negatives; "
        "cached-multiple-negatives: the same, with gradient caching for large batches; "
        "triplet: cosine distance; distill: KL divergence to the judge's expected grades.",
    )
    start: Literal["previous", "base"] = Field(
        default="previous", description="Start from the previous iteration's weights or the base model's."
    )
    learning_rate: float = Field(default=1e-4, gt=0, description="Peak learning rate.")
    epochs: float = Field(default=1.0, gt=0, description="Passes over the examples.")
    batch_size: int = Field(default=32, ge=2, description="Examples per batch.")
    warmup: float = Field(default=0.1, ge=0, lt=1, description="Share of the steps with a rising learning rate.")
    scale: float = Field(default=20.0, gt=0, description="multiple-negatives: inverse temperature.")
    margin: float = Field(default=0.1, gt=0, description="triplet: margin in cosine distance.")
    max_tokens: int | None = Field(default=128, ge=16, description="Maximum tokens in training; null: the model's.")
    dropout: bool = Field(default=False, description="Train with the model's own dropout.")
    weight_decay: float = Field(default=0.0, ge=0, description="Weight decay of the optimizer.")
    checkpoint_every: int = Field(default=20, ge=1, description="Steps between checkpoints.")
    report_to: list[str] = Field(default=[], description="Trackers, as transformers names them, e.g. [tensorboard].")


class RetentionSpec(Section):
    """A BEIR data set of another domain, and the maximum loss of quality on it."""

    path: str = Field(description="Folder, or .tar.xz, .tar.gz or .zip archive: a path, or s3://bucket/key.")
    max_loss: float = Field(default=0.02, ge=0, le=1, description="Maximum relative loss of nDCG@10 against the base.")

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, values: Any) -> Any:
        """The short form ``retention: FOLDER``."""
        return {"path": values} if isinstance(values, str) else values


class GateSpec(Section):
    """Minimum improvement over the base model for a run to succeed."""

    mrr: float = Field(default=0.15, alias="mrr@5", description="Minimum relative gain in MRR@5 on test.")
    dcg: float = Field(default=0.15, alias="dcg@5", description="Minimum relative gain in DCG@5 on test.")
    p_value: float = Field(default=0.05, gt=0, le=1, description="Maximum p-value of the paired test on MRR@5.")


class EvaluateSpec(Section):
    """How the models are evaluated and compared."""

    blends: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        default=[0.3, 0.6], description="Weights of the tuned model in blends with the base (WiSE-FT); empty: none."
    )
    retention: RetentionSpec | None = Field(default=None, description="Check for forgetting; unset: no check.")
    gate: GateSpec = GateSpec()
    resamples: int = Field(default=10_000, ge=100, description="Resamples of the bootstrap and the permutation test.")


class ResourcesSpec(Section):
    """How a run is executed. These settings change results only by rounding errors (bf16 or float32, batch sizes)."""

    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: cuda if there is a GPU.")
    encode_tokens: int = Field(default=4096, ge=256, description="Tokens per encoding batch.")
    search_block: int = Field(default=65_536, ge=1, description="Passages in memory at a time during search.")
    judge_workers: int = Field(default=2, ge=1, description="Judge shards that run at the same time on this machine.")
    judge_urls: Annotated[list[str], AfterValidator(normalize_server_urls)] = Field(
        default=[], description="llm: servers of the same model, e.g. [http://localhost:8000]."
    )
    judge_concurrency: int = Field(default=64, ge=1, description="llm: requests in flight per server and shard.")
    judge_timeout: float = Field(default=60.0, gt=0, description="llm: timeout of a request in seconds.")
    judge_window: int | None = Field(
        default=None, ge=256, description="llm: context length in tokens, if the servers do not report it."
    )
    judge_key_file: str | None = Field(default=None, description="llm: API key file; unset: PYRITE_JUDGE_API_KEY.")


class RunSpec(Section):
    """All settings of a run."""

    name: str = Field(description="Name of the run and of its folder in the store: letters, digits, dots, dashes.")
    domain: str = Field(default="general", description="Name of the domain, for the report and the model card.")
    source: SourceSpec = Field(description="Where questions and documents come from.")
    model: ModelSpec = ModelSpec()
    iterations: int = Field(default=2, ge=1, le=100, description="Rounds of retrieve, judge, mine and fine-tune.")
    seed: int = Field(default=0, ge=0, description="Seed of all random draws.")
    prepare: PrepareSpec = PrepareSpec()
    generate: GenerateSpec | None = Field(default=None, description="Generate questions with an LLM; unset: none.")
    retrieve: RetrieveSpec = RetrieveSpec()
    judge: JudgeSpec = Field(
        default=LabelsJudgeSpec(),
        description="The judge of (query, passage) pairs. kind labels (default): the data set's own relevance labels; "
        "kind llm: an LLM behind an OpenAI-compatible server. Settings of another kind are ignored.",
    )
    mine: MineSpec = MineSpec()
    finetune: FinetuneSpec = FinetuneSpec()
    evaluate: EvaluateSpec = EvaluateSpec()
    resources: ResourcesSpec = ResourcesSpec()

    @model_validator(mode="before")
    @classmethod
    def _judge_defaults(cls, values: Any) -> Any:
        """Drop the settings of other judges, and set the default of ``judge.rank_window``.

        ``judge.kind=labels`` can thus override a run file for an LLM judge. A dropped judge.model becomes
        generate.model, if that is unset. mine.rule rank finds hard positives below mine.positive_rank, so its window
        covers that many ranks more.
        """
        if not isinstance(values, dict) or not isinstance(values.get("judge"), dict):
            return values
        judge = {"kind": "labels", **values["judge"]}
        variant = _JUDGES.get(str(judge["kind"]))
        if variant is None:
            return values
        judge = {
            name: value for name, value in judge.items() if name in variant.model_fields or name not in _JUDGE_SETTINGS
        }
        if variant.default_window and "rank_window" not in judge and not judge.get("patience"):
            mine, skipped = values.get("mine"), 0
            if isinstance(mine, dict) and mine.get("rule") == "rank":
                skipped = mine.get("positive_rank", MineSpec.model_fields["positive_rank"].default)
            judge["rank_window"] = variant.default_window + (skipped if isinstance(skipped, int) else 0)
        generate, model = values.get("generate"), values["judge"].get("model")
        if isinstance(generate, dict) and model and "model" not in judge:
            values = {**values, "generate": {**generate, "model": generate.get("model") or model}}
        return {**values, "judge": judge}

    @field_validator("name")
    @classmethod
    def _valid_name(cls, value: str) -> str:
        if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?", value):
            raise ValueError("use 1 to 63 lower-case letters, digits, dots and dashes, starting with a letter or digit")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "RunSpec":
        if self.finetune.loss == "triplet" and self.mine.num_negatives != 1:
            raise ValueError(
                f"finetune.loss triplet takes one negative: set mine.num_negatives to 1, not {self.mine.num_negatives}"
            )
        if self.generate and not self.generator_model:
            raise ValueError(
                "generate needs generate.model (or judge.model): the name under which the server serves it"
            )
        if self.generate and not self.judge.reads_text and self.generate.share_from_passages < 1:
            raise ValueError(
                f"judge.kind {self.judge.kind} cannot grade a question that has no known passage: set "
                f"generate.share_from_passages to 1, not {self.generate.share_from_passages:g}, or judge.kind to llm"
            )
        return self

    @property
    def generator_model(self) -> str | None:
        """Name of the model that generates questions; None if no questions are generated or no model is named."""
        return (self.generate.model or self.judge.server_model) if self.generate else None

    def settings(self, *names: str) -> dict[str, Any]:
        """The named settings ("model.max_tokens") as JSON values.

        A setting of another judge, such as "judge.model" with kind labels, is None.
        """
        everything = self.model_dump(mode="json", by_alias=True)
        found = {}
        for name in names:
            section, _, rest = name.partition(".")
            value: Any = everything[section]
            if section == "judge" and rest in _JUDGE_SETTINGS:
                value = {rest: None, **value}
            for part in filter(None, rest.split(".")):
                value = value[part]
            found[name] = value
        return found
