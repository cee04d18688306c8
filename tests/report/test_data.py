"""The content of the report: means, gate and verdict."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pyrite.evaluation.scoring import METRICS
from pyrite.evaluation.selection import Choice
from pyrite.report.data import ReportInputs, build
from report.report_factory import SMALLER, make


def with_base_chosen(inputs: ReportInputs) -> ReportInputs:
    """The same run with the base model as its choice. Then no blend is scored on test."""
    reasons = dict.fromkeys(inputs.choice.reasons, "rejected: for this test")
    unblended = pc.invert(pc.match_substring(inputs.test.column("model"), "@"))
    return replace(inputs, choice=Choice("base", reasons), test=inputs.test.filter(unblended))


def test_report_is_deterministic_json() -> None:
    first, second = (json.dumps(build(make()), allow_nan=False) for _ in range(2))
    assert first == second


def test_means_and_changes_agree_with_per_query_values() -> None:
    report = build(make())
    for model, metrics in report["per_query"].items():
        assert set(metrics) == set(METRICS)
        for metric, values in metrics.items():
            assert len(values) == 60
            assert report["means"]["test"][model][metric] == pytest.approx(np.mean(list(values.values())))
            if model != "base":
                base = report["means"]["test"]["base"][metric]
                found = report["comparisons"][model][metric]
                assert found["relative"] == pytest.approx(report["means"]["test"][model][metric] / base - 1)


def test_test_scores_fewer_models_than_validation() -> None:
    report = build(make())
    assert set(report["models"]) == {"base", "iteration-1", "iteration-2", report["chosen"]}
    assert len(report["means"]["val"]) == 7


@pytest.mark.parametrize(
    ("gate", "passed"),
    [
        ({}, True),
        ({"mrr@5": 9}, False),
        ({"dcg@5": 9}, False),
        ({"p_value": 1e-9}, False),
    ],
)
def test_gate_requires_both_gains_and_significance(gate: dict[str, float], passed: bool) -> None:
    report = build(make(evaluate={"gate": gate}))
    assert report["gate"]["passed"] is passed
    assert report["gate"]["passed"] == all(check["met"] for check in report["gate"]["checks"])
    assert report["verdict"].startswith("Adapted: " if passed else "Adapted, but the gate")


def test_gate_can_require_the_lower_end_of_the_interval() -> None:
    report = build(make())
    mrr = report["comparisons"][report["chosen"]]["mrr@5"]
    between = (mrr["relative"] + mrr["relative_interval"]["low"]) / 2
    gate = {"mrr@5": between, "dcg@5": 0}
    assert build(make(evaluate={"gate": gate}))["gate"]["passed"]
    missed = build(make(evaluate={"gate": {**gate, "bound": "lower"}}))
    assert missed["gate"]["checks"][0]["observed"] == mrr["relative_interval"]["low"]
    assert not missed["gate"]["passed"]
    assert "Missed: MRR@5 at the lower bound +" in missed["verdict"]


def test_intervals_are_clustered_by_topic() -> None:
    inputs = make()
    report, single = build(inputs), build(replace(inputs, clusters={}))
    for found, clusters in (report, 20), (single, 60):
        assert found["test"]["clusters"] == found["comparisons"]["iteration-1"]["mrr@5"]["clusters"] == clusters
    assert report["comparisons"] != single["comparisons"]
    assert (report["test"]["effective_clusters"], single["test"]["effective_clusters"]) == (20, 60)
    one_large = {f"test-{number:03d}": "large" for number in range(30)}  # 60**2 / (30**2 + 30 * 1**2)
    assert build(replace(inputs, clusters=one_large))["test"]["effective_clusters"] == 4
    assert report["query_types"] != single["query_types"]


def test_types_with_fewer_than_20_queries_have_no_interval() -> None:
    sizes = {row["queries"]: row["interval"] is not None for row in build(make(queries=120))["query_types"]}
    assert sizes == {size: size >= 20 for size in sizes}
    assert set(sizes.values()) == {True, False}


def test_reported_retention_sets_have_no_part_in_the_choice() -> None:
    retention = {"path": "data/cisi", "report": ["data/other.tar.xz"]}
    report = build(make(evaluate={"retention": retention}))
    assert [(row["set"], row["selects"]) for row in report["retention_sets"]] == [("cisi", True), ("other", False)]
    for row in report["retention_sets"]:
        assert row["relative_interval"]["low"] <= row["bound"]
        assert row["queries"] == 80
    assert build(make(evaluate={"retention": "data/cisi"}))["candidates"] == report["candidates"]
    assert build(make(retention=False))["retention_sets"] == []


def test_smaller_embeddings_are_compared_with_their_models_float32() -> None:
    inputs = make()
    report = build(inputs)
    found = report["smaller"]
    assert (found["queries"], len(found["rows"])) == (report["test"]["queries"], len(SMALLER))
    for row, (name, dims, size, on_disk, share) in zip(found["rows"], SMALLER, strict=True):
        assert (row["name"], row["dims"], row["bytes"], row["rescored_bytes"]) == (name, dims, size, on_disk)
        assert list(row["comparisons"]) == ["base", report["chosen"]]
        for model, metrics in row["comparisons"].items():
            for metric, compared in metrics.items():
                assert compared["base"] == pytest.approx(report["means"]["test"][model][metric])
                assert compared["relative"] == pytest.approx(share - 1)
    assert build(replace(inputs, smaller=inputs.smaller.slice(0, 0)))["smaller"] is None


def test_verdict_names_values_interval_and_gate() -> None:
    report = build(make())
    mrr = report["comparisons"][report["chosen"]]["mrr@5"]
    assert f"from {mrr['base']:.3f} to {mrr['other']:.3f}".replace("0.", ".") in report["verdict"]
    assert "95% confidence interval +" in report["verdict"]
    assert report["verdict"].endswith("The gate of +15% is met.")


def test_verdict_for_the_base_names_the_best_tuned_model() -> None:
    report = build(with_base_chosen(make()))
    assert report["verdict"].startswith("Not adapted: ")
    assert "the base model is used" in report["verdict"]
    assert report["compared"] == "iteration-2"
    assert report["gate"]["passed"] is False


def test_verdict_reports_a_gain_that_test_does_not_confirm() -> None:
    inputs = make()
    worse = replace(inputs, test=_swapped(inputs.test, inputs.choice.name))
    report = build(worse)
    assert report["verdict"].startswith("Not confirmed: ")
    assert "fell from" in report["verdict"]


def _swapped(test: pa.Table, model: str) -> pa.Table:
    """The test table with the values of the base model and of ``model`` exchanged."""
    names = {"base": model, model: "base"}
    column = [names.get(name, name) for name in test.column("model").to_pylist()]
    return test.set_column(0, "model", pa.array(column))


def test_report_is_built_with_only_the_base_model() -> None:
    inputs = with_base_chosen(make())
    only = inputs.test.filter(pc.equal(inputs.test.column("model"), "base"))
    report = build(replace(inputs, test=only))
    assert report["compared"] == "base"
    assert report["gained"] == report["lost"] == []
    assert "only the base model" in report["verdict"]


def test_report_is_built_without_manifests() -> None:
    report = build(replace(make(), manifests={}))
    assert report["steps"]["rows"] == report["loss"] == report["data"]["dropped"] == []
    assert report["data"]["passages"] == 200
