"""An export is written only if every format embeds as the trained model does."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export.finished import write_run_with_model
from export.models import PROMPTS, change, prompted, source
from pyrite.embedding.models import load, model_digest
from pyrite.errors import UserError
from pyrite.export import FORMATS, Export, Reference, check, export
from pyrite.export.runtimes import RUNTIMES, Result, Runtime
from pyrite.store import open_store

Pyrite = Callable[..., subprocess.CompletedProcess[str]]

CHECKED = {"onnx": "onnxruntime", "onnx-int8": "onnxruntime", "openvino": "openvino"}


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prompted(tiny_model, tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture(scope="module")
def exported(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """All formats of the tiny model."""
    for package in ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf"):
        pytest.importorskip(package, reason=f"{package} is not installed (extra: export)")
    return export(source(model), list(CHECKED), tmp_path_factory.mktemp("out") / "tiny")


@pytest.fixture(scope="module")
def reference(model: Path) -> Reference:
    found = source(model)
    return Reference.of(found, load(model, model, found.spec, "cpu", precision="float32"))


@pytest.mark.slow
def test_an_export_describes_itself(exported: Export, model: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = exported.folder
    content = json.loads((folder / "parity.json").read_text())
    assert content["model_digest"] == model_digest(model)
    checks = {each["format"]: each for each in content["checks"]}
    assert {name: each["runtime"] for name, each in checks.items()} == {"plain": "sentence-transformers", **CHECKED}
    assert content["texts"]["total"] >= 1000
    for name, each in checks.items():
        assert each["threshold"] <= each["min_cosine"] <= each["mean_cosine"] <= 1
        assert each["metrics"]["mrr@5"]["queries"] == 60
        assert each["metrics"]["mrr@5"]["clusters"] == 20
        assert max(map(abs, each["projections"].values())) < 0.1
        assert len(each["projections"]) == 5
        assert each["bytes"] == FORMATS[name].size(folder) > 0
        assert each["texts_per_second"].keys() == each["trained_texts_per_second"].keys() == {"1", "32"}
    assert checks["onnx"]["min_cosine"] > checks["onnx-int8"]["min_cosine"]
    assert checks["onnx"]["metrics"]["dcg@5"]["difference"] == pytest.approx(0, abs=0.01)
    assert checks["onnx"]["top_10_overlap"] == pytest.approx(1, abs=0.01)

    card = (folder / "README.md").read_text()
    assert f"`{PROMPTS['query']}` before queries" in card
    assert "truncate to 128 tokens" in card
    assert "the mean of the token embeddings" in card
    assert "onnx/model_quantized.onnx" in card
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in folder.rglob("*.safetensors"))

    vectors = json.loads((folder / "serving/vectors.json").read_text())
    again = SentenceTransformer(str(folder), device="cpu")
    for row in vectors["vectors"]:
        encode = again.encode_query if row["kind"] == "query" else again.encode_document
        assert np.allclose(encode(row["text"]), row["vector"], atol=1e-4)
    assert vectors["prompts"] == PROMPTS
    # Settings from which loaders other than sentence-transformers take the window and the pooling.
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    assert tokenizer["truncation"]["max_length"] == 128
    assert tokenizer["padding"] is None
    assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == 128
    assert json.loads((folder / "1_Pooling/config.json").read_text())["pooling_mode_mean_tokens"] is True
    modules = json.loads((folder / "modules.json").read_text())
    assert [each["type"] for each in modules] == [
        "sentence_transformers.models.Transformer",
        "sentence_transformers.models.Pooling",
    ]


@pytest.mark.slow
def test_a_run_is_exported_with_its_metrics(model: Path, tmp_path: Path, pyrite: Pyrite) -> None:
    name = write_run_with_model(open_store(str(tmp_path / "store")), model)
    result = pyrite("export", name, "--to", "plain")
    assert result.returncode == 0, result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "not checked (see --check-in): plain in vllm" in result.stdout
    content = json.loads((tmp_path / "export" / name / "parity.json").read_text())
    assert content["corpus"] == {
        "what": "the run's test queries and a part of its passages",
        "queries": 60,
        "passages": 200,
        "all_passages": 200,
    }
    (checked,) = content["checks"]
    assert checked["metrics"]["mrr@5"]["queries"] == 60
    low, high = checked["metrics"]["mrr@5"]["interval"]
    assert low <= checked["metrics"]["mrr@5"]["difference"] <= high
    assert high - low < 0.05
    missing = pyrite("export", "other", "--to", "plain")
    assert missing.returncode == 2
    assert "has no run 'other'" in " ".join(missing.stderr.split())


def drop_prompt(folder: Path) -> None:
    change(folder / "config_sentence_transformers.json", prompts={"query": "", "document": PROMPTS["document"]})


def pool_first_token(folder: Path) -> None:
    change(folder / "1_Pooling/config.json", pooling_mode_mean_tokens=False, pooling_mode_cls_token=True)


def shorten_window(folder: Path) -> None:
    change(folder / "sentence_bert_config.json", max_seq_length=64)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKED)
@pytest.mark.parametrize(
    ("defect", "cause"),
    [
        (drop_prompt, "without the prompt of queries"),
        (pool_first_token, "with cls pooling"),
        (shorten_window, "with a shorter window"),
    ],
)
def test_a_defect_of_the_folder_is_caught(
    name: str, defect: Callable[[Path], None], cause: str, exported: Export, reference: Reference, tmp_path: Path
) -> None:
    broken = shutil.copytree(exported.folder, tmp_path / "broken")
    defect(broken)
    with pytest.raises(UserError) as caught:
        check(FORMATS[name], RUNTIMES[CHECKED[name]], broken, reference, None)
    message = str(caught.value)
    assert f"{name} in {CHECKED[name]} does not embed as the trained model does" in message
    # Quantisation lowers the cosines as much as some defects do, so these are recognised by their direction.
    assert f"like those of the trained model {cause}. The worst texts: " in message
    assert re.search(r"worst texts: [.\d]+ for the (query|passage) ['\"]", message)


@pytest.mark.parametrize(
    ("name", "min_cosine", "passes"),
    [("onnx", None, False), ("onnx", 0.96, True), ("onnx-int8", None, True), ("onnx-int8", 0.98, False)],
)
def test_the_lowest_cosine_must_reach_the_threshold(
    name: str,
    min_cosine: float | None,
    passes: bool,
    reference: Reference,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vectors = reference.vectors.copy()
    first = next(position for position, text in enumerate(reference.texts) if text.group == "unicode")
    errors = np.roll(vectors[first], 1)
    errors -= vectors[first] * (errors @ vectors[first]) / (vectors[first] @ vectors[first])
    vectors[first] += 0.25 * errors * np.linalg.norm(vectors[first]) / np.linalg.norm(errors)  # cosine .97
    monkeypatch.setattr(Runtime, "embed", lambda *_: Result(vectors, {1: 1.0, 32: 1.0}, {}, []))
    runtime = RUNTIMES["onnxruntime"]
    if passes:
        found = check(FORMATS[name], runtime, tmp_path, reference, min_cosine).parity
        assert found.min_cosine == pytest.approx(0.97, abs=0.001)
        return
    with pytest.raises(
        UserError, match=r"is 0\.9701, and [\d.]+ is required\. The worst texts: .* or lower --min-cosine"
    ):
        check(FORMATS[name], runtime, tmp_path, reference, min_cosine)


@pytest.mark.slow
def test_an_export_with_cls_pooling_can_be_exported_again(model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "cls")
    change(folder / "1_Pooling/config.json", pooling_mode="cls")
    for name in ("first", "second"):
        folder = export(source(folder), ["plain"], tmp_path / name).folder
    card = (folder / "README.md").read_text()
    assert "the embedding of the first token" in card
    assert card.count("## Serving") == 1


@pytest.mark.slow
def test_a_failed_check_leaves_the_old_export(
    exported: Export, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(exported.folder, tmp_path / "out")
    (out / "mark").touch()
    monkeypatch.setitem(FORMATS, "onnx", replace(FORMATS["onnx"], write=lambda _, folder: drop_prompt(folder)))
    with pytest.raises(UserError, match=r"plain in sentence-transformers does not embed .* Nothing was written"):
        export(source(model), ["onnx"], out)
    assert (out / "mark").exists()
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_a_killed_export_leaves_nothing(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "export/tiny"
    command = [sys.executable, "-m", "pyrite", "export", str(model), "--to", "plain", "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert any(line.startswith("embedding") for line in process.stdout)
        with pytest.raises(UserError, match=r"is being worked on by process"):
            export(source(model), ["plain"], out)
        os.kill(process.pid, signal.SIGKILL)
    assert not out.exists()
    export(source(model), ["plain"], out)
    assert [each.name for each in out.parent.iterdir()] == ["tiny"]
    assert not (out / ".lock").exists()


def test_a_folder_that_is_no_export_is_not_replaced(model: Path, tmp_path: Path, pyrite: Pyrite) -> None:
    (tmp_path / "own/notes").mkdir(parents=True)
    result = pyrite("export", model, "--to", "plain", "--out", "own")
    assert result.returncode == 2
    assert "is not an export" in " ".join(result.stderr.split())
    assert (tmp_path / "own/notes").is_dir()
    (tmp_path / "file").touch()
    result = pyrite("export", model, "--to", "plain", "--out", "file/export")
    assert result.returncode == 2
    assert "--out: cannot create a folder in" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("format_name", "check_in", "message"),
    [
        ("", "", "--to names no format. Choose from plain, onnx"),
        ("onyx", "", "there is no format 'onyx'. The formats are plain, onnx"),
        ("missing", "", "--to missing needs no_such_package. Install with: pip install -r requirements-export.txt"),
        ("plain", "vlm", "--check-in: there is no runtime 'vlm'. The runtimes are sentence-transformers"),
        (
            "plain",
            "fastembed",
            "fastembed reads none of the formats to write. Add onnx or onnx-int8 to --to",
        ),
        ("plain", "vllm", "plain cannot be checked: vllm is not installed. Install with: make real-vllm"),
    ],
)
def test_formats_and_runtimes_are_checked_first(
    format_name: str, check_in: str, message: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = replace(FORMATS["onnx"], name="missing", packages=("no_such_package",))
    monkeypatch.setitem(FORMATS, "missing", missing)
    monkeypatch.setitem(RUNTIMES, "vllm", replace(RUNTIMES["vllm"], package="no_such_package"))
    with pytest.raises(UserError, match=re.escape(message)):
        export(source(model), [*filter(None, [format_name])], tmp_path / "out", check_in=[*filter(None, [check_in])])
    assert not list(tmp_path.iterdir())


def test_a_format_without_a_runtime_is_not_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = replace(RUNTIMES["sentence-transformers"], package="no_such_package")
    monkeypatch.setitem(RUNTIMES, "sentence-transformers", runtime)
    with pytest.raises(
        UserError, match=r"plain cannot be checked: sentence-transformers is not installed\. Install with: pip"
    ):
        export(source(model), ["plain"], tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_runtime_that_fails_gives_its_reason(exported: Export, reference: Reference, tmp_path: Path) -> None:
    broken = shutil.copytree(exported.folder, tmp_path / "broken")
    change(broken / "1_Pooling/config.json", pooling_mode_mean_tokens=False, pooling_mode_max_tokens=True)
    with pytest.raises(
        UserError,
        match=r"cannot embed with onnx/model\.onnx .* max_tokens is not supported\. Leave onnx out",
    ):
        check(FORMATS["onnx"], RUNTIMES["onnxruntime"], broken, reference, None)


def test_models_that_other_runtimes_cannot_apply_are_refused(model: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Router

    loaded = SentenceTransformer(str(model), device="cpu")
    dense = SentenceTransformer(modules=[*loaded, Dense(32, 16)], device="cpu")
    two = SentenceTransformer(modules=[Router.for_query_document(list(loaded), list(loaded))], device="cpu")
    loaded[1].pooling_mode = "max"
    for name, changed, message in (
        ("dense", dense, "dense has the modules Transformer, Pooling, Dense"),
        ("two", two, "two has two encoders, one for queries and one for passages"),
        ("max", loaded, "max has the pooling max"),
    ):
        changed.save_pretrained(str(tmp_path / name), create_model_card=False)
        with pytest.raises(UserError, match=message):
            export(replace(source(tmp_path / name), name=name), ["plain"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_folder_is_refused(model: Path, tmp_path: Path, pyrite: Pyrite) -> None:
    for name in ("model.safetensors", "1_Pooling/config.json"):
        broken = shutil.copytree(model, tmp_path / "broken", dirs_exist_ok=True)
        (broken / name).unlink()
        result = pyrite("export", "broken", "--to", "plain")
        assert result.returncode == 2, result.stderr
        assert "MODEL: " in result.stderr
        shutil.rmtree(broken)
    broken = shutil.copytree(model, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    result = pyrite("export", "broken", "--to", "plain")
    assert result.returncode == 2, result.stderr
    assert "does not load as a sentence-transformers model" in " ".join(result.stderr.split())
    assert not list((tmp_path / "export").iterdir())
