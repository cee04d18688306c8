"""The plan: which steps are next, from the manifests alone."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrite.plan import (
    STAGES,
    Step,
    chain,
    input_digests,
    next_steps,
    parents,
    probe_key,
    score_key,
    settings,
    step_key,
    survey,
)
from pyrite.spec import RunSpec

OUTSIDE = {"source": "s", "model": "m"} | dict.fromkeys(
    (
        "prompt",
        "confusion",
        "calibration",
        "first_prompt",
        "first_confusion",
        "first_calibration",
        "generate_prompt",
        "evaluate_prompt",
        "retention",
        "retention_report",
    ),
    "",
)


def make_spec(**changes: Any) -> RunSpec:
    return RunSpec.model_validate({"name": "r", "source": {"kind": "sample"}, **changes})


def finish(spec: RunSpec, step: Step, manifests: dict[str, Any], outputs: str = "o") -> None:
    """Write the manifest of ``step``, as an executor does."""
    inputs = input_digests(spec, step, manifests)
    outside = {name: OUTSIDE[name] for name in STAGES[step.stage].external}
    manifests[step.name] = {
        "step": step.name,
        "key": step_key(spec, step, inputs, outside),
        "inputs": inputs,
        "external": outside,
        "settings": settings(spec, step),
        "outputs": [{"key": step.name, "sha256": outputs}],
    }
    if step.stage == "validate":
        manifests[step.name]["outputs"].append({"key": score_key(step.iteration or 0), "sha256": "score"})


def finish_all(spec: RunSpec) -> dict[str, Any]:
    manifests: dict[str, Any] = {}
    for step in chain(spec):
        finish(spec, step, manifests)
    return manifests


def unfinished(spec: RunSpec, manifests: dict[str, Any], outside: dict[str, str] = OUTSIDE) -> set[str]:
    return {state.step.name for state in survey(spec, manifests, outside) if state.state != "done"}


@given(iterations=st.integers(1, 4), shards=st.integers(1, 5), order=st.randoms(use_true_random=False))
def test_each_step_runs_once_and_after_its_parents(iterations: int, shards: int, order: Any) -> None:
    spec = make_spec(iterations=iterations, judge={"shards": shards})
    manifests: dict[str, Any] = {}
    finished: list[Step] = []
    while ready := next_steps(survey(spec, manifests, OUTSIDE)):
        chosen = order.choice(ready).step
        assert all(parent in finished for parent in parents(spec, chosen))
        finish(spec, chosen, manifests)
        finished.append(chosen)
    assert sorted(step.name for step in finished) == sorted(step.name for step in chain(spec))


def test_mining_rules_matter_to_judge_if_it_applies_them() -> None:
    changed = {"num_negatives": 2, "neighbours": 5}
    both = {"judge-1.0", "judge-1.1"}
    cascade = {"kind": "cascade", "stop": None, "first": {"kind": "labels"}, "second": {"kind": "labels"}}
    for judge, repeated in ({"stop": None}, set()), ({"stop": "example"}, both), (cascade, both):
        before, after = (make_spec(judge=judge, mine=mine) for mine in ({}, changed))
        stale = unfinished(after, finish_all(before))
        assert {name for name in stale if name.startswith("judge-1")} == repeated
        assert "mine-1" in stale
        only_mine = unfinished(make_spec(judge=judge, mine={"neighbours": 5}), finish_all(before))
        assert "mine-1" in only_mine
        assert "judge-1.0" not in only_mine
    stopping = make_spec(judge={"stop": "example"})
    assert Step("judge", 1, 1) in parents(stopping, Step("retrieve", 2)), "mining uses earlier grades"


def test_pairs_are_divided_by_the_shards_of_a_cascade() -> None:
    """Regression: the key of retrieve had judge.second.shards, which has no effect."""
    cascade = {"kind": "cascade", "first": {"kind": "labels"}, "second": {"kind": "labels"}}
    before, after = (make_spec(judge={**cascade, "shards": shards}) for shards in (2, 3))
    assert "retrieve-1" in unfinished(after, finish_all(before))


def test_another_kind_of_judge_is_named_without_its_settings() -> None:
    llm = make_spec(judge={"kind": "llm", "model": "m"})
    cascade = make_spec(judge={"kind": "cascade", "first": {"kind": "labels"}, "second": {"kind": "labels"}})
    labels = make_spec(judge={"max_missing": 0.1})

    def why(before: RunSpec, after: RunSpec) -> str | None:
        states = survey(after, finish_all(before), OUTSIDE)
        return next(state.stale for state in states if state.step == Step("judge", 1, 0))

    assert why(llm, labels) == "judge.kind: llm -> labels; judge.max_missing was 0.02, is 0.1"
    assert str(why(labels, cascade)).startswith("judge.kind: labels -> cascade; judge.max_missing was 0.1, is 0.02")
    assert "judge.first" not in str(why(labels, cascade))


def test_the_probe_of_a_cascade_is_about_its_second_judge() -> None:
    """Otherwise, another tolerance would hide a no-go."""

    def key(model: str, **cascade: Any) -> str:
        second = {"kind": "llm", "model": model}
        return probe_key(make_spec(judge={"kind": "cascade", "first": {"kind": "labels"}, "second": second, **cascade}))

    assert key("m") == key("m", tolerance=0.1) == probe_key(make_spec(judge={"kind": "llm", "model": "m"}))
    assert key("m") != key("other")


def test_the_loss_limit_matters_to_validate_only_if_it_searches() -> None:
    def reruns(**evaluate: Any) -> set[str]:
        before, after = (
            make_spec(iterations=1, evaluate={**evaluate, "retention": {"path": "builtin:general", "max_loss": loss}})
            for loss in (0.02, 0.05)
        )
        return unfinished(after, finish_all(before))

    assert reruns() == {"validate-1", "evaluate"}
    assert reruns(blends=[0.5]) == {"evaluate"}


def test_another_training_seed_does_not_repeat_the_data_steps() -> None:
    def seeded(seed: int) -> RunSpec:
        return make_spec(
            seed=seed, prepare={"seed": 0}, generate={"model": "m"}, judge={"kind": "llm", "model": "m"}, iterations=1
        )

    assert unfinished(seeded(1), finish_all(seeded(0))) == {
        "mine-1",
        "finetune-1",
        "embed-1.0",
        "validate-1",
        "evaluate",
    }
    assert "prepare" in unfinished(make_spec(seed=1), finish_all(make_spec(seed=0))), "unless prepare.seed is unset"


def test_a_changed_setting_reruns_its_stage_and_later_ones() -> None:
    before = make_spec()
    manifests = finish_all(before)
    after = make_spec(mine={"num_negatives": 5})
    states = {state.step.name: state for state in survey(after, manifests, OUTSIDE)}
    assert states["judge-1.0"].state == "done"
    assert states["mine-1"].state == "ready"
    assert states["mine-1"].stale == "mine.num_negatives was 1, is 5"
    assert states["finetune-1"].state == "waiting"


def test_another_loss_mines_again_because_negatives_depend_on_it() -> None:
    before, after = (
        make_spec(mine={"num_negatives": 4}, finetune={"loss": loss}) for loss in ("multiple-negatives", "graded")
    )
    left = unfinished(after, finish_all(before))
    assert {"mine-1", "finetune-1"} <= left
    assert "judge-1.0" not in left


def test_resource_settings_rerun_nothing() -> None:
    assert unfinished(make_spec(resources={"judge_workers": 7, "encode_tokens": 512}), finish_all(make_spec())) == set()


def test_equal_outputs_do_not_rerun_later_steps() -> None:
    spec = make_spec()
    manifests = finish_all(spec)
    changed = {**OUTSIDE, "source": "the same passages in another file"}
    assert "prepare" in unfinished(spec, manifests, changed)
    manifests["prepare"]["key"] = step_key(spec, Step("prepare"), {}, {"source": changed["source"]})
    manifests["prepare"]["external"] = {"source": changed["source"]}
    assert unfinished(spec, manifests, changed) == set()


def test_an_added_iteration_reruns_no_earlier_one() -> None:
    manifests = finish_all(make_spec(iterations=2))
    left = unfinished(make_spec(iterations=3), manifests)
    assert left == {
        "retrieve-3",
        "judge-3.0",
        "judge-3.1",
        "mine-3",
        "finetune-3",
        "embed-3.0",
        "validate-3",
        "evaluate",
    }


def test_an_unknown_external_digest_is_assumed_unchanged() -> None:
    spec = make_spec()
    assert unfinished(spec, finish_all(spec), {}) == set()
    assert "prepare" in unfinished(spec, finish_all(spec), {"source": "other"})


def test_parallel_steps_are_shards_of_one_stage_and_iteration() -> None:
    spec = make_spec(judge={"shards": 3})
    manifests: dict[str, Any] = {}
    seen = []
    while ready := next_steps(survey(spec, manifests, OUTSIDE)):
        seen.append([state.step.name for state in ready])
        for state in ready:
            finish(spec, state.step, manifests)
    assert ["judge-1.0", "judge-1.1", "judge-1.2"] in seen
    assert all(len({name.partition(".")[0] for name in names}) == 1 for names in seen)


def test_changed_outputs_rerun_the_steps_that_read_them() -> None:
    spec = make_spec(mine={"accumulate": True})
    manifests = finish_all(spec)
    finish(spec, Step("mine", 1), manifests, outputs="other examples")
    assert "finetune-1" in unfinished(spec, manifests)
    assert "judge-1.0" not in unfinished(spec, manifests)
    finish(spec, Step("finetune", 1), manifests)  # same weights: only steps that read the examples are left
    assert {"mine-2"} <= unfinished(spec, manifests)
    assert "judge-2.0" not in unfinished(spec, manifests)


def test_changed_grades_rerun_mining_in_later_iterations() -> None:
    spec = make_spec(mine={"accumulate": True})
    manifests = finish_all(spec)
    finish(spec, Step("judge", 1, 0), manifests, outputs="other grades")
    finish(spec, Step("mine", 1), manifests)  # with the same examples
    left = unfinished(spec, manifests)
    assert {"mine-2", "retrieve-2"} <= left  # the pairs name the passages that were judged relevant
    assert "finetune-1" not in left
    finish(spec, Step("retrieve", 2), manifests)
    assert {"judge-2.0", "mine-2"}.isdisjoint(unfinished(spec, manifests))
    finish(spec, Step("retrieve", 2), manifests, outputs="other pairs")
    assert "mine-2" in unfinished(spec, manifests)


@pytest.mark.parametrize("title_pairs", [0, 5])
def test_mining_reads_the_corpus_for_title_pairs_only(title_pairs: int) -> None:
    spec = make_spec(mine={"title_pairs": title_pairs})
    manifests = finish_all(spec)
    finish(spec, Step("prepare"), manifests, outputs="other passages")
    for step in chain(spec):
        if step.stage in ("embed", "retrieve", "judge", "finetune", "validate"):
            finish(spec, step, manifests)  # with the same outputs
    assert ("mine-1" in unfinished(spec, manifests)) == (title_pairs > 0)


def test_only_the_unblended_score_decides_the_next_start() -> None:
    spec = make_spec()
    manifests = finish_all(spec)
    assert not {"validate-0", "finetune-0"} & {parent.name for parent in parents(spec, Step("retrieve", 1))}
    finish(spec, Step("validate", 1), manifests, outputs="other blends")
    assert unfinished(spec, manifests) == {"evaluate"}
    manifests["validate-1"]["outputs"][-1]["sha256"] = "another score"
    assert {"retrieve-2", "finetune-2"} <= unfinished(spec, manifests)
    assert "retrieve-2" in unfinished(make_spec(finetune={"start": "base"}), manifests)


GENERATE = {"share_from_passages": 1, "model": "some-model"}


def test_without_generate_no_step_depends_on_it() -> None:
    plain, generating = make_spec(), make_spec(generate={**GENERATE, "shards": 3})
    names = {step.name for step in chain(generating)} - {step.name for step in chain(plain)}
    assert names == {"generate.0", "generate.1", "generate.2"}
    # Otherwise runs that finished before the stage existed would run again.
    for step in chain(plain):
        assert all(parent.stage != "generate" for parent in parents(plain, step))
        assert not any(name.startswith("generate") for name in STAGES[step.stage].settings)


def test_generate_runs_between_prepare_and_readers_of_queries() -> None:
    spec = make_spec(generate=GENERATE)
    manifests: dict[str, Any] = {}
    finish(spec, Step("prepare"), manifests)
    assert [state.step.name for state in next_steps(survey(spec, manifests, OUTSIDE))] == ["generate.0", "generate.1"]
    finish(spec, Step("generate", None, 0), manifests)
    waiting = {state.step.name for state in survey(spec, manifests, OUTSIDE) if state.state == "waiting"}
    assert waiting == {step.name for step in chain(spec)} - {"prepare", "generate.0", "generate.1"}


def test_second_judge_adds_one_step_and_trains_nothing_again() -> None:
    with_judge = {"resources": {"evaluate_judge_urls": ["http://h:1"]}}
    plain, judged, other = (
        make_spec(**with_judge, evaluate={"blends": [], "judge": judge})
        for judge in (None, {"model": "a"}, {"model": "b"})
    )
    assert [step.name for step in chain(judged) if step not in chain(plain)] == ["assess"]
    manifests: dict[str, Any] = {}
    for step in chain(plain):
        finish(plain, step, manifests)
    to_do = unfinished(judged, manifests)
    assert {"validate-0", "validate-1", "assess", "evaluate"} <= to_do
    for iteration in range(plain.iterations + 1):
        finish(judged, Step("validate", iteration), manifests)
    assert unfinished(judged, manifests) == {"assess", "evaluate"}, (
        "the scores are the same, so training is not repeated"
    )
    for name in ("assess", "evaluate"):
        finish(judged, Step(name), manifests)
    assert not unfinished(judged, manifests)
    assert unfinished(other, manifests) == {"assess", "evaluate"}


def test_changed_generate_settings_rerun_generate() -> None:
    before = make_spec(generate=GENERATE)
    manifests = finish_all(before)
    more = {
        state.step.name: state for state in survey(make_spec(generate={**GENERATE, "queries": 9}), manifests, OUTSIDE)
    }
    assert more["generate.1"].stale == "generate.queries was 2000, is 9"
    assert more["prepare"].state == "done"
    assert more["validate-0"].state == "waiting"
    other = {**OUTSIDE, "generate_prompt": "other"}
    assert {"generate.0", "generate.1", "retrieve-1"} <= unfinished(before, manifests, other)
    manifests["generate.0"]["outputs"] = [{"key": "queries", "sha256": "others"}]
    assert {"judge-1.0", "mine-1", "validate-0"} <= unfinished(before, manifests)
    assert "generate.1" not in unfinished(before, manifests)
