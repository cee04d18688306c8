import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pyrite.evaluation.scoring import METRICS
from pyrite.evaluation.selection import Choice
from pyrite.report.data import ReportInputs, build
from pyrite.report.formatting import duration
from pyrite.report.page import render
from pyrite.report.queries import shifts
from pyrite.tables import QRELS, RANKINGS
from report.report_factory import make


def keeping_base(inputs: ReportInputs) -> ReportInputs:
    """The same run, had it kept the base model; test has then seen no blend."""
    reasons = dict.fromkeys(inputs.choice.reasons, "out: made up")
    whole = pc.invert(pc.match_substring(inputs.test.column("model"), "@"))
    return replace(inputs, choice=Choice("base", reasons), test=inputs.test.filter(whole))


def test_is_plain_json_and_the_same_every_time() -> None:
    first, second = (json.dumps(build(make()), allow_nan=False) for _ in range(2))
    assert first == second


def test_means_and_changes_agree_with_the_per_query_values() -> None:
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


def test_test_knows_base_every_iteration_and_the_chosen_and_val_knows_all() -> None:
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
def test_gate_asks_for_both_gains_and_for_significance(gate: dict[str, float], passed: bool) -> None:
    report = build(make(evaluate={"gate": gate}))
    assert report["gate"]["passed"] is passed
    assert report["gate"]["passed"] == all(check["met"] for check in report["gate"]["checks"])
    assert report["verdict"].startswith("Adapted: " if passed else "Adapted, but the gate")


def test_verdict_names_every_number_that_matters() -> None:
    report = build(make())
    mrr = report["comparisons"][report["chosen"]]["mrr@5"]
    assert f"from {mrr['base']:.3f} to {mrr['other']:.3f}".replace("0.", ".") in report["verdict"]
    assert "95% interval +" in report["verdict"]
    assert report["verdict"].endswith("the gate of +15% is met.")


def test_verdict_when_the_base_is_kept_says_so_and_shows_the_best_that_was_tried() -> None:
    report = build(keeping_base(make()))
    assert report["verdict"].startswith("Not adapted: ")
    assert "the base model is kept" in report["verdict"]
    assert report["compared"] == "iteration-2"
    assert report["gate"]["passed"] is False


def test_verdict_when_test_does_not_confirm_val() -> None:
    inputs = make()
    worse = replace(inputs, test=_swapped(inputs.test, inputs.choice.name))
    report = build(worse)
    assert report["verdict"].startswith("Not confirmed: ")
    assert "fell from" in report["verdict"]


def _swapped(test: pa.Table, model: str) -> pa.Table:
    """The test table with the values of the base and of ``model`` exchanged."""
    names = {"base": model, model: "base"}
    column = [names.get(name, name) for name in test.column("model").to_pylist()]
    return test.set_column(0, "model", pa.array(column))


def test_a_run_of_nothing_but_the_base_still_has_a_report() -> None:
    inputs = keeping_base(make())
    only = inputs.test.filter(pc.equal(inputs.test.column("model"), "base"))
    report = build(replace(inputs, test=only))
    assert report["compared"] == "base"
    assert report["gained"] == report["lost"] == []
    assert "nothing but the base model" in report["verdict"]


def test_missing_manifests_leave_gaps_and_no_crash() -> None:
    report = build(replace(make(), manifests={}))
    assert report["steps"]["rows"] == report["loss"] == report["data"]["dropped"] == []
    assert report["data"]["passages"] == 200


def test_gained_and_lost_are_sorted_and_carry_the_passages_that_explain_them() -> None:
    report = build(make(gain=0.6))
    gains = [row["other"]["value"] - row["base"]["value"] for row in report["gained"]]
    losses = [row["other"]["value"] - row["base"]["value"] for row in report["lost"]]
    assert gains == sorted(gains, reverse=True)
    assert losses == sorted(losses)
    assert all(gain > 0 for gain in gains)
    assert all(loss < 0 for loss in losses)
    assert len(gains) <= 10
    for row in report["gained"] + report["lost"]:
        parts = [part for passage in row["passages"] for part in passage["parts"]]
        assert sorted(parts) == ["base", "other", "relevant"]
        assert all(passage["text"] for passage in row["passages"])
        assert all(passage["relevant"] for passage in row["passages"] if "relevant" in passage["parts"])


def test_rank_shifts_by_hand() -> None:
    # Relevant: a. Query 1: rank 3 to 1; query 2: 1 to 1; query 3: 1 to nowhere; query 4: nowhere under both.
    ranked = {
        ("base", "1"): "xya", ("tuned", "1"): "axy", ("base", "2"): "a", ("tuned", "2"): "a",
        ("base", "3"): "a", ("tuned", "3"): "x", ("base", "4"): "x", ("tuned", "4"): "x",
    }  # fmt: skip
    rows = [
        {"model": model, "split": "test", "query_id": query, "passage_id": passage, "rank": rank, "score": 0.5}
        for (model, query), passages in ranked.items()
        for rank, passage in enumerate(passages, 1)
    ]
    qrels = [{"query_id": query, "passage_id": "a", "grade": 1} for query in "1234"]
    found = shifts(pa.Table.from_pylist(rows, RANKINGS), pa.Table.from_pylist(qrels, QRELS), list("1234"), "tuned")
    assert {key: found[key] for key in ("rose", "same", "fell", "neither")} == {
        "rose": 1,
        "same": 1,
        "fell": 1,
        "neither": 1,
    }
    assert sorted(found["pairs"], key=str) == sorted([[3, 1, 1], [1, 1, 1], [1, None, 1], [None, None, 1]], key=str)


def test_settings_name_what_differs_from_the_defaults_first() -> None:
    changed = {row["path"]: row for row in build(make())["settings"]["changed"]}
    assert changed["finetune.learning_rate"]["value"] == "0.0003"
    assert changed["finetune.learning_rate"]["default"] == "0.0001"
    assert changed["source.collections"]["value"] == '["NIDDK", "NINDS"]'
    assert changed["evaluate.retention.max_loss"]["default"] is None
    assert "finetune.epochs" not in changed
    assert "finetune.epochs" in build(make())["settings"]["all"]


def test_shards_are_one_step_and_what_was_left_out_has_examples() -> None:
    report = build(make())
    judge = next(row for row in report["steps"]["rows"] if row["step"] == "judge-1")
    assert (judge["shards"], judge["seconds"]) == (2, 3.0)
    assert report["steps"]["finished"] == "2026-11-22T20:11:55+00:00"
    assert report["data"]["dropped"][0]["count"] == 31
    assert report["data"]["dropped"][0]["examples"][0] == "00000.xml#0"
    assert report["data"]["shared_topics"] == 0
    assert report["mining"][0]["mined"]["queries_without_examples.no relevant candidate"] == 21
    assert len(report["loss"][0]["points"]) == 56


def test_topics_on_two_sides_are_counted() -> None:
    inputs = make()
    leaking = inputs.queries.set_column(2, "topic", pa.array(["same"] * inputs.queries.num_rows, type=pa.string()))
    assert build(replace(inputs, queries=leaking))["data"]["shared_topics"] == 1


LLM = {"kind": "llm", "model": "a-model", "prompt": "medical"}


def test_judging_by_a_language_model_is_told_with_its_tokens_speed_and_dollars() -> None:
    """By hand: two shards an iteration, one after the other, 1.5 s each, of 178 pairs of which 20 were known before."""
    inputs = make(judge=LLM)
    inputs.manifests["judge-1.1"]["summary"]["decoding_mode"] = None  # a shard whose pairs were all known asks nobody
    judging = build(inputs)["judging"]
    assert [row["iteration"] for row in judging["iterations"]] == [1, 2]
    row = judging["iterations"][0]
    counts = {
        "judged": 356,
        "cached": 40,
        "skipped": 60,
        "not_selected": 80,
        "missing": 4,
        "truncated": 6,
        "requested": 316,
    }
    assert {name: row[name] for name in counts} == counts
    assert (row["prompt_tokens"], row["cached_share"], row["decoding_modes"]) == (200_000, 0.6, ["choice"])
    assert row["seconds"] == pytest.approx(2.5, abs=0.51)  # starts are told in whole seconds
    assert row["pairs_per_second"] == pytest.approx(316 / row["seconds"])
    assert row["dollars"] == pytest.approx(row["seconds"] / 3600 * 5.672)
    assert judging["dollars"] == pytest.approx(sum(row["dollars"] for row in judging["iterations"]))
    assert (judging["model"], judging["prompt"], judging["requested"]) == ("a-model", "medical", 632)
    assert judging["price"]["machine"] == "g5.12xlarge"


def test_shards_at_work_at_once_are_paid_for_once_and_a_night_between_them_not_at_all() -> None:
    inputs = make(judge=LLM, iterations=1)
    first, second = (inputs.manifests[f"judge-1.{shard}"] for shard in (0, 1))
    first |= {"started": "2026-11-22T20:00:00+00:00", "seconds": 100.0}
    second |= {"started": "2026-11-22T20:00:40+00:00", "seconds": 100.0}
    assert build(inputs)["judging"]["seconds"] == 140
    steps = build(inputs)["steps"]
    assert steps["taken"] == pytest.approx(steps["seconds"] - 60)
    assert f"<dt>Time taken</dt><dd>{duration(steps['taken'])}</dd>" in render(build(inputs))
    second |= {"started": "2026-11-22T20:00:40+00:00", "seconds": 10.0}
    assert build(inputs)["judging"]["seconds"] == 100
    second |= {"started": "2026-11-23T08:00:00+00:00", "seconds": 10.0}
    assert build(inputs)["judging"]["seconds"] == 110


def test_pairs_that_were_all_known_before_cost_nothing_and_the_answer_key_has_counts_alone() -> None:
    inputs = make(judge=LLM, iterations=1)
    for shard in (0, 1):
        inputs.manifests[f"judge-1.{shard}"]["summary"] |= {"cached": 178, "decoding_mode": None}
    judging = build(inputs)["judging"]
    assert (judging["requested"], judging["dollars"]) == (0, 0)
    assert judging["iterations"][0]["pairs_per_second"] is None
    labels = build(make())["judging"]
    assert labels["kind"] == "labels"
    assert set(labels) == {"kind", "iterations"}
    counts = {"iteration": 1, "judged": 360, "cached": 0, "skipped": 60, "not_selected": 80, "missing": 0}
    assert labels["iterations"][0] == counts
