"""RunSpec: the settings of a run, from a YAML file, command-line overrides or a custom resource.

The settings under ``resources`` decide how a run is executed. They change results only by rounding errors, so finished
steps stay valid when they change. All other settings can change the result of a step.
"""

from pyrite.spec.judge import CommonJudgeSpec, JudgeSpec, LabelsJudgeSpec, LlmJudgeSpec, NoiseSpec
from pyrite.spec.run import RunSpec
from pyrite.spec.section import Section
from pyrite.spec.source import (
    BeirSource,
    DocumentsSource,
    HuggingfaceSource,
    MedquadSource,
    QaSource,
    SampleSource,
    SourceSpec,
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
    "CommonJudgeSpec",
    "DocumentsSource",
    "EvaluateSpec",
    "FinetuneSpec",
    "GateSpec",
    "GenerateSpec",
    "HuggingfaceSource",
    "JudgeSpec",
    "LabelsJudgeSpec",
    "LlmJudgeSpec",
    "MedquadSource",
    "MineSpec",
    "ModelSpec",
    "NoiseSpec",
    "PrepareSpec",
    "QaSource",
    "ResourcesSpec",
    "RetentionSpec",
    "RetrieveSpec",
    "RunSpec",
    "SampleSource",
    "Section",
    "SourceSpec",
    "SplitSpec",
]
