"""Imported once by the process that steps are forked from, so that no step waits for these imports (7 s) again."""

import transformers.trainer  # noqa: F401

import pyrite.stages.evaluate
import pyrite.stages.finetune
import pyrite.stages.generate
import pyrite.stages.judge
import pyrite.stages.mine
import pyrite.stages.prepare
import pyrite.stages.retrieve
import pyrite.stages.validate  # noqa: F401
