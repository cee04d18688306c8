"""Run the fault tests on a real Kubernetes, and write docs/reliability-cluster.md from their measurements.

    make reliability-cluster        # uses KUBECONFIG; without it, starts a cluster as `make kube` does

Takes about an hour. The page is written only if every test passes and none is skipped. That needs the one-node cluster
of `make kube`, and `make real-vllm ARGS=--for-pods`.
"""

import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/reliability-cluster.md"
TESTS = [f"tests/real/cluster/test_{name}.py" for name in ("faults", "server", "misuse", "network", "scale")]

Row = dict[str, Any]

HEAD = """\
# What faults of a cluster cost

Written by `make reliability-cluster` from tests on a real Kubernetes (one node, restricted Pod Security and network
policies enforced) with a real S3 server. Each test checks that its fault happened. How runs work there:
[On a cluster](cluster.md).

## Runs with faults

Runs with 40 judge shards, four at a time, met these faults one after the other. Each ended with the same tables and
weights, byte for byte, as a run without faults.

| step | fault | times |
| --- | --- | --: |
"""


SERVER = """
## Sharing GPUs

A real vLLM (its CPU build, with a small model) and training both claim all GPUs of the node. The server was ready
{starting} s after it was scaled up, {pairs} pairs were judged, the server was gone before training started, and the run
took {total} s. If the controller does not manage the server, training waits and reports why. It continues once somebody
scales the server down.
"""

CASES = """
## Mistakes, and network access

- {misuse} mistakes ended in a message that says what to do, and lost no results (`test_misuse.py`).
- {network} network policies and permissions were tested, the policies from inside the pods (`test_network.py`).
"""


def run_tests() -> list[Row]:
    """Run the tests and return their measurements. Exits with a message if a test fails or is skipped."""
    with tempfile.TemporaryDirectory() as folder:
        rows, results = Path(folder) / "rows.jsonl", Path(folder) / "results.xml"
        environment = {**os.environ, "PYRITE_RELIABILITY_ROWS": str(rows)}
        command = ["bash", "scripts/test_cluster.sh", f"--junitxml={results}", *TESTS]
        done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
        if done.returncode != 0:
            sys.exit(f"{PAGE.name} was not written: a test failed")
        cases = ET.parse(results).getroot().findall(".//testcase")
        if skipped := {str(skip.get("message")) for case in cases if (skip := case.find("skipped")) is not None}:
            sys.exit(f"{PAGE.name} was not written: tests were skipped: {'; '.join(sorted(skipped))}")
        passed = Counter(str(case.get("classname")).rpartition("test_")[2] for case in cases)
        measurements = [json.loads(line) for line in rows.read_text().splitlines()]
        return [*measurements, *({"table": "cases", "about": about, "passed": n} for about, n in passed.items())]


def page(rows: list[Row]) -> str:
    """The page's text."""
    by_table: dict[str, list[Row]] = {row["table"]: [] for row in rows}
    for row in rows:
        by_table[row["table"]].append(row)
    passed = {row["about"]: row["passed"] for row in by_table["cases"]}
    return "".join(
        [
            HEAD,
            *(f"| {row['row']} | {row['fault']} | {row['times']} |\n" for row in by_table["cluster"]),
            f"\n{max(row['tables'] for row in by_table['same'])} tables and weight files were compared.\n",
            *map(_server, by_table["cluster-server"]),
            CASES.format(**passed),
            *map(_scale, by_table["scale"]),
        ]
    )


def _server(row: Row) -> str:
    return SERVER.format(**{name: round(value) for name, value in row.items() if name != "table"})


def _scale(row: Row) -> str:
    lines = [
        "\n## Many shards, many runs\n\n",
        "The controller's own metrics, over half a minute each. A sync starts 3 s after the last one ended. It lists "
        "the runs.\nIf a run has not ended, it also lists the Jobs, and the pods of each run with a Job: three calls "
        "for one run.\n\n"
        "These runs and shards do no work. The finished runs never ran: the test wrote their status. At most 20 of the "
        "500 shards\nhave a pod at once, and no node fits these pods.\n\n",
        "| | seconds per sync | API calls per minute |\n| --- | --: | --: |\n",
    ]
    for name, key in (("no runs", "empty"), ("50 finished runs", "full"), ("and a run of 500 shards", "wide")):
        figures = row[key]
        lines.append(f"| {name} | {figures['seconds per sync']:.2f} | {figures['calls per minute']:.0f} |\n")
    time, calls = (row["wide"][name] / row["empty"][name] for name in ("seconds per sync", "calls per minute"))
    lines.append(
        f"\nFrom the first row to the last, a sync takes {time:.1f} times as long, with {calls:.1f} times the "
        "calls. The calls\nare those of one active run with any number of shards. The time grows with the size of the "
        "lists.\n"
    )
    return "".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(run_tests()))
    print(f"wrote {PAGE.relative_to(ROOT)}")
