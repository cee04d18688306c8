"""Embeds texts with a vLLM server, which it starts for the export folder and stops at the end."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from standalone import Embed, Floats, prompts, run

_STARTING_SECONDS, _STOPPING_SECONDS = 300, 60

#: The model's name in requests.
_NAME = "exported"

#: No downloads, no usage reports, and memory for the key-value cache, which an embedding model hardly uses.
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}


@contextmanager
def server(folder: Path, name: str) -> Iterator[str]:
    """The address of a running server, in which the model is called ``name``.

    vLLM reads pooling, normalisation and window from the folder.

    Raises:
        RuntimeError: the server did not start.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    options = ["--served-model-name", name, "--runner", "pooling", "--dtype", "float32", "--enforce-eager"]
    log = Path("server.log")
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, *options, "--host", "127.0.0.1", "--port", str(port)],
            env={**os.environ, **_ENVIRONMENT},
            stdout=file,
            stderr=file,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + _STARTING_SECONDS
        while not _is_up(address):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start: {_reason(log)}")
            time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(_STOPPING_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


def start(address: str, folder: Path) -> Embed:
    """Embed by requests to the server at ``address``. vLLM applies no prompts to embeddings."""
    prefix = prompts(folder)

    def embed(texts: Sequence[str], kind: str) -> Floats:
        # Without truncate_prompt_tokens, vLLM rejects texts that are longer than the window; -1 is the window.
        body = {"model": _NAME, "input": [prefix[kind] + text for text in texts], "truncate_prompt_tokens": -1}
        data = _post(f"{address}/v1/embeddings", body)["data"]
        rows = sorted(data, key=lambda each: each["index"])
        return np.array([each["embedding"] for each in rows], dtype=np.float32)

    return embed


def _post(url: str, body: Any) -> Any:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=600) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise RuntimeError(error.read().decode("utf-8", "replace")) from error


def _is_up(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _reason(log: Path) -> str:
    """The last error in the server's log, or its last line."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no output"]
    return next((line for line in reversed(lines) if "Error:" in line), lines[-1]).strip()


def main() -> None:
    folder = Path(sys.argv[1])
    with server(folder, _NAME) as address:
        run(lambda folder, _: start(address, folder), ["vllm-cpu", "torch"])


if __name__ == "__main__":
    main()
