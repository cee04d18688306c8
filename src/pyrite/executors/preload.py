"""Imported once by the process that steps are forked from, so that no step waits for these imports (7 s) again."""

import datasets  # noqa: F401
import sentence_transformers  # noqa: F401
import transformers.trainer  # noqa: F401
