"""A real vLLM server, installed by `make real-vllm`. Tests have no GPU: the CPU build with SmolLM2-135M-Instruct."""

import importlib.util
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "real_vllm.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("real_vllm", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


REAL_VLLM = _load()

#: A chat template that makes grades vary. The model grades every passage 1, so mining would find no example. If a
#: prompt's length is even, the template adds four earlier turns with the reply 4, which the model repeats.
_TURN = "<|im_start|>assistant\\n4<|im_end|>\\n<|im_start|>user\\nGrade the passage.<|im_end|>\\n"
VARYING = (
    "--chat-template={% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    f"{{% endfor %}}{{% if messages[0].content | length is even %}}{{{{ '{_TURN}' * 4 }}}}{{% endif %}}"
    "{{ '<|im_start|>assistant\\n' }}"
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def serving(*options: str) -> Iterator[str]:
    """Start a server with further vLLM ``options``, and yield its address."""
    if not REAL_VLLM.READY.exists():
        pytest.skip("vLLM is not installed; run `make real-vllm ARGS=--install-only` (3.4 GB)")
    port = free_port()
    command = [sys.executable, str(SCRIPT), "--port", str(port), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        line = process.stdout.readline()
        assert line.startswith("up: "), f"vLLM did not start; see {REAL_VLLM.LOG}"
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)
