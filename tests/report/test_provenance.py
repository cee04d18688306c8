"""The settings, steps and data set that a report shows."""

import hashlib
from dataclasses import replace

import numpy as np
import pyarrow as pa

from pyrite.report.data import build
from pyrite.report.provenance import CorpusFacts
from report.report_factory import make


def test_settings_show_changes_from_the_defaults() -> None:
    changed = {row["path"]: row for row in build(make())["settings"]["changed"]}
    assert changed["finetune.learning_rate"]["value"] == "0.0003"
    assert changed["finetune.learning_rate"]["default"] == "0.0001"
    assert changed["source.collections"]["value"] == '["NIDDK", "NINDS"]'
    assert changed["evaluate.retention.max_loss"]["default"] is None
    assert "finetune.epochs" not in changed
    assert "finetune.epochs" in build(make())["settings"]["all"]


def test_shards_are_one_step_and_dropped_records_have_examples() -> None:
    report = build(make())
    judge = next(row for row in report["steps"]["rows"] if row["step"] == "judge-1")
    assert (judge["shards"], judge["seconds"]) == (2, 3.0)
    assert report["steps"]["finished"] == "2026-11-22T20:11:55+00:00"
    assert report["data"]["dropped"][0]["count"] == 31
    assert report["data"]["dropped"][0]["examples"][0] == "00000.xml#0"
    assert report["data"]["shared_topics"] == 0
    assert report["mining"][0]["mined"]["queries_without_examples.no relevant candidate"] == 21
    assert len(report["loss"][0]["points"]) == 56


def test_corpus_digest_and_median_equal_values_by_hand() -> None:
    facts = CorpusFacts.of(pa.array(["c", "a", "b"]), np.array([5, 1, 2], np.int32))
    assert facts == CorpusFacts(3, 2.0, hashlib.sha256(b"a\nb\nc\n").hexdigest())


def test_topics_in_two_splits_are_counted() -> None:
    inputs = make()
    leaking = inputs.queries.set_column(2, "topic", pa.array(["same"] * inputs.queries.num_rows, type=pa.string()))
    assert build(replace(inputs, queries=leaking))["data"]["shared_topics"] == 1


def test_notes_on_the_base_model_are_in_the_report() -> None:
    inputs = make()
    validated = {**inputs.manifests["prepare"], "summary": {"model_notes": ["mean pooling is a guess"]}}
    report = build(replace(inputs, manifests={**inputs.manifests, "validate-0": validated}))
    assert "mean pooling is a guess" in report["data"]["notes"]
