"""The section on a second judge, of a run with an answer key and of a run on documents."""

from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pyrite import tables
from pyrite.evaluation.judged import judged_per_query
from pyrite.evaluation.selection import BASE
from pyrite.report import terminal
from pyrite.report.assessment import Assessment
from pyrite.report.data import ReportInputs, build
from pyrite.report.pages import report_page
from report.report_factory import make
from report.test_pages import Page
from report.test_terminal import printed

SECOND = {"judge": {"model": "umpire-7b"}}
DOCUMENTS = {"kind": "documents", "path": "data"}


def judged_inputs(**settings: Any) -> ReportInputs:
    """A run whose second judge gives grade 4 to the tuned model's first passages, and grade 2 to all others.

    One passage of the base model has no grade. The first query has no relevant passage.
    """
    inputs = make(
        evaluate=SECOND,
        generate={"model": "writer"},
        judge={"kind": "llm", "model": "trainer"},
        resources={"evaluate_judge_urls": ["http://h:1"]},
        **settings,
    )
    ranked = inputs.rankings.to_pylist()
    first = min(row["query_id"] for row in ranked)
    best = {
        (row["query_id"], row["passage_id"])
        for row in ranked
        if row["model"] == "iteration-2" and row["rank"] == 1 and row["query_id"] != first
    }
    pairs = {(row["query_id"], row["passage_id"]) for row in ranked}
    tuned = {(row["query_id"], row["passage_id"]) for row in ranked if row["model"] != BASE}
    pairs.remove(min(pairs - tuned))
    grades = [{"query_id": q, "passage_id": p, "grade": 4 if (q, p) in best else 2} for q, p in sorted(pairs)]
    judgments = pa.Table.from_pylist(grades, tables.JUDGMENTS)
    test = [
        {"model": model, "split": "test", **row}
        for model in sorted(set(inputs.rankings["model"].to_pylist()))
        for row in judged_per_query(inputs.rankings.filter(pc.equal(inputs.rankings["model"], model)), judgments)
    ]
    counts = {"1": 0, "2": len(pairs) - len(best), "3": 0, "4": len(best)}
    summary = {"model": "umpire-7b", "prompt": "general", "judge": "ab" * 32, "pairs": len(pairs) + 1, "missing": 1}
    assessment = Assessment(
        {**summary, "grades": counts}, judgments, inputs.val, pa.Table.from_pylist(test, tables.PER_QUERY)
    )
    return replace(inputs, assessment=assessment)


def test_with_an_answer_key_the_second_judge_adds_a_section() -> None:
    inputs = judged_inputs()
    report = build(inputs)
    plain = build(replace(inputs, assessment=None))
    assert {**report, "judged": None} == plain, "headline, gate and choice are those of the answer key"
    judged = report["judged"]
    assert not judged["chooses"]
    assert judged["means"]["iteration-2"]["mrr@5"] == 59 / 60
    assert judged["without_relevant"] == 1
    assert judged["unjudged"] == {"base": 1 / 600} | dict.fromkeys(set(report["models"]) - {"base"}, 0.0)
    page = report_page(report)
    assert page.index("Results on test by the answer key") < page.index("Results on test by a second judge")
    assert "These grades had no part in the choice of the model." in page
    assert "For 1 of 60 test queries, no judged passage has grade 3 or 4" in page
    assert "59 of grade 4" in page
    assert "Judged by umpire-7b" not in report["verdict"]
    Page(page)  # every element is closed


def test_on_documents_the_second_judge_is_the_result() -> None:
    inputs = judged_inputs(source=DOCUMENTS)
    report = build(inputs)
    chosen = report["judged"]["comparisons"][report["chosen"]]
    assert report["gate"]["checks"][0]["observed"] == chosen["mrr@5"]["relative"]
    assert report["gate"]["checks"][0]["observed"] != report["comparisons"][report["chosen"]]["mrr@5"]["relative"]
    assert "Relevance was judged by umpire-7b; there is no answer key." in report["verdict"]
    page = report_page(report)
    assert page.index("Results on test by a second judge") < page.index("Results on test by known answers")
    assert "The training data was judged by trainer, prompt general." in page
    assert page.count('class="gate"') == 1
    Page(page)


def test_judged_results_fit_into_80_columns() -> None:
    report = build(judged_inputs(source=DOCUMENTS, iterations=3))
    text = printed(terminal.judged(report))
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "Judged by umpire-7b, 60 test queries" in text
    assert terminal.judged(build(make())) is None
