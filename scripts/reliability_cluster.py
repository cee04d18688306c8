"""Run the tests of faults on a real Kubernetes, and write docs/reliability-cluster.md from what they measured.

    make reliability-cluster        # needs a cluster: KUBECONFIG, or one that `make kube` can start

Takes about 20 minutes. The page is written only where every test has passed.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/reliability-cluster.md"
TESTS = ["tests/real/cluster/test_storms.py", "tests/real/cluster/test_scale.py"]

HEAD = """\
# What faults of a cluster cost

Written by `make reliability-cluster` from tests on a real Kubernetes (one node, restricted pod security and network
policies enforced) with a real S3 server; each test fails where its fault did not happen. How runs are done there:
[On a cluster](cluster.md).

## A run among faults

Runs with ten judge shards, four at a time, met these, one after the other, and each ended with the tables and weights,
byte for byte, of a run that was left alone.

| step | what was done to it | times |
| --- | --- | --: |
"""


def measured() -> list[dict[str, Any]]:
    """Run the tests; what they measured. Leaves with their exit code where one failed or was skipped."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        environment = {**os.environ, "PYRITE_RELIABILITY_ROWS": str(rows)}
        done = subprocess.run(["bash", "scripts/test_cluster.sh", *TESTS], cwd=ROOT, env=environment, check=False)
        if done.returncode != 0 or not rows.is_file():
            print(f"{PAGE.name} is not written: a test failed or was skipped")
            sys.exit(done.returncode or 1)
        return [json.loads(line) for line in rows.read_text().splitlines()]


def page(rows: list[dict[str, Any]]) -> str:
    """The page's text."""
    faults = [f"| {row['row']} | {row['fault']} | {row['times']} |\n" for row in rows if row["table"] == "cluster"]
    tables = [f"\n{row['tables']} tables and weight files were compared.\n" for row in rows if row["table"] == "same"]
    return "".join([HEAD, *faults, *tables, *(_scale(row) for row in rows if row["table"] == "scale")])


def _scale(row: dict[str, Any]) -> str:
    lines = [
        "\n## Many shards, many runs\n\n",
        "The controller's own metrics over half a minute each.\n\n",
        "| | seconds a turn | API calls a minute |\n| --- | --: | --: |\n",
    ]
    for name, key in (("nothing", "empty"), ("50 finished runs", "full"), ("and a run of 500 shards", "wide")):
        figures = row[key]
        lines.append(f"| {name} | {figures['seconds a turn']:.2f} | {figures['calls a minute']:.0f} |\n")
    return "".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(measured()))
    print(f"wrote {PAGE.relative_to(ROOT)}")
