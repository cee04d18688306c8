"""Publishing, promoting, pulling and selecting on the command line."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from export.models import PROMPTS, prompted
from pyrite.embedding.models import model_digest
from pyrite.store import open_store
from registry.finished import write_finished_run

Pyrite = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def output(result: subprocess.CompletedProcess[str]) -> str:
    """The output of a command that succeeds, on one line."""
    assert result.returncode == 0, result.stderr + result.stdout
    return " ".join(result.stdout.split())


def error(result: subprocess.CompletedProcess[str], code: int = 2) -> str:
    """The message of a command that fails."""
    assert result.returncode == code, result.stderr + result.stdout
    assert "Traceback" not in result.stderr
    return " ".join(result.stderr.split())


def test_versions_are_published_promoted_pulled_and_rolled_back(
    pyrite: Pyrite, store: Path, tiny_model: Path, tmp_path: Path
) -> None:
    for name in ("first", "second"):
        write_finished_run(open_store(str(store)), name, tiny_model, change=name, gain=1.2 if name == "first" else 1.6)
    assert "published law v1" in output(pyrite("publish", "first", "--domain", "law", "--channel", "production"))
    digest = json.loads((store / "models/law/v1/version.json").read_text())["digest"]
    (tmp_path / "parity.json").write_text(json.dumps({"model_digest": digest}))
    again = output(pyrite("publish", "first", "--domain", "law", "--export", tmp_path))
    assert "law v1 is this model already" in again
    assert "--export has no effect" in again
    assert "published law v2" in output(pyrite("publish", "second", "--domain", "law"))
    version = json.loads((store / "models/law/v2/version.json").read_text())
    assert version["run"] == "second"
    assert version["base"]["digest"]
    assert version["judges"] == ["labels-1"]
    assert version["metrics"]["mrr@5"]["relative_interval"]["low"] > 0
    assert version["retention"][0]["set"] == "cisi"
    assert version["settings"]["evaluate"]["gate"]["mrr@5"] == 0.05
    assert version["forced"] is None
    assert not list((store / "runs/first/scratch").rglob("*.safetensors")), "the temporary copy is deleted"

    assert output(pyrite("promote", "law", "v2")) == "law: production is v2"
    shown = output(pyrite("models", COLUMNS="200"))
    assert "law 2 latest v2, production v2 +" in shown
    listed = pyrite("models", "law").stdout.splitlines()
    assert [line.split()[0] for line in listed if line.startswith("v")] == ["version", "v2", "v1"]
    assert "latest" in next(line for line in listed if line.startswith("v2"))
    assert max(map(len, listed)) <= 80
    compared = output(pyrite("models", "law", "v1", "v2", COLUMNS="200"))
    for version_ in (1, 2):
        mean = json.loads((store / f"models/law/v{version_}/version.json").read_text())["means"]["mrr@5"]
        assert f"{mean:.3f}".lstrip("0") in compared.partition("DCG@5")[0]

    folder = tmp_path / "models/pulled"
    assert "law v1, model digest" in output(pyrite("pull", "law@v1", folder))
    assert model_digest(folder) == json.loads((store / "models/law/v1/version.json").read_text())["digest"]
    assert "is not an empty folder" in error(pyrite("pull", "law", folder))
    assert output(pyrite("rollback", "law")) == "law: production is v1, was v2"
    assert "has been at v1 only" in error(pyrite("rollback", "law"))
    assert "latest is always the newest" in error(pyrite("promote", "law", "v1", "--channel", "latest"))

    (store / "models/law/v1/model/note.json").write_text("damaged")
    message = error(pyrite("pull", "law", tmp_path / "other"), 1)
    assert "models/law/v1/model/note.json does not match" in message
    assert not (tmp_path / "other").exists()
    assert not list(tmp_path.glob(".other*"))


def test_a_model_below_its_gate_needs_a_reason(pyrite: Pyrite, store: Path, tiny_model: Path) -> None:
    write_finished_run(open_store(str(store)), "weak", tiny_model, gain=-1.0)
    publish = ("publish", "weak", "--domain", "law")
    assert "run weak chose the base model, so it is not published" in error(pyrite(*publish))
    assert "--force needs a reason" in error(pyrite(*publish, "--force", " "))
    assert not (store / "models").exists()
    assert "published law v1" in output(pyrite(*publish, "--force", "needed for the demo"))
    version = json.loads((store / "models/law/v1/version.json").read_text())
    assert version["forced"] == "needed for the demo"
    assert version["metrics"] == {}
    assert "forced: needed for the demo" in output(pyrite("models", "law", COLUMNS="200"))


def test_an_outdated_or_unfinished_run_is_not_published(pyrite: Pyrite, store: Path, tiny_model: Path) -> None:
    write_finished_run(open_store(str(store)), "old", tiny_model)
    (store / "runs/old/steps/mine-2.json").unlink()
    message = error(pyrite("publish", "old", "--domain", "law", "--force", "hurry"))
    assert "run old has changed since its model was chosen: mine, iteration 2 must run again" in message
    (store / "runs/old/steps/evaluate.json").unlink()
    assert "run old has not finished" in error(pyrite("publish", "old", "--domain", "law"))
    assert "'Law' is not a valid domain" in error(pyrite("publish", "old", "--domain", "Law"))
    assert not (store / "models").exists()


def test_a_changed_base_model_is_not_used(pyrite: Pyrite, store: Path, tiny_model: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_model, tmp_path / "base")
    write_finished_run(open_store(str(store)), "done", base)
    output(pyrite("publish", "done", "--domain", "law"))
    (base / "another.json").touch()
    assert "is not the base model of domain law" in error(pyrite("select", "a question", "--channel", "latest"))
    assert "run done has changed since its model was chosen" in error(pyrite("publish", "done", "--domain", "law"))


def test_publishing_again_moves_latest(pyrite: Pyrite, store: Path, tiny_model: Path) -> None:
    write_finished_run(open_store(str(store)), "done", tiny_model)
    output(pyrite("publish", "done", "--domain", "law"))
    (store / "models/law/channels.json").unlink()  # as if the publisher was killed before it moved the channel
    assert "law v1 is this model already" in output(pyrite("publish", "done", "--domain", "law"))
    assert "law 1 latest v1" in output(pyrite("models", COLUMNS="200"))


def test_the_parity_of_an_export_must_be_of_the_model(
    pyrite: Pyrite, store: Path, tiny_model: Path, tmp_path: Path
) -> None:
    write_finished_run(open_store(str(store)), "done", tiny_model)
    publish = ("publish", "done", "--domain", "law", "--export", tmp_path / "export")
    (tmp_path / "export").mkdir()
    assert "parity.json does not exist" in error(pyrite(*publish))
    path = tmp_path / "export/parity.json"
    path.write_text("[1]")
    assert "is not a JSON object" in error(pyrite(*publish))
    path.write_text(json.dumps({"model_digest": "0" * 64}))
    assert "is about another model" in error(pyrite(*publish))
    parity = {"model_digest": model_digest(store / "runs/done/model"), "cosine": 0.9999}
    path.write_text(json.dumps(parity))
    output(pyrite(*publish))
    assert json.loads((store / "models/law/v1/version.json").read_text())["parity"] == parity


def test_a_query_gets_the_domain_of_the_nearest_training_queries(
    pyrite: Pyrite, store: Path, tiny_model: Path, plain_base: Path, tmp_path: Path
) -> None:
    subjects = {"law": "who pays the court fee of a lawsuit?", "medicine": "which tablets help against gout?"}
    for domain, text in subjects.items():
        write_finished_run(open_store(str(store)), domain, tiny_model, topic=text)
        output(pyrite("publish", domain, "--domain", domain))
    assert "no domain in" in error(pyrite("select", "a question"))
    file = tmp_path / "queries.txt"
    file.write_text("\n".join([*subjects.values(), "", ""]))
    rows = pyrite("select", "--queries", file, "--channel", "latest", "--json").stdout.splitlines()
    found = [json.loads(row) for row in rows]
    assert [(row["query"], row["domain"], row["version"]) for row in found] == [
        (text, domain, "v1") for domain, text in subjects.items()
    ]
    assert all(row["scores"][row["domain"]] == pytest.approx(1, abs=1e-3) for row in found)
    assert output(pyrite("select", subjects["law"], "--channel", "latest", COLUMNS="200")).startswith("law (law 1.000")
    assert "give a QUERY, or --queries" in error(pyrite("select", "x", "--queries", file))
    file.write_text("\n\n")
    assert "has no query" in error(pyrite("select", "--queries", file))
    assert "No such file or directory. Check the path" in error(pyrite("select", "--queries", tmp_path / "none.txt"))
    file.write_bytes(b"caf\xe9")
    assert "is not UTF-8 (byte 3)" in error(pyrite("select", "--queries", file))

    output(pyrite("promote", "law", "v1"))
    only = json.loads(pyrite("select", subjects["medicine"], "--json").stdout)
    assert (only["domain"], [*only["scores"]]) == ("law", ["law"]), "medicine has no production"

    write_finished_run(open_store(str(store)), "other-base", plain_base, topic="what is the law?")
    output(pyrite("publish", "other-base", "--domain", "taxes"))
    assert "the domains have different base models" in error(pyrite("select", "x", "--channel", "latest"))


def test_unknown_domains_versions_and_channels_are_named(pyrite: Pyrite, store: Path, tiny_model: Path) -> None:
    assert "no model is published" in output(pyrite("models"))
    assert "has no model of domain 'law'. It has none yet" in error(pyrite("pull", "law", store / "x"))
    write_finished_run(open_store(str(store)), "done", tiny_model)
    output(pyrite("publish", "done", "--domain", "law"))
    assert "domain law has no version v7. Its versions: v1." in error(pyrite("promote", "law", "v7"))
    nothing = "no version or channel 'production'. Its versions: v1; its channels: latest."
    assert nothing in error(pyrite("pull", "law", store / "x"))
    assert "has no model of domain 'tax'. Its domains: law." in error(pyrite("models", "tax"))
    assert "'v7' is not a valid channel" in error(pyrite("promote", "law", "v1", "--channel", "v7"))
    (store / "models/law/channels.json").write_text("{}")
    assert "channels.json is damaged" in error(pyrite("pull", "law", store / "x"))


def test_an_altered_version_is_not_used(pyrite: Pyrite, store: Path, tiny_model: Path, tmp_path: Path) -> None:
    write_finished_run(open_store(str(store)), "done", tiny_model)
    output(pyrite("publish", "done", "--domain", "law"))
    path, outside = store / "models/law/v1/version.json", tmp_path / "outside"
    version = json.loads(path.read_text())
    for name in (f"model/{outside}", "model/../outside"):
        path.write_text(json.dumps({**version, "files": [{**version["files"][-1], "name": name}]}))
        assert "names a file outside its folder" in error(pyrite("pull", "law@v1", tmp_path / "pulled"), 1)
    path.write_text(json.dumps({**version, "base": {**version["base"], "trust_remote_code": True}}))
    assert "runs code of its own" in error(pyrite("select", "a question", "--channel", "latest"))
    path.write_text(json.dumps({**version, "format": 2}))
    assert "has format 2, but this Pyrite reads format 1" in error(pyrite("pull", "law@v1", tmp_path / "pulled"))
    assert not outside.exists()


@pytest.mark.slow
def test_the_model_of_a_trained_run_is_published_and_pulled(pyrite: Pyrite, run_file: Path, tmp_path: Path) -> None:
    gate = "evaluate.gate={mrr@5: -1, dcg@5: -1, p_value: 1}"
    output(pyrite("train", run_file, "iterations=1", gate))
    published = pyrite("publish", "small", "--domain", "medicine", "--channel", "production", "--force", "it is tiny")
    assert "published medicine v1" in output(published)
    output(pyrite("pull", "medicine", tmp_path / "pulled"))
    assert model_digest(tmp_path / "pulled") == model_digest(tmp_path / "store/runs/small/model")
    row = json.loads(pyrite("select", "How is gout treated?", "--json").stdout)
    assert row["domain"] == "medicine"
    assert row["scores"]["medicine"] > 0.5


def test_litellm_writes_one_model_per_version_and_keeps_other_files(
    pyrite: Pyrite, store: Path, tiny_model: Path, tmp_path: Path
) -> None:
    write_finished_run(open_store(str(store)), "law", prompted(tiny_model, tmp_path / "base"))
    output(pyrite("publish", "law", "--domain", "law", "--channel", "production"))
    file = tmp_path / "models.yaml"
    assert "embed-law-v1 http://a:1/v1" in output(pyrite("litellm", file, "law=http://a:1", "law@v1=http://a:1/v1"))
    params = {"model": "hosted_vllm/embed-law-v1", "api_base": "http://a:1/v1", "truncate_prompt_tokens": -1}
    digest = json.loads((store / "models/law/v1/version.json").read_text())["digest"]
    info = {"mode": "embedding", "domain": "law", "version": "v1", "digest": digest, "prompts": PROMPTS}
    (entry,) = yaml.safe_load(file.read_text())["model_list"]
    assert entry == {"model_name": "embed-law-v1", "litellm_params": params, "model_info": info}
    output(pyrite("litellm", file, "law=http://a:1", "law@latest=http://b:1/"))
    models = yaml.safe_load(file.read_text())["model_list"]
    assert [model["litellm_params"]["api_base"] for model in models] == ["http://a:1/v1", "http://b:1/v1"]

    before = file.read_bytes()
    assert "law: 'a:1' is not a server URL" in error(pyrite("litellm", file, "law=a:1"))
    assert "as DOMAIN=URL" in error(pyrite("litellm", file, "http://a:1/?law=1"))
    assert "no model of domain 'medicine'. Its domains: law" in error(
        pyrite("litellm", file, "law=http://a:1", "medicine=http://b:1")
    )
    own = tmp_path / "proxy.yaml"
    own.write_text("model_list: []\n")
    assert "was not generated by `pyrite litellm`" in error(pyrite("litellm", own, "law=http://a:1"))
    assert "cannot write" in error(pyrite("litellm", tmp_path, "law=http://a:1"))
    (store / "models/law/v1/model/config_sentence_transformers.json").write_text("{")
    assert "does not match its version.json" in error(pyrite("litellm", file, "law=http://a:1"), 1)
    assert (file.read_bytes(), own.read_text()) == (before, "model_list: []\n")
