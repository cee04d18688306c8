"""RunSpec: the settings of a run, from a YAML file, command-line overrides or a custom resource.

The settings under ``resources`` decide how a run is executed. They change results only by rounding errors, so finished
steps stay valid when they change. All other settings can change the result of a step.
"""

from pyrite.spec.judge import (
    CascadeJudgeSpec,
    CommonJudgeSpec,
    EvaluationJudgeSpec,
    JudgeSpec,
    LabelsJudgeSpec,
    LlmJudgeSpec,
    NoiseSpec,
    RerankerJudgeSpec,
    ServerJudgeSpec,
)
from pyrite.spec.run import ConfiguredJudge, RunSpec
from pyrite.spec.section import Section
from pyrite.spec.servers import JudgeServers
from pyrite.spec.source import (
    BeirSource,
    DocumentsSource,
    HuggingfaceSource,
    MedquadSource,
    QaSource,
    SampleSource,
    SourceSpec,
    StackexchangeSource,
)
from pyrite.spec.stages import (
    EvaluateSpec,
    FinetuneSpec,
    GateSpec,
    GenerateSpec,
    MineSpec,
    ModelSpec,
    PrepareSpec,
    ResourcesSpec,
    RetentionSpec,
    RetrieveSpec,
    SplitSpec,
)

__all__ = [
    "BeirSource",
    "CascadeJudgeSpec",
    "CommonJudgeSpec",
    "ConfiguredJudge",
    "DocumentsSource",
    "EvaluateSpec",
    "EvaluationJudgeSpec",
    "FinetuneSpec",
    "GateSpec",
    "GenerateSpec",
    "HuggingfaceSource",
    "JudgeServers",
    "JudgeSpec",
    "LabelsJudgeSpec",
    "LlmJudgeSpec",
    "MedquadSource",
    "MineSpec",
    "ModelSpec",
    "NoiseSpec",
    "PrepareSpec",
    "QaSource",
    "RerankerJudgeSpec",
    "ResourcesSpec",
    "RetentionSpec",
    "RetrieveSpec",
    "RunSpec",
    "SampleSource",
    "Section",
    "ServerJudgeSpec",
    "SourceSpec",
    "SplitSpec",
    "StackexchangeSource",
]
