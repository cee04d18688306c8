"""The second judge: warnings about its family."""

import pytest

from pyrite.judges.evaluator import family_notes
from pyrite.spec import RunSpec


def make(training: str | None, second: str, generator: str | None = None) -> RunSpec:
    return RunSpec.model_validate(
        {
            "name": "small",
            "source": {"kind": "sample"},
            "judge": {"kind": "llm", "model": training} if training else {"kind": "labels"},
            "generate": {"model": generator, "share_from_passages": 1} if generator else None,
            "evaluate": {"judge": {"model": second}},
            "resources": {"evaluate_judge_urls": ["http://h:1"]},
        }
    )


@pytest.mark.parametrize(
    ("training", "second"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", "Qwen3-32B"),
        ("qwen2.5:7b", "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama3.3:70b"),
        ("judge", "judge"),
    ],
)
def test_models_of_one_family_are_noted(training: str, second: str) -> None:
    (note,) = family_notes(make(training, second))
    assert training in note
    assert second in note
    assert len(family_notes(make(None, second, training))) == 1, "the model that writes the questions counts too"


@pytest.mark.parametrize(
    ("training", "second"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"),
        ("judge-model-a", "judge-model-b"),
        ("gemma2:9b-instruct-q4", "mistral:7b-instruct-q4"),
    ],
)
def test_models_of_other_families_are_not_noted(training: str, second: str) -> None:
    assert not family_notes(make(training, second))


def cascade() -> RunSpec:
    judge = {"kind": "cascade", "first": {"kind": "llm", "model": "qwen2.5:7b"}, "second": {"kind": "labels"}}
    return RunSpec.model_validate(
        {
            "name": "small",
            "source": {"kind": "sample"},
            "judge": judge,
            "evaluate": {"judge": {"model": "Qwen3-32B"}},
            "resources": {"evaluate_judge_urls": ["http://h:1"], "first_judge_urls": ["http://h:2"]},
        }
    )


def test_both_judges_of_a_cascade_have_a_family() -> None:
    (note,) = family_notes(cascade())
    assert "qwen2.5:7b (judge.first.model)" in note


def test_labels_have_no_family() -> None:
    assert not family_notes(make(None, "Qwen3-32B"))


def test_a_judge_that_also_writes_the_questions_is_noted_as_the_judge() -> None:
    spec = make("qwen2.5:7b", "Qwen3-32B", generator="qwen2.5:7b")
    (note,) = family_notes(spec)
    assert "(judge.model)" in note
