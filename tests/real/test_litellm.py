"""The file of `pyrite litellm`, included by the configuration of a real LiteLLM proxy in front of two stub servers."""

import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pyrite.store import open_store
from real.embedding_stub import EmbeddingStub
from real.vllm import free_port
from registry.finished import write_finished_run

pytestmark = pytest.mark.real
KEY = "sk-0123456789abcdef0123456789abcdef0123456789abcdef"


@contextmanager
def proxy(config: Path) -> Iterator[str]:
    """Start the proxy, and yield its address."""
    if not (program := shutil.which("litellm")):
        pytest.skip("litellm is not on PATH: install 'litellm[proxy]' in a virtual environment of its own")
    port, log = free_port(), config.with_suffix(".log")
    command = [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "LITELLM_MASTER_KEY": KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
    try:
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            try:
                urllib.request.urlopen(f"{url}/health/liveliness", timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def request(url: str, body: dict[str, Any] | None = None) -> Any:
    data = json.dumps(body).encode() if body else None
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    with urllib.request.urlopen(urllib.request.Request(url, data, headers)) as response:
        return json.load(response)


def test_the_proxy_sends_each_domain_to_its_server(
    pyrite: Callable[..., subprocess.CompletedProcess[str]], tiny_model: Path, tmp_path: Path
) -> None:
    for domain in ("law", "medicine"):
        write_finished_run(open_store(str(tmp_path / "store")), domain, tiny_model, change=domain)
        assert pyrite("publish", domain, "--domain", domain, "--channel", "production").returncode == 0
    with EmbeddingStub("embed-law-v1", 1.0) as law, EmbeddingStub("embed-medicine-v1", 2.0) as medicine:
        written = pyrite("litellm", tmp_path / "models.yaml", f"law={law.url}", f"medicine={medicine.url}/v1/")
        assert written.returncode == 0, written.stderr
        config = tmp_path / "proxy.yaml"
        config.write_text("include: [models.yaml]\n")
        with proxy(config) as url:
            found = {
                name: request(f"{url}/v1/embeddings", {"model": name, "input": ["text"]})["data"][0]["embedding"]
                for name in ("embed-law-v1", "embed-medicine-v1")
            }
            assert found == {"embed-law-v1": [1.0], "embed-medicine-v1": [2.0]}
            assert [body["truncate_prompt_tokens"] for body in law.bodies + medicine.bodies] == [-1, -1]
            info = {each["model_name"]: each["model_info"] for each in request(f"{url}/v1/model/info")["data"]}
            assert info["embed-law-v1"]["prompts"] == {"query": "", "document": ""}
            medicine.model = "embed-medicine-v2"
            with pytest.raises(urllib.error.HTTPError, match="404"):
                request(f"{url}/v1/embeddings", {"model": "embed-medicine-v1", "input": ["text"]})
