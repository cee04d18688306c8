"""The chart's vLLM server without a GPU: a real vLLM, in its CPU build (scripts/real_vllm.py), mounted into the pods.

The model is too small to judge: its grades test the communication, not the quality.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from real.cluster.faults import CLUSTER_COMMAND
from real.cluster.release import Object
from real.vllm import REAL_VLLM, SCRIPT, VARYING

#: The worker image runs the server too, with its own Python.
_PYTHON = "python3.11"

#: 32 pairs. On a CPU a pair takes a second.
RUN: Object = {
    "prepare": {"min_chars": 40, "max_chars": 400, "max_train_queries": 8},
    "retrieve": {"range_max": 4},
    "mine": {"num_negatives": 1, "relative_margin": None},
    "finetune": {"batch_size": 2, "epochs": 3, "max_tokens": 32},
    "judge": {"kind": "llm", "model": REAL_VLLM.MODEL_NAME, "shards": 2},
}


def prepare_vllm() -> None:
    """Prepare vLLM for pods. Skips the test if vLLM is not installed or the node is not this machine."""
    if not REAL_VLLM.READY.exists():
        pytest.skip("vLLM is not installed: `make real-vllm ARGS=--for-pods` installs it (3.4 GB)")
    if not (REAL_VLLM.VENV / "lib" / _PYTHON).is_dir():
        pytest.skip(f"{REAL_VLLM.VENV.name} has another Python than the worker image's {_PYTHON}")
    if not CLUSTER_COMMAND.is_file():
        pytest.skip("needs a node on this machine")
    subprocess.run([sys.executable, str(SCRIPT), "--for-pods"], check=True, capture_output=True)


def host_volume(name: str, folder: str) -> list[Object]:
    """A folder of this machine as a PersistentVolumeClaim ``name``, which restricted pods may mount."""
    volume = f"{{{{ .Release.Namespace }}}}-{name}"
    size = {"storage": "8Gi"}
    common: Object = {"accessModes": ["ReadOnlyMany"], "storageClassName": ""}
    volume_spec = {
        **common,
        "capacity": size,
        "persistentVolumeReclaimPolicy": "Retain",
        "hostPath": {"path": folder, "type": "Directory"},
        "claimRef": {"namespace": "{{ .Release.Namespace }}", "name": name},
    }
    claim = {**common, "volumeName": volume, "resources": {"requests": size}}
    return [
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": volume}, "spec": volume_spec},
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": claim},
    ]


def server_values(**resources: Object) -> Object:
    """The chart's ``server`` values. They need ``host_volume("vllm", ...)`` in its extraObjects."""
    return {
        "enabled": True,
        "image": {"repository": "localhost/pyrite-worker", "tag": "0.1.0"},
        "args": [*REAL_VLLM.arguments(Path("/vllm/model"), "0.0.0.0", 8000), VARYING],
        "model": {"allowHub": False},
        "resources": resources,
        "extraVolumes": [{"name": "vllm", "persistentVolumeClaim": {"claimName": "vllm", "readOnly": True}}],
        "extraVolumeMounts": [{"name": "vllm", "mountPath": "/vllm", "readOnly": True}],
        "extraEnv": [
            {"name": "PYTHONPATH", "value": f"/vllm/lib/{_PYTHON}/site-packages"},
            {"name": "LD_LIBRARY_PATH", "value": "/vllm/lib"},
            {"name": "VLLM_CPU_KVCACHE_SPACE", "value": "1"},
            {"name": "TORCH_COMPILE_DISABLE", "value": "1"},  # the image has no compiler
        ],
    }
