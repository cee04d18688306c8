"""Reading run files: errors name the file, the line and the field, and what to do."""

from pathlib import Path

import pytest

from pyrite.config import dump, load
from pyrite.errors import UserError


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "source: {kind: sample}\nfinetune:\n  lerning_rate: 1\n",
            ["run.yaml:3", "finetune.lerning_rate", "Did you mean learning_rate?"],
        ),
        ("source: {kind: sample}\niteratons: 3\n", ["run.yaml:2", "iteratons", "Did you mean iterations?"]),
        ("source:\n  kind: medquad\n  pth: x\n", ["run.yaml:3", "source.pth", "Did you mean path?"]),
        ("source: {kind: medquad}\n", ["source.path", "is required"]),
        ("source: {kind: sampel}\n", ["run.yaml:1", "source", "sampel", "Did you mean sample?"]),
        ("source: {kind: sample}\nmine: {rule: nearst}\n", ["run.yaml:2", "mine.rule", "Did you mean nearest?"]),
        ("source:\n", ["source", "is required"]),
        (
            "source: {kind: sample}\niterations: 0\n",
            ["run.yaml:2", "iterations", "greater than or equal to 1"],
        ),
        (
            "source: {kind: sample}\nmine: {negative_grade: 3}\n",
            ["run.yaml:2", "mine.negative_grade", "less than or equal to 2 (it is 3)"],
        ),
        (
            "source: {kind: sample}\ngenerate: {}\njudge: {kind: llm, model: m}\nmine: {known_first: false}\n",
            ["generate.answerable_grade 3", "a positive needs grade 4", "mine.known_first"],
        ),
        ("source: {kind: sample}\nprepare: {split: {train: 0.9}}\n", ["prepare.split", "add up to 1.2"]),
        (
            "source: {kind: sample}\nmine: {num_negatives: 3}\nfinetune: {loss: triplet}\n",
            ["triplet", "mine.num_negatives"],
        ),
        (
            "source: {kind: sample}\nfinetune: {loss: distill}\n",
            ["distill", "set mine.num_negatives to 4 or more, not 1"],
        ),
        ("- a\n- b\n", ["a mapping of settings"]),
        ("a: [1\n", ["run.yaml:2", "not YAML"]),
        ("source: {kind: sample}\nname: 2026-02-30\n", ["run.yaml", "not YAML", "day"]),
    ],
)
def test_errors_name_the_line_and_the_field(tmp_path: Path, text: str, expected: list[str]) -> None:
    with pytest.raises(UserError) as error:
        load(write(tmp_path, text))
    for part in expected:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("finetune.epochs=abc", "override finetune.epochs: finetune.epochs: must be a valid number (it is 'abc')."),
        ("finetune.epochs=.inf", "override finetune.epochs: finetune.epochs: must be a finite number"),
        ("seed=1.5", "override seed: seed: must be a valid integer (it is 1.5)."),
        ("mine.known_first=maybe", "override mine.known_first: mine.known_first: must be true or false"),
        ("resources.judge_urls=foo", "override resources.judge_urls: resources.judge_urls: must be a list"),
        ("model.base=", "override model.base: model.base: must be a valid string."),
        ("finetune.epoch=3", "override finetune.epoch: finetune.epoch: unknown setting. Did you mean epochs?"),
        ("finetune.foo.bar=1", "override finetune.foo.bar: finetune.foo: unknown setting"),
        ("finetune=3", "override finetune: finetune: must be a section of settings (it is 3). Write its settings, "),
        ("evaluate.blends=[0.5, 2]", "override evaluate.blends: evaluate.blends.1: must be less than 1"),
        (
            "evaluate.gate=3",
            "override evaluate.gate: evaluate.gate: must be a section of settings (it is 3). "
            "Write its settings, such as evaluate.gate.mrr@5.",
        ),
        ("judge.noise=0.5", "override judge.noise: judge.noise: must be a section of settings (it is 0.5). "),
        (
            "judge={kind: cascade, first: {}, second: {kind: labels}}",
            "override judge: judge.first.kind: this setting is required but missing. "
            "Set it to one of: labels, llm, reranker.",
        ),
        (
            "judge={kind: cascade, first: {kind: labls}, second: {kind: labels}}",
            "override judge: judge.first.kind: must be one of 'labels', 'llm', 'reranker' (it is 'labls'). "
            "Did you mean labels?",
        ),
        (
            "judge={kind: cascade, first: llm, second: {kind: labels}}",
            "override judge: judge.first: must be a section of settings (it is 'llm'). "
            "Write its settings, such as judge.first.kind.",
        ),
        ("source={}", "override source: source.kind: this setting is required but missing. Set it to one of: sample, "),
        ("judge.kind=llm", "run.yaml:3, with override judge.kind: judge: kind llm needs model"),
        ("finetune.loss=triplet", "run.yaml: run file: finetune.loss triplet takes one negative"),
    ],
)
def test_an_error_in_an_override_names_the_override(tmp_path: Path, override: str, expected: str) -> None:
    """Regression: the message named the line of the value that the override replaces."""
    path = write(
        tmp_path, "source: {kind: sample}\nfinetune: {epochs: 2}\njudge: {shards: 3}\nmine: {num_negatives: 2}\n"
    )
    with pytest.raises(UserError) as error:
        load(path, ["iterations=1", override])
    assert str(error.value).removeprefix(f"{tmp_path}/").startswith(expected)
    with pytest.raises(UserError, match=r"run.yaml:5: seed: .* \(it is -1\)\.$"):
        load(write(tmp_path, f"{path.read_text()}seed: -1\n"), ["iterations=1"])


def test_equal_blends_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "source: {kind: sample}\nevaluate:\n  blends: [0.5, 0.3, 0.50]\n")
    with pytest.raises(UserError, match=r"run.yaml:3: evaluate.blends: 0.5 is in the list twice: remove one"):
        load(path)


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"name: caf\xe9\n")
    with pytest.raises(UserError, match="not UTF-8"):
        load(path)


def test_overrides_win_and_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "source: {kind: medquad, path: data}\n")
    spec = load(path, ["finetune.learning_rate=1e-4", "iterations=3", "source.collections=[NIDDK]"])
    assert (spec.finetune.learning_rate, spec.iterations, spec.name) == (1e-4, 3, "run")
    assert spec.source.kind == "medquad"
    assert spec.source.path == str(tmp_path / "data")
    with pytest.raises(UserError, match="key=value"):
        load(path, ["iterations"])
    with pytest.raises(UserError, match="'2026-02-30' is not a value"):
        load(path, ["name=2026-02-30"])


def test_override_paths_are_relative_to_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "source: {kind: medquad, path: data}\n")
    here = tmp_path / "elsewhere"
    here.mkdir()
    monkeypatch.chdir(here)
    spec = load(path, ["source.path=mine", "evaluate.retention={path: ../other}"])
    assert spec.source.kind == "medquad"
    assert spec.source.path == str(here / "mine")
    assert spec.evaluate.retention is not None
    assert spec.evaluate.retention.path == str(here / "../other")


@pytest.mark.parametrize(
    ("kind", "name"), [("labels", "confusion"), ("llm", "calibration"), ("reranker", "calibration")]
)
def test_missing_judge_files_are_named_next_to_the_run_file(tmp_path: Path, kind: str, name: str) -> None:
    judge = f"{{kind: {kind}, model: m, {name}: found.json}}"
    spec = load(write(tmp_path, f"source: {{kind: sample}}\njudge: {judge}\n"))
    assert spec.judge.kind == kind
    assert getattr(spec.judge, name) == str(tmp_path / "found.json")


def test_names_are_not_paths_even_if_such_a_file_exists(tmp_path: Path) -> None:
    for name in ("medical", "row_id", "mine", "data"):
        (tmp_path / name).mkdir()
    (tmp_path / "mine/prompt.yaml").write_text("template: x\n")
    prompts = "judge: {kind: llm, model: m, prompt: medical}\ngenerate: {prompt: mine/prompt.yaml}\n"
    spec = load(write(tmp_path, f"source: {{kind: jsonl, path: data, id: row_id}}\n{prompts}"))
    assert spec.source.kind == "jsonl"
    assert (spec.source.path, spec.source.id) == (str(tmp_path / "data"), "row_id")
    assert spec.generate is not None
    assert spec.judge.kind == "llm"
    assert (spec.judge.prompt, spec.generate.prompt) == ("medical", str(tmp_path / "mine/prompt.yaml"))
    spec = load(write(tmp_path, "source: {kind: huggingface, id: data}\n"))
    assert spec.source.kind == "huggingface"
    assert spec.source.id == str(tmp_path / "data")


@pytest.mark.parametrize(
    ("judge", "mine", "window"),
    [
        ("", "nearest", 10),
        ("", "rank", 20),
        ("", "rank, positive_rank: 15", 25),
        (", rank_window: null", "rank", None),
        (", rank_window: 5", "rank", 5),
        (", patience: 3", "rank", None),
    ],
)
def test_the_llms_default_rank_window_fits_the_mining_rule(
    judge: str, mine: str, window: int | None, tmp_path: Path
) -> None:
    """Regression: the window was ten ranks, also with a rule whose hard positives rank below ten."""
    text = f"source: {{kind: sample}}\njudge: {{kind: llm, model: m{judge}}}\nmine: {{rule: {mine}}}\n"
    spec = load(write(tmp_path, text))
    assert spec.judge.rank_window == window
    assert load(write(tmp_path, dump(spec))) == spec


def test_retention_may_be_just_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "source: {kind: sample}\nevaluate: {retention: other}\n")
    monkeypatch.chdir(tmp_path.parent)
    for overrides, folder in ([], tmp_path), (["evaluate.retention=other"], tmp_path.parent):
        retention = load(path, overrides).evaluate.retention
        assert retention is not None
        assert (retention.path, retention.max_loss) == (str(folder / "other"), 0.02)


def test_an_empty_section_has_defaults_and_takes_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, "source: {kind: sample}\nevaluate:\n  # blends: []\nprepare: {split: }\n")
    assert load(path).evaluate == load(write(tmp_path, "source: {kind: sample}\n")).evaluate
    path = write(tmp_path, "source: {kind: sample}\nevaluate: {retention: null}\n")
    retention = load(path, ["evaluate.retention.path=/other"]).evaluate.retention
    assert retention is not None
    assert retention.path == "/other"


def test_a_dumped_run_reads_as_an_equal_run(tmp_path: Path) -> None:
    spec = load(write(tmp_path, "source: {kind: sample}\nevaluate: {gate: {mrr@5: 0.2}}\n"))
    assert load(write(tmp_path, dump(spec))) == spec


def test_paths_of_reported_retention_sets_are_absolute(tmp_path: Path) -> None:
    text = "source: {kind: sample}\nevaluate: {retention: {path: builtin:general, report: [one, s3://b/two]}}\n"
    retention = load(write(tmp_path, text)).evaluate.retention
    assert retention is not None
    assert (retention.path, retention.report) == ("builtin:general", [str(tmp_path / "one"), "s3://b/two"])
    path = write(tmp_path, text.replace("[one, s3://b/two]", "one"))
    assert load(path).evaluate.retention.report == [str(tmp_path / "one")]  # type: ignore[union-attr]


def test_retention_sets_with_the_same_name_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "source: {kind: sample}\nevaluate: {retention: {path: a/set.tar.gz, report: [b/set]}}\n")
    with pytest.raises(UserError, match="two sets named set"):
        load(path)
