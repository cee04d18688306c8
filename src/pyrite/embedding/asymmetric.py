"""Saves a model that embeds queries and passages with different encoders, for finetune.train query."""

from pathlib import Path

from pyrite.embedding import models
from pyrite.spec import ModelSpec


def save_query_encoder(query: Path, base: Path, spec: ModelSpec, folder: Path) -> None:
    """Write to ``folder`` a model that embeds queries as ``query`` does, and passages as ``base`` does.

    ``encode_query`` and ``encode_document`` of sentence-transformers select the encoder.

    Raises:
        UserError: a folder does not load as a sentence-transformers model.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Router

    encoders = [models.load(each, base, spec, "cpu", for_training=True) for each in (query, base)]
    router = Router.for_query_document(*(list(each) for each in encoders))
    model = SentenceTransformer(
        modules=[router],
        device="cpu",
        prompts=encoders[0].prompts,
        similarity_fn_name=encoders[0].similarity_fn_name,
    )
    model.save_pretrained(str(folder), create_model_card=False, safe_serialization=True)
