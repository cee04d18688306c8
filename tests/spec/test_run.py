"""The RunSpec: the judge's settings, a discriminated union, and settings by name."""

from pathlib import Path

import pytest

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


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ("{kind: lm}", "judge: .*Did you mean llm"),
        ("{kind: llm}", "judge: kind llm needs model"),
        ("{kind: llm, model: ''}", "judge: kind llm needs model"),
        ("{kind: llm, model: m, promt: legal}", r"judge.promt: unknown setting. Did you mean prompt"),
        ("{shard: 3}", r"judge.shard: unknown setting. Did you mean shards"),
        ("{kind: llm, model: m, patience: 0}", "run.yaml:2: judge.patience: .*greater than or equal to 1"),
    ],
)
def test_errors_name_the_judge_setting(tmp_path: Path, judge: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_spec(tmp_path, f"judge: {judge}")


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


def test_every_setting_that_a_stage_depends_on_exists(tmp_path: Path) -> None:
    text = "judge: {kind: llm, model: m}\ngenerate: {queries: 9}\nevaluate: {retention: builtin:general}"
    spec = load_spec(tmp_path, text)
    for stage in STAGES.values():
        names = (*stage.settings, *stage.search_settings)
        values = spec.settings(*names)
        assert not [name for name in names if name.startswith("evaluate.retention") and values[name] is None]


def test_title_pairs_need_passages_with_titles(tmp_path: Path) -> None:
    text = "mine: {title_pairs: 9}"
    assert load_spec(tmp_path, text).mine.title_pairs == 9
    with pytest.raises(UserError, match=r"mine.title_pairs is 9, but prepare.context none .* mine.title_pairs to 0"):
        load_spec(tmp_path, text, "prepare.context=none")
