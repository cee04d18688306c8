"""Runtimes in environments of their own embed exports as the trained model does, and `pyrite export` sees if not."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from export.models import PROMPTS, change, prompted, source
from pyrite.embedding.models import load
from pyrite.errors import UserError
from pyrite.export import FORMATS, Reference, check, layout
from pyrite.export.runtimes import RUNTIMES, RUNTIMES_FOLDER

pytestmark = [pytest.mark.real, pytest.mark.slow]

ROOT = Path(__file__).parents[2]

#: The format with which each runtime is tested.
FORMAT = {"fastembed": "onnx", "transformers.js": "onnx", "llama.cpp": "gguf", "vllm": "plain"}

#: The snippets of docs/serving.md, by runtime, and the lowest cosine similarity: OpenVINO has int8 weights.
SNIPPETS = {"sentence-transformers": 0.9999, "onnxruntime": 0.9999, "openvino": 0.95} | dict.fromkeys(FORMAT, 0.9999)

#: Writes what a snippet computed.
_DUMP = {
    "python": "\nimport json\njson.dump([[float(x) for x in each] for each in vectors], open('vectors.json', 'w'))\n",
    "javascript": "\nfs.writeFileSync('vectors.json', JSON.stringify(vectors));\n",
}


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with prompts, whose attention heads have 32 dimensions: vLLM's CPU build supports no smaller ones."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = tmp_path_factory.mktemp("model")
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_model))
    size = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(tokenizer), **size)).save_pretrained(str(folder / "bert"))
    tokenizer.save_pretrained(str(folder / "bert"))
    modules = [Transformer(str(folder / "bert"), max_seq_length=128), Pooling(64)]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder / "st"))
    return prompted(folder / "st", folder / "prompted")


@pytest.fixture(scope="module")
def reference(model: Path) -> Reference:
    found = source(model)
    return Reference.of(found, load(model, model, found.spec, "cpu", precision="float32"))


@pytest.fixture(scope="module")
def exported(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in all formats whose packages are installed."""
    folder = tmp_path_factory.mktemp("export") / ".my-run.partial"  # as while `pyrite export` checks it
    layout.save(reference.model, "tiny", folder)
    for name in ("onnx", "openvino", "gguf"):
        try:
            FORMATS[name].check_packages()
        except UserError:
            continue
        FORMATS[name].write(folder, folder)
    return folder


def require(runtime: str, exported: Path, name: str) -> None:
    """Skip the test if the runtime is missing, or the packages that write its format."""
    if RUNTIMES[runtime].command() is None:
        pytest.skip(f"{runtime} is not installed; run `{RUNTIMES[runtime].install}`")
    if not (exported / FORMATS[name].files[0]).exists():
        pytest.skip(f"the packages of the format {name} are not installed (extra: export)")


@pytest.mark.parametrize("runtime", FORMAT)
def test_a_runtime_embeds_as_the_trained_model(runtime: str, exported: Path, reference: Reference) -> None:
    require(runtime, exported, FORMAT[runtime])
    found = check(FORMATS[FORMAT[runtime]], RUNTIMES[runtime], exported, reference, None)
    assert found.parity.min_cosine > 0.9999
    assert found.parity.overlap == pytest.approx(1, abs=0.02)
    assert all(speed > 0 for speed in found.speed.values())


def drop_prompt(folder: Path) -> None:
    change(folder / "config_sentence_transformers.json", prompts={"query": "", "document": PROMPTS["document"]})


def pool_first_token(folder: Path) -> None:
    change(folder / "1_Pooling/config.json", pooling_mode_mean_tokens=False, pooling_mode_cls_token=True)
    _write_gguf_again(folder)


def shorten_window(folder: Path) -> None:
    """Each loader reads the window from another file."""
    change(folder / "sentence_bert_config.json", max_seq_length=64)
    change(folder / "tokenizer_config.json", model_max_length=64)
    _write_gguf_again(folder)


def _write_gguf_again(folder: Path) -> None:
    """Pooling and window are in the GGUF file itself."""
    if (folder / "gguf").is_dir():
        FORMATS["gguf"].write(folder, folder)


@pytest.mark.parametrize("runtime", FORMAT)
@pytest.mark.parametrize("defect", [drop_prompt, pool_first_token, shorten_window])
def test_a_defect_is_caught(
    runtime: str, defect: Callable[[Path], None], exported: Path, reference: Reference, tmp_path: Path
) -> None:
    name = FORMAT[runtime]
    require(runtime, exported, name)
    broken = shutil.copytree(exported, tmp_path / "broken")
    defect(broken)
    with pytest.raises(UserError, match=f"{name} in {runtime} does not embed as the trained model does") as caught:
        check(FORMATS[name], RUNTIMES[runtime], broken, reference, None)
    if defect is drop_prompt:
        assert "for the query '" in str(caught.value)


def snippet(runtime: str) -> tuple[str, str]:
    """The language and the code of the snippet for ``runtime`` in docs/serving.md."""
    found = re.search(
        rf"^```(\w+) {re.escape(runtime)}\n(.*?)^```", (ROOT / "docs/serving.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert found, f"docs/serving.md has no snippet for {runtime}"
    return found[1], found[2]


@pytest.mark.parametrize("runtime", SNIPPETS)
def test_a_documented_snippet_gives_the_trained_vectors(
    runtime: str, exported: Path, reference: Reference, tmp_path: Path
) -> None:
    known = RUNTIMES[runtime]
    require(runtime, exported, known.formats[0])
    command = known.command()
    assert command
    language, code = snippet(runtime)
    (tmp_path / "export").mkdir()
    (tmp_path / "export/my-run").symlink_to(exported)
    program = tmp_path / ("snippet.py" if language == "python" else "snippet.mjs")
    program.write_text(code + _DUMP[language])
    if known.place == "node":
        folder = os.environ.get(RUNTIMES_FOLDER) or ROOT / ".venv-runtimes"
        (tmp_path / "node_modules").symlink_to(Path(folder) / "node/node_modules")
    with serving(runtime, command, exported, tmp_path) as address:
        program.write_text(program.read_text().replace("http://localhost:8000", address))
        done = subprocess.run([*command, program.name], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    vectors = np.array(json.loads((tmp_path / "vectors.json").read_text()))
    query, passages = texts_of(code)
    trained = np.array([reference.model.encode_query(query), *reference.model.encode_document(passages)])
    assert (unit(vectors) * unit(trained)).sum(axis=1).min() > SNIPPETS[runtime]
    first = passages[int((unit(trained)[1:] @ unit(trained)[0]).argmax())]
    assert done.stdout.strip().splitlines()[-1] == first.strip()


def texts_of(code: str) -> tuple[str, list[str]]:
    """The query and the passages of a snippet. They are written alike in Python and in JavaScript."""
    query = re.search(r"query = (['\"])(.*?)\1", code)
    listed = re.search(r"passages = \[(.*?)\];?$", code, re.MULTILINE)
    assert query
    assert listed
    passages = [found[1] for found in re.findall(r"(['\"])(.*?)\1", listed[1])]
    return query[2], [*passages[:-1], passages[-1] * 200]


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@contextmanager
def serving(runtime: str, command: Sequence[str], folder: Path, scratch: Path) -> Iterator[str]:
    """The address of a server if the runtime is one; a user starts it in another terminal."""
    if runtime != "vllm":
        yield ""
        return
    programs = ROOT / "src/pyrite/export/runtimes"
    code = (
        f"import sys; sys.path.insert(0, {str(programs)!r}); from pathlib import Path; import vllm_runtime as v\n"
        f"with v.server(Path({str(folder)!r}), 'my-run') as address: print(address, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [*command, "-c", code], cwd=scratch, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        yield process.stdout.readline().strip()
        process.stdin.close()
        assert process.wait(90) == 0


def test_the_snippets_of_all_runtimes_are_tested() -> None:
    documented = set(
        re.findall(r"^```(?:python|javascript) (.+)$", (ROOT / "docs/serving.md").read_text(), re.MULTILINE)
    )
    assert documented == SNIPPETS.keys() | {"model2vec"}
