"""The RunSpec: the judge's settings, a discriminated union, and settings by name."""

from pathlib import Path

import pytest

from pyrite import judges
from pyrite.config import load
from pyrite.errors import UserError
from pyrite.plan import STAGES
from pyrite.spec import LabelsJudgeSpec, LlmJudgeSpec, RunSpec


def load_spec(tmp_path: Path, text: str, *overrides: str) -> RunSpec:
    path = tmp_path / "run.yaml"
    path.write_text(f"source: {{kind: sample}}\n{text}\n")
    return load(path, overrides)


def test_the_default_judge_is_labels(tmp_path: Path) -> None:
    assert load_spec(tmp_path, "").judge == LabelsJudgeSpec()
    assert load_spec(tmp_path, "judge: {shards: 3}").judge == LabelsJudgeSpec(shards=3)


def test_an_override_can_change_the_kind_of_judge(tmp_path: Path) -> None:
    text = "judge: {kind: llm, model: m, prompt: legal, shards: 3}\ngenerate: {share_from_passages: 1}"
    assert load_spec(tmp_path, text).judge == LlmJudgeSpec(model="m", prompt="legal", shards=3, rank_window=10)
    labels = load_spec(tmp_path, text, "judge.kind=labels")
    assert labels.judge == LabelsJudgeSpec(shards=3)
    assert labels.generator_model == "m", "the model still generates questions"
    back = load_spec(tmp_path, "judge: {shards: 3}", "judge.kind=llm", "judge.model=m")
    assert back.judge == LlmJudgeSpec(model="m", shards=3, rank_window=10)


#: The first judge of a cascade.
FIRST = "first: {kind: labels, noise: {kappa: 0.5}}"


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ("{kind: lm}", "judge.kind: must be .*Did you mean llm"),
        ("{kind: llm}", "judge: kind llm needs model"),
        ("{kind: llm, model: ''}", "judge: kind llm needs model"),
        ("{kind: llm, model: m, promt: legal}", r"judge.promt: unknown setting. Did you mean prompt"),
        ("{shard: 3}", r"judge.shard: unknown setting. Did you mean shards"),
        (f"{{kind: cascade, {FIRST}}}", "judge.second: this setting is required"),
        (f"{{kind: cascade, {FIRST}, second: {{kind: llm}}}}", "judge.second: kind llm needs model"),
        (f"{{kind: cascade, {FIRST}, second: {{kind: llm, model: m, promt: a}}}}", "judge.second.promt: .*mean prompt"),
        (
            f"{{kind: cascade, {FIRST}, second: {{kind: labels, patience: 3}}}}",
            "second.patience has no effect .* set judge.patience",
        ),
        (f"{{kind: cascade, {FIRST}, second: {{kind: labels, noise: {{kappa: 0.7}}}}}}", "seed are equal"),
        (
            "{kind: cascade, first: {kind: llm, model: m}, second: {kind: labels}}",
            "judge.first has kind llm, but resources.first_judge_urls is empty",
        ),
        (
            f"{{kind: cascade, {FIRST}, second: {{kind: labels}}, model: m}}",
            "judge.model has no effect .* judge.second",
        ),
        (f"{{kind: cascade, {FIRST}, second: {{kind: labels}}, prompt: a}}", "judge.prompt has no effect in a cascade"),
        (f"{{kind: cascade, {FIRST}, second: {{kind: labels}}, calibration: a}}", "judge.calibration has no effect"),
        (
            f"{{kind: cascade, {FIRST}, second: {{kind: labels}}}}\ngenerate: {{model: m, share_from_passages: 0.5}}",
            "judge.second.kind labels cannot grade .* or judge.second.kind to llm",
        ),
        ("{stop: example}\nmine: {rule: rank}", "judge.stop example cannot skip .* with mine.rule rank"),
        (
            "{stop: example}\nmine: {num_negatives: 4}\nfinetune: {loss: graded}",
            "judge.stop example cannot skip .* with finetune.loss graded",
        ),
        ("{kind: llm, model: m, patience: 0}", "run.yaml:2: judge.patience: .*greater than or equal to 1"),
    ],
)
def test_errors_name_the_judge_setting(tmp_path: Path, judge: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_spec(tmp_path, f"judge: {judge}")


@pytest.mark.parametrize("errors", ["noise: {kappa: 0.5}", "confusion: errors.json"])
def test_simulated_errors_of_an_llm_judge_are_refused(tmp_path: Path, errors: str) -> None:
    """Settings of other judges are ignored, but a run with these would not be the rehearsal that the user expects."""
    name = errors.partition(":")[0]
    with pytest.raises(UserError, match=f"judge.{name} simulates errors of the judge labels, not of kind llm"):
        load_spec(tmp_path, f"judge: {{kind: llm, model: m, {errors}}}")
    assert load_spec(tmp_path, f"judge: {{{errors}}}", "judge.kind=llm", "judge.model=m", f"judge.{name}=null")


def test_settings_of_another_judge_are_none(tmp_path: Path) -> None:
    names = ("judge.kind", "judge.model", "judge.prompt")
    assert load_spec(tmp_path, "").settings(*names) == {
        "judge.kind": "labels",
        "judge.model": None,
        "judge.prompt": None,
    }
    llm = load_spec(tmp_path, "judge: {kind: llm, model: m}")
    assert llm.settings(*names) == {"judge.kind": "llm", "judge.model": "m", "judge.prompt": "general"}
    with pytest.raises(KeyError):
        llm.settings("judge.modell")


@pytest.mark.parametrize(
    ("judge", "generate", "setting"),
    [
        ("{kind: llm, model: m}", "{}", "judge.model"),
        ("{kind: llm, model: m}", "{model: m}", "generate.model"),
        (f"{{kind: cascade, {FIRST}, second: {{kind: llm, model: m}}}}", "{}", "judge.second.model"),
    ],
)
def test_errors_of_the_generator_name_the_setting_of_its_model(
    tmp_path: Path, judge: str, generate: str, setting: str
) -> None:
    spec = load_spec(tmp_path, f"judge: {judge}\ngenerate: {generate}")
    assert spec.generator_servers.model_setting == setting


def test_other_stages_use_the_second_judge_of_a_cascade(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("template: '{query} {passage}'")
    first = "first: {kind: llm, model: small, prompt: a.yaml}"
    text = f"judge: {{kind: cascade, {first}, second: {{kind: llm, model: large}}}}\n"
    spec = load_spec(tmp_path, text + "resources: {first_judge_urls: [http://a], judge_urls: [http://b]}")
    names = ("judge.kind", "judge.model", "judge.prompt")
    assert spec.settings(*names) == {"judge.kind": "llm", "judge.model": "large", "judge.prompt": "general"}
    assert (spec.judge.needs_server, spec.judge.reads_text, spec.judge.server_model) == (True, True, "large")
    assert (spec.main_judge.spec.server_model, spec.main_judge.servers.urls) == ("large", ("http://b",))
    first = spec.first_judge
    assert first is not None
    assert first.spec.identity["prompt"] == str(tmp_path / "a.yaml"), "the path is relative to the run file"
    assert first.servers.urls == ("http://a",)
    assert judges.external(spec).keys() == {"prompt", "first_prompt"}
    assert load_spec(tmp_path, text, "judge.kind=labels").judge == LabelsJudgeSpec()


def test_every_setting_that_a_stage_depends_on_exists(tmp_path: Path) -> None:
    text = "judge: {kind: llm, model: m, stop: example}\ngenerate: {queries: 9}\nevaluate: {retention: builtin:general}"
    spec = load_spec(tmp_path, text)
    for stage in STAGES.values():
        names = (*stage.settings, *stage.more_settings(spec, 1))
        values = spec.settings(*names)
        assert not [name for name in names if name.startswith("evaluate.retention") and values[name] is None]


def test_title_pairs_need_passages_with_titles(tmp_path: Path) -> None:
    text = "mine: {title_pairs: 9}"
    assert load_spec(tmp_path, text).mine.title_pairs == 9
    with pytest.raises(UserError, match=r"mine.title_pairs is 9, but prepare.context none .* mine.title_pairs to 0"):
        load_spec(tmp_path, text, "prepare.context=none")
