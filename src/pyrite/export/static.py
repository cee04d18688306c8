"""The static format: one embedding per token of the vocabulary, made with model2vec.

It is another model, which ignores the order of words. It embeds much faster, and finds much less.
"""

import contextlib
import io
import logging
from pathlib import Path

from pyrite.errors import UserError
from pyrite.export.layout import read_settings

#: skeletoken is what model2vec distils with. Its extra "distill" would also install an older version of transformers.
PACKAGES = ("model2vec", "skeletoken")

FILES = ("static",)

#: model2vec's name of each pooling that the plain layout may have.
_POOLING = {"mean_tokens": "mean", "cls_token": "first", "lasttoken": "last"}


def write(source: Path, out: Path) -> None:
    """Distil the model in ``source`` to the folder static below ``out``. MiniLM's vocabulary takes one to two minutes.

    Without the usual PCA, the embeddings can be compared with the model's. docs/serving.md has what it costs.

    Raises:
        UserError: model2vec does not support the model's tokenizer.
    """
    from model2vec.distill import distill

    for name in ("skeletoken", "model2vec"):  # they warn of special tokens and of the window, which are right
        logging.getLogger(name).setLevel(logging.ERROR)
    settings = read_settings(source)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
            model = distill(str(source), pca_dims=None, pooling=_POOLING[settings["pooling"]])
    except (ValueError, TypeError) as error:
        raise UserError(
            f"model2vec cannot make a static model of this model ({error}). Leave static out of --to."
        ) from error
    model.max_length = settings["window"]
    # model2vec notes the folder that it read, which is a temporary one.
    model.config["tokenizer_name"] = ""
    model.base_model_name = None
    model.save_pretrained(out / FILES[0])
    (out / FILES[0] / "README.md").unlink(missing_ok=True)  # the export's own card describes it
