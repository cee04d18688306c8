"""All settings of a run, and the rules that span several sections."""

import re
from typing import Any, NamedTuple

from pydantic import Field, field_validator, model_validator

from pyrite.spec.judge import (
    JUDGE_SETTINGS,
    JUDGES,
    CascadeJudgeSpec,
    CommonJudgeSpec,
    JudgeSpec,
    LabelsJudgeSpec,
    LlmJudgeSpec,
)
from pyrite.spec.section import Section
from pyrite.spec.servers import JudgeServers, Prefix
from pyrite.spec.source import SourceSpec
from pyrite.spec.stages import (
    EvaluateSpec,
    FinetuneSpec,
    GenerateSpec,
    MineSpec,
    ModelSpec,
    PrepareSpec,
    ResourcesSpec,
    RetrieveSpec,
)


class ConfiguredJudge(NamedTuple):
    """A judge that grades pairs by itself, so no cascade.

    Attributes:
        section: the section of the run file with its settings, such as judge or judge.first, for messages.
        spec: the settings in that section.
        servers: the servers of its model, if it needs any.
    """

    section: str
    spec: CommonJudgeSpec
    servers: JudgeServers


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
        "kind llm: an LLM behind an OpenAI-compatible server; kind reranker: a cross-encoder behind a scoring API; "
        "kind cascade: a cheap judge, and a second one for the pairs that it cannot decide. Settings of another kind "
        "are ignored, except noise and confusion, which are an error, and all of them in a cascade.",
    )
    mine: MineSpec = MineSpec()
    finetune: FinetuneSpec = FinetuneSpec()
    evaluate: EvaluateSpec = EvaluateSpec()
    resources: ResourcesSpec = ResourcesSpec()

    @model_validator(mode="before")
    @classmethod
    def _judge_defaults(cls, values: Any) -> Any:
        """Drop the settings of other judges, except simulated errors, and set the default of ``judge.rank_window``.

        ``judge.kind=labels`` can thus override a run file for an LLM judge. A dropped judge.model becomes
        generate.model, if that is unset. mine.rule rank finds hard positives below mine.positive_rank, so its window
        covers that many ranks more.
        """
        if not isinstance(values, dict) or not isinstance(values.get("judge"), dict):
            return values
        judge = {"kind": "labels", **values["judge"]}
        variant = JUDGES.get(str(judge["kind"]))
        if variant is None:
            return values
        if errors := [name for name in ("noise", "confusion") if judge.get(name) and name not in variant.model_fields]:
            raise ValueError(
                f"judge.{errors[0]} simulates errors of the judge labels, not of kind {judge['kind']}: set it to null, "
                "or judge.kind to labels"
            )
        others = JUDGE_SETTINGS - variant.model_fields.keys()
        if variant is CascadeJudgeSpec and (
            name := next((name for name in judge if name in others and judge[name]), "")
        ):
            raise ValueError(
                f"judge.{name} has no effect in a cascade: set it in judge.first or judge.second, and set judge.{name} "
                "to null"
            )
        judge = {name: value for name, value in judge.items() if name not in others}
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
        if self.finetune.uses_grades and self.mine.num_negatives == 1:
            raise ValueError(
                f"finetune.loss {self.finetune.loss} fits the grades of several negatives: set mine.num_negatives to 4 "
                "or more, not 1"
            )
        if self.finetune.gpus > 1 and self.resources.device == "cpu":
            raise ValueError(
                f"finetune.gpus is {self.finetune.gpus}, but resources.device is cpu: set finetune.gpus to 1, or "
                "resources.device to auto"
            )
        if self.judge.stop and (self.mine.rule != "nearest" or self.stratifies_negatives):
            name, value = ("finetune.loss", self.finetune.loss) if self.stratifies_negatives else ("mine.rule", "rank")
            raise ValueError(
                f"judge.stop example cannot skip a passage with {name} {value}, whose examples depend on all grades of "
                "a query: set judge.stop to null, and set judge.rank_window or judge.patience to judge fewer pairs"
            )
        first = self.judge.first if isinstance(self.judge, CascadeJudgeSpec) else None
        if first and first.needs_server and not self.resources.first_judge_urls:
            raise ValueError(
                f"judge.first has kind {first.kind}, but resources.first_judge_urls is empty: list its servers. Pyrite "
                "does not start them, also not on Kubernetes"
            )
        if self.mine.title_pairs and self.prepare.context == "none":
            raise ValueError(
                f"mine.title_pairs is {self.mine.title_pairs}, but prepare.context none leaves passages without a "
                "title: set prepare.context to title, or mine.title_pairs to 0"
            )
        if self.generate and not self.generator_model:
            raise ValueError(
                "generate needs generate.model (or judge.model): the name under which the server serves it"
            )
        if self.generate and not self.judge.reads_text and self.generate.share_from_passages < 1:
            kind = f"{self.main_judge.section}.kind"
            raise ValueError(
                f"{kind} {self.main_judge.spec.kind} cannot grade a question that has no known passage: set "
                f"generate.share_from_passages to 1, not {self.generate.share_from_passages:g}, or {kind} to llm"
            )
        if self.evaluate.judge and not self.resources.evaluate_judge_urls:
            raise ValueError(
                f"evaluate.judge has no server: list the servers of {self.evaluate.judge.model} in "
                "resources.evaluate_judge_urls, such as [http://localhost:8001]. The chart's vLLM server is the "
                "training judge's"
            )
        answerable, positive = self.generate and self.generate.answerable_grade, self.mine.min_positive_grade
        if answerable and answerable < positive and self.judge.reads_text and not self.mine.uses_known_answers:
            raise ValueError(
                f"generate.answerable_grade {answerable} accepts questions that mining cannot use, because a positive "
                f"needs grade {positive}: set generate.answerable_grade to {positive}, mine.positive_grade to "
                f"{answerable}, or use mine.rule nearest with mine.known_first true"
            )
        return self

    @property
    def stratifies_negatives(self) -> bool:
        """Whether mining spreads negatives over the ranks: for a loss that fits grades. Rule rank has its own ranks."""
        return self.finetune.uses_grades and self.mine.rule == "nearest"

    @property
    def main_judge(self) -> ConfiguredJudge:
        """The judge; of a cascade, the second one."""
        if isinstance(self.judge, CascadeJudgeSpec):
            return self._configured("judge.second", self.judge.second, "")
        return self._configured("judge", self.judge, "")

    @property
    def first_judge(self) -> ConfiguredJudge | None:
        """The first judge of a cascade; None without one."""
        if not isinstance(self.judge, CascadeJudgeSpec):
            return None
        return self._configured("judge.first", self.judge.first, "first_")

    @property
    def evaluation_judge(self) -> ConfiguredJudge | None:
        """The judge ``evaluate.judge``; None if the run has none."""
        second = self.evaluate.judge
        if second is None:
            return None
        judge = LlmJudgeSpec(model=second.model, prompt=second.prompt, max_missing=second.max_missing)
        return self._configured("evaluate.judge", judge, "evaluate_")

    def _configured(self, section: str, judge: CommonJudgeSpec, prefix: Prefix) -> ConfiguredJudge:
        return ConfiguredJudge(section, judge, self.resources.servers(prefix, f"{section}.model"))

    @property
    def judges_known_answers(self) -> bool:
        """Whether the known answers of training queries are all judged. Otherwise, a sample checks the judge."""
        return not (self.judge.stop and self.mine.uses_known_answers)

    @property
    def generator_model(self) -> str | None:
        """Name of the model that generates questions; None if no questions are generated or no model is named."""
        return (self.generate.model or self.judge.chat_model) if self.generate else None

    @property
    def generator_servers(self) -> JudgeServers:
        """The servers of the model that generates questions: those of the judge."""
        own_model = self.generate and self.generate.model
        return self.resources.servers("", "generate.model" if own_model else self.main_judge.servers.model_setting)

    @property
    def chooses_by_judge(self) -> bool:
        """Whether the grades of ``evaluate.judge`` choose the model and are the result, not the answer key.

        In documents without questions, the only known answer is the passage that a question was generated from.
        """
        return self.evaluate.judge is not None and self.source.kind == "documents"

    @property
    def data_seed(self) -> int:
        """The seed of the splits and of all drawn or generated data: ``prepare.seed``; if that is unset, ``seed``."""
        return self.seed if self.prepare.seed is None else self.prepare.seed

    def settings(self, *names: str) -> dict[str, Any]:
        """The named settings ("model.max_tokens") as JSON values.

        A setting of another judge, such as "judge.model" with kind labels, is None, and so are those of a section
        that is not set, such as "evaluate.retention.max_loss".
        """
        everything = self.model_dump(mode="json", by_alias=True)
        everything["prepare"]["seed"] = self.data_seed  # so that another seed does not repeat the data steps
        found = {}
        for name in names:
            section, _, rest = name.partition(".")
            value: Any = everything[section]
            if section == "judge" and rest in JUDGE_SETTINGS:
                # Only the stage judge, which depends on the complete section, uses the first judge of a cascade.
                second = value["second"] if value["kind"] == "cascade" else {}
                value = {rest: None, **value, **second}
            for part in filter(None, rest.split(".")):
                value = None if value is None else value[part]
            found[name] = value
        return found
