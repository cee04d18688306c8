"""Run the tests of faults on a real Kubernetes, and write docs/reliability-cluster.md from what they measured.

    make reliability-cluster        # needs a cluster: KUBECONFIG, or one that `make kube` can start

Takes about an hour. The page is written only where every test has passed, and none was skipped: for that it needs the
one-node cluster that `make kube` starts beside this checkout, and `make real-vllm ARGS=--for-pods`.
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
TESTS = [f"tests/real/cluster/test_{name}.py" for name in ("storms", "server", "misuse", "network", "scale")]

Row = dict[str, Any]

HEAD = """\
# What faults of a cluster cost

Written by `make reliability-cluster` from tests on a real Kubernetes (one node, restricted pod security and network
policies enforced) with a real S3 server; each test fails where its fault did not happen. How runs are done there:
[On a cluster](cluster.md).

## A run among faults

Runs with 40 judge shards, four at a time, met these, one after the other, and each ended with the tables and weights,
byte for byte, of a run that was left alone.

| step | what was done to it | times |
| --- | --- | --: |
"""


SERVER = """
## GPUs shared in time

A real vLLM (its CPU build, with a small model) and a fine-tuning that both claim all of the node's GPUs: the server
answered {starting} s after it was asked for, {pairs} pairs were judged, it was gone before training began, and the run
took {whole} s. Where nobody scales the server, training waits and says for what; it goes on once a person makes room.
"""

CASES = """
## What people get wrong, and who reaches whom

- {misuse} cases of misuse ended in a message that says what to do, and lost nothing (`test_misuse.py`).
- {network} cases of network policy and rights were tried, policies from inside the pods (`test_network.py`).
"""


def measured() -> list[Row]:
    """Run the tests; what they measured. Leaves with words where one failed or was skipped."""
    with tempfile.TemporaryDirectory() as folder:
        rows, results = Path(folder) / "rows.jsonl", Path(folder) / "results.xml"
        environment = {**os.environ, "PYRITE_RELIABILITY_ROWS": str(rows)}
        command = ["bash", "scripts/test_cluster.sh", f"--junitxml={results}", *TESTS]
        done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
        if done.returncode != 0:
            sys.exit(f"{PAGE.name} is not written: a test failed")
        cases = ET.parse(results).getroot().findall(".//testcase")
        if skipped := {str(why.get("message")) for case in cases if (why := case.find("skipped")) is not None}:
            sys.exit(f"{PAGE.name} is not written: tests were skipped: {'; '.join(sorted(skipped))}")
        passed = Counter(str(case.get("classname")).rpartition("test_")[2] for case in cases)
        found = [json.loads(line) for line in rows.read_text().splitlines()]
        return [*found, *({"table": "cases", "about": about, "passed": number} for about, number in passed.items())]


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
        "The controller's own metrics over half a minute each. A turn begins 3 s after the last one ended. It lists\n"
        "the runs; where one is open, all Jobs; and for each run with a Job its pods: three calls for one run.\n\n"
        "These are resources, not work. The finished runs never ran: the test wrote their status. Of the 500 shards 20 "
        "have a pod\nat once, never 500, and no node takes any of them.\n\n",
        "| | seconds a turn | API calls a minute |\n| --- | --: | --: |\n",
    ]
    for name, key in (("nothing", "empty"), ("50 finished runs", "full"), ("and a run of 500 shards", "wide")):
        figures = row[key]
        lines.append(f"| {name} | {figures['seconds a turn']:.2f} | {figures['calls a minute']:.0f} |\n")
    longer, more = (row["wide"][what] / row["empty"][what] for what in ("seconds a turn", "calls a minute"))
    lines.append(
        f"\nFrom the first row to the last a turn takes {longer:.1f} times as long, and there are {more:.1f} times as "
        "many calls:\nthose of one open run, whatever its shards. The seconds grow with what is listed.\n"
    )
    return "".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(measured()))
    print(f"wrote {PAGE.relative_to(ROOT)}")
