"""A finished run whose chosen model is a tiny one."""

import json
from pathlib import Path

from people.finished_run import write_run
from pyrite.store import Store, checksum_file
from report.report_factory import make


def write_run_with_model(store: Store, model: Path) -> str:
    """Write a run with the model ``model`` as its chosen one, and return its name."""
    inputs = make(retention=False)
    name = write_run(store, inputs)
    key = f"runs/{name}/steps/evaluate.json"
    manifest = json.loads(store.read(key))
    for path in sorted(path for path in model.rglob("*") if path.is_file()):
        output = f"model/{path.relative_to(model).as_posix()}"
        size, sha256 = checksum_file(path)
        manifest["outputs"].append({"key": output, "bytes": size, "sha256": sha256})
        store.write(f"runs/{name}/{output}", path.read_bytes())
    manifest["summary"] = {"chosen": inputs.choice.name}
    store.write(key, json.dumps(manifest).encode())
    return name
