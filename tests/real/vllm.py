"""The real vLLM server of the tests: the CPU build with SmolLM2-135M-Instruct, as `make real-vllm` installs it."""

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

#: Left to itself this model grades every passage 1, and mining then finds no example. So where a prompt's length is
#: even, it is shown that it has said 4 four times over, and says it again: grades that vary, and mean nothing.
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
def serving(*more: str) -> Iterator[str]:
    """The address of a server on this machine, started with ``more`` of vLLM's options."""
    if not REAL_VLLM.READY.exists():
        pytest.skip("no real vLLM here: `make real-vllm ARGS=--install-only` installs it (3.4 GB)")
    port = free_port()
    words = [sys.executable, str(SCRIPT), "--port", str(port), *more]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    said = process.stdout.readline()
    assert said.startswith("up: "), f"it did not start; see {REAL_VLLM.LOG}"
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait(60)
