"""The plan: what is next, from the manifests alone."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pyrite.plan import STAGES, Step, chain, next_steps, outputs_digest, parents, step_key, survey
from pyrite.spec import RunSpec

OUTSIDE = {"source": "s", "prompt": "", "generate_prompt": "", "model": "m", "retention": ""}


def a_spec(**changes: Any) -> RunSpec:
    return RunSpec.model_validate({"name": "r", "source": {"kind": "sample"}, **changes})


def finish(spec: RunSpec, step: Step, manifests: dict[str, Any], outputs: str = "o") -> None:
    """Record ``step`` as an executor does."""
    inputs = {parent.name: outputs_digest(manifests[parent.name]) for parent in parents(spec, step)}
    outside = {name: OUTSIDE[name] for name in STAGES[step.stage].external}
    manifests[step.name] = {
        "step": step.name,
        "key": step_key(spec, step, inputs, outside),
        "inputs": inputs,
        "external": outside,
        "settings": spec.settings(*STAGES[step.stage].settings),
        "outputs": [{"key": step.name, "sha256": outputs}],
    }


def finish_all(spec: RunSpec) -> dict[str, Any]:
    manifests: dict[str, Any] = {}
    for step in chain(spec):
        finish(spec, step, manifests)
    return manifests


def undone(spec: RunSpec, manifests: dict[str, Any], outside: dict[str, str] = OUTSIDE) -> set[str]:
    return {state.step.name for state in survey(spec, manifests, outside) if state.state != "done"}


@given(iterations=st.integers(1, 4), shards=st.integers(1, 5), order=st.randoms(use_true_random=False))
def test_following_the_plan_does_every_step_once_and_never_before_its_parents(
    iterations: int, shards: int, order: Any
) -> None:
    spec = a_spec(iterations=iterations, judge={"shards": shards})
    manifests: dict[str, Any] = {}
    did: list[Step] = []
    while todo := next_steps(survey(spec, manifests, OUTSIDE)):
        chosen = order.choice(todo).step
        assert all(parent in did for parent in parents(spec, chosen))
        finish(spec, chosen, manifests)
        did.append(chosen)
    assert sorted(step.name for step in did) == sorted(step.name for step in chain(spec))


def test_a_changed_setting_redoes_the_stage_that_it_matters_to_and_what_follows() -> None:
    before = a_spec()
    manifests = finish_all(before)
    after = a_spec(mine={"num_negatives": 5})
    states = {state.step.name: state for state in survey(after, manifests, OUTSIDE)}
    assert states["judge-1.0"].state == "done"
    assert states["mine-1"].state == "ready"
    assert states["mine-1"].stale == "mine.num_negatives was 1, is 5"
    assert states["finetune-1"].state == "waiting"


def test_a_setting_of_how_changes_nothing() -> None:
    assert undone(a_spec(resources={"judge_workers": 7, "encode_tokens": 512}), finish_all(a_spec())) == set()


def test_equal_outputs_stop_a_change_from_spreading() -> None:
    spec = a_spec()
    manifests = finish_all(spec)
    changed = {**OUTSIDE, "source": "the same passages in another file"}
    assert "prepare" in undone(spec, manifests, changed)
    manifests["prepare"]["key"] = step_key(spec, Step("prepare"), {}, {"source": changed["source"]})
    manifests["prepare"]["external"] = {"source": changed["source"]}
    assert undone(spec, manifests, changed) == set()


def test_one_more_iteration_keeps_those_that_are_done() -> None:
    manifests = finish_all(a_spec(iterations=2))
    left = undone(a_spec(iterations=3), manifests)
    assert left == {"retrieve-3", "judge-3.0", "judge-3.1", "mine-3", "finetune-3", "validate-3", "evaluate"}


def test_what_comes_from_outside_is_trusted_where_it_cannot_be_seen() -> None:
    spec = a_spec()
    assert undone(spec, finish_all(spec), {}) == set()
    assert "prepare" in undone(spec, finish_all(spec), {"source": "other"})


def test_what_runs_at_once_is_of_one_stage_and_iteration() -> None:
    spec = a_spec(judge={"shards": 3})
    manifests: dict[str, Any] = {}
    seen = []
    while todo := next_steps(survey(spec, manifests, OUTSIDE)):
        seen.append([state.step.name for state in todo])
        for state in todo:
            finish(spec, state.step, manifests)
    assert ["judge-1.0", "judge-1.1", "judge-1.2"] in seen
    assert all(len({name.partition(".")[0] for name in names}) == 1 for names in seen)


def test_other_outputs_of_a_step_redo_what_reads_them() -> None:
    spec = a_spec(mine={"accumulate": True})
    manifests = finish_all(spec)
    finish(spec, Step("mine", 1), manifests, outputs="other examples")
    assert "finetune-1" in undone(spec, manifests)
    assert "judge-1.0" not in undone(spec, manifests)
    finish(spec, Step("finetune", 1), manifests)  # the same weights came out, so only what reads the examples is left
    assert {"mine-2"} <= undone(spec, manifests)
    assert "judge-2.0" not in undone(spec, manifests)


def test_grades_of_earlier_iterations_redo_the_mining_that_protects_by_them() -> None:
    spec = a_spec(mine={"accumulate": True})
    manifests = finish_all(spec)
    finish(spec, Step("judge", 1, 0), manifests, outputs="other grades")
    finish(spec, Step("mine", 1), manifests)  # the same examples came out
    left = undone(spec, manifests)
    assert "mine-2" in left
    assert not {"judge-2.0", "finetune-1"} & left


GENERATE = {"share_from_passages": 1, "model": "some-model"}


def test_without_generate_no_step_knows_of_it() -> None:
    plain, generating = a_spec(), a_spec(generate={**GENERATE, "shards": 3})
    names = {step.name for step in chain(generating)} - {step.name for step in chain(plain)}
    assert names == {"generate.0", "generate.1", "generate.2"}
    # Else what was finished before there was such a stage would be done again.
    for step in chain(plain):
        assert all(parent.stage != "generate" for parent in parents(plain, step))
        assert not any(name.startswith("generate") for name in STAGES[step.stage].settings)


def test_questions_are_made_after_prepare_by_all_shards_at_once_and_before_whatever_reads_queries() -> None:
    spec = a_spec(generate=GENERATE)
    manifests: dict[str, Any] = {}
    finish(spec, Step("prepare"), manifests)
    assert [state.step.name for state in next_steps(survey(spec, manifests, OUTSIDE))] == ["generate.0", "generate.1"]
    finish(spec, Step("generate", None, 0), manifests)
    waiting = {state.step.name for state in survey(spec, manifests, OUTSIDE) if state.state == "waiting"}
    assert waiting == {step.name for step in chain(spec)} - {"prepare", "generate.0", "generate.1"}


def test_another_prompt_or_more_questions_are_made_anew_and_other_outputs_spread() -> None:
    before = a_spec(generate=GENERATE)
    manifests = finish_all(before)
    more = {state.step.name: state for state in survey(a_spec(generate={**GENERATE, "queries": 9}), manifests, OUTSIDE)}
    assert more["generate.1"].stale == "generate.queries was 2000, is 9"
    assert more["prepare"].state == "done"
    assert more["validate-0"].state == "waiting"
    other = {**OUTSIDE, "generate_prompt": "other"}
    assert {"generate.0", "generate.1", "retrieve-1"} <= undone(before, manifests, other)
    manifests["generate.0"]["outputs"] = [{"key": "queries", "sha256": "others"}]
    assert {"judge-1.0", "mine-1", "validate-0"} <= undone(before, manifests)
    assert "generate.1" not in undone(before, manifests)
