"""Where documents and questions come from: one file a kind, and ``open_source`` that picks it."""

from pyrite.sources.base import Source
from pyrite.sources.beir import Beir
from pyrite.sources.documents import Documents
from pyrite.sources.huggingface import Huggingface
from pyrite.sources.medquad import Medquad
from pyrite.sources.qa import Qa
from pyrite.sources.remote import brought, is_remote
from pyrite.sources.sample import Sample
from pyrite.spec import (
    BeirSource,
    DocumentsSource,
    HuggingfaceSource,
    MedquadSource,
    QaSource,
    SampleSource,
    SourceSpec,
)


def open_source(spec: SourceSpec) -> Source:
    """The source that ``spec`` describes. Nothing is read yet, but what lies on S3 is brought here.

    Raises:
        UserError: it lies on S3, and is not there.
    """
    if not isinstance(spec, SampleSource | HuggingfaceSource) and is_remote(spec.path):
        spec = spec.model_copy(update={"path": str(brought(spec.path, "source.path"))})
    match spec:
        case SampleSource():
            return Sample(spec)
        case MedquadSource():
            return Medquad(spec)
        case QaSource():
            return Qa(spec)
        case BeirSource():
            return Beir(spec)
        case HuggingfaceSource():
            return Huggingface(spec)
        case DocumentsSource():
            return Documents(spec)
