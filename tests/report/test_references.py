"""The reference rows of the report: BM25, and base and chosen model without context."""

from dataclasses import replace

import pytest

from pyrite.evaluation.scoring import METRICS
from pyrite.report.data import build
from pyrite.report.pages import report_page
from pyrite.report.references import REFERENCES
from report.report_factory import make


def test_report_compares_the_chosen_model_with_references() -> None:
    report = build(make())
    assert {row["name"]: row["label"] for row in report["references"]} == REFERENCES
    chosen, base = (report["means"]["test"][model] for model in (report["chosen"], "base"))
    shares = {"base-without-context": (0.8, base), "chosen-without-context": (0.9, chosen), "bm25": (0.8, chosen)}
    for row in report["references"]:
        share, of = shares[row["name"]]
        for metric in METRICS:
            compared = row["comparisons"][metric]
            assert row["means"][metric] == compared["base"] == pytest.approx(share * of[metric])
            assert compared["other"] == pytest.approx(chosen[metric])
            assert compared["relative_interval"]["low"] == pytest.approx(compared["relative"], abs=0.5)
            assert compared["clusters"] == report["test"]["clusters"]
    page = report_page(report)
    assert all(f">{label}</th>" in page for label in REFERENCES.values())


@pytest.mark.parametrize("better", [set(), {"mrr@5"}, {"dcg@5"}, {"ndcg@10"}])
def test_verdict_names_a_bm25_that_is_better(better: set[str]) -> None:
    inputs = make()
    rows = [
        {**row, "value": row["value"] * (1.3 if row["metric"] in better else 1)}
        for row in inputs.references.to_pylist()
    ]
    report = build(replace(inputs, references=inputs.references.from_pylist(rows, inputs.references.schema)))
    named = report["verdict"].partition("BM25 is better: ")[2]
    assert {metric for metric in ("mrr@5", "dcg@5") if METRICS[metric].label in named} == better & {"mrr@5", "dcg@5"}
