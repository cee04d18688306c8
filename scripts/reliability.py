"""Run the tests of faults against a real S3 server, and write docs/reliability.md from what they measured.

    make real-s3        # once, to install the server; Ctrl-C
    make reliability    # or: .venv/bin/python scripts/reliability.py

Takes about 25 minutes. The page is written only where every test has passed.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/reliability.md"
TESTS = ["tests/real/test_s3_faults.py", "tests/real/test_s3_runs.py", "tests/real/test_s3_llm.py"]

Rows = list[dict[str, Any]]

HEAD = """\
# What faults of S3 cost

Work may be done more than once; its result is published once. A fault that passes costs time and nothing else; one that
does not pass is told at once, in one sentence. This page is written by `make reliability` from tests against a real S3
server (SeaweedFS) behind a proxy that breaks requests; each test fails where its fault did not happen. What pods, nodes
and the controller can meet: [what faults of a cluster cost](reliability-cluster.md).

How it is done: [design](design.md). A request is given up after 15 s without a byte and tried again: by boto3 up to
four times, and then by Pyrite for 15 minutes, with pauses of up to 20 s. Every object carries its sha256, and readers
check it. The manifest that makes a step finished is put last, with a condition (`If-None-Match`, `If-Match`), and read
back: 409 is tried again; 412 may be Pyrite's own work whose answer was lost, which what stands there says. Nothing is
taken away after an answer that can be read two ways.

A process that is killed while it uploads a large file leaves pieces of it in the bucket, which cost money and stand in
no listing. A lifecycle rule lets the bucket drop them:

    aws s3api put-bucket-lifecycle-configuration --bucket BUCKET --lifecycle-configuration '{"Rules": [{
      "ID": "unfinished uploads", "Status": "Enabled", "Filter": {},
      "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7}}]}'

"""


def measured() -> Rows:
    """Run the tests; what they measured. Leaves with their exit code where one failed or was skipped."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        command = [sys.executable, "-m", "pytest", "-m", "real", "-p", "no:cacheprovider", *TESTS]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYRITE_RELIABILITY_ROWS": str(rows)}, check=False)
        if done.returncode != 0 or not rows.is_file():
            print(f"{PAGE.name} is not written: a test failed, or the server is not installed (`make real-s3`)")
            sys.exit(done.returncode or 1)
        return [json.loads(line) for line in rows.read_text().splitlines()]


def page(rows: Rows) -> str:
    """The page's text."""
    tables: dict[str, Rows] = defaultdict(list)
    for row in rows:
        tables[row["table"]].append(row)
    parts = [
        HEAD,
        "## A whole run among faults\n\n"
        "A run of one iteration, 9 steps, on a tiny model, with every fifth request broken (every 40th stalled for\n"
        "30 s). Each ended with the tables and weights, byte for byte, of an undisturbed run in a folder.\n\n",
        _runs(tables["runs"]),
        "\nHow often a fault met a step: its manifest, its outputs, and work in progress that it keeps; what belongs\n"
        "to no step alone (lists, embeddings, the probe at the start) is the run's.\n\n",
        _grid(tables["steps"], "step", lambda row: str(row["fired"]), add=True),
        "\nEvery step's manifest broken, up to five times in a row:\n\n",
        _grid(tables["manifests"], "step", lambda row: str(row["fired"])),
        "\n## What an LLM is paid for\n\n"
        "Questions (`generate`) and judgments of an LLM are kept every five seconds, in parts that a shard merges at\n"
        "its end. A run with both, two shards each, with a stub in the LLM's place: each ended with the tables of an\n"
        "undisturbed run in a folder, every pair in them once, and what was kept was not asked again.\n\n",
        _llm_runs(tables["llm runs"]),
        "\nHow often a fault met what is done with parts, and the steps' own outputs and manifests:\n\n",
        _grid(tables["llm"], "done with", lambda row: str(row["fired"])),
        "\n## One operation at a time\n\n"
        "Faults in a row / requests made until it was done. Waits are scaled down in these tests. What was written\n"
        "stood there, and what was read was right, in all of them.\n\n",
        _grid(tables["operations"], "operation", lambda row: f"{row['fired']} / {row['requests']}"),
        "\n## Faults at full length\n\n",
        *(
            f"- An endpoint that refuses connections for 60 s: done after {row['seconds']:.0f} s.\n"
            for row in tables["down"]
        ),
        *(f"- A stall of 30 s: left and asked again, done after {row['seconds']:.0f} s.\n" for row in tables["stall"]),
        "\n## Faults that do not pass\n\n",
        "Seconds until it was told; a command that meets it ends with exit code 2.\n\n",
        _grid(tables["told"], "operation", lambda row: f"{row['seconds']:.1f}"),
        "\n",
        *(f'- {case}: "{said}"\n' for case, said in _sentences(tables["told"])),
    ]
    return "".join(parts)


def _runs(rows: Rows) -> str:
    lines = ["| fault | requests | of them broken | seconds |", "| --- | --: | --: | --: |"]
    lines += [f"| {r['column']} | {r['requests']:,} | {r['fired']} | {r['seconds']:.0f} |" for r in rows]
    return "\n".join(lines) + "\n"


def _llm_runs(rows: Rows) -> str:
    lines = ["| fault | requests broken | seconds | pairs asked again |", "| --- | --: | --: | --: |"]
    lines += [f"| {r['column']} | {r.get('fired', '')} | {r['seconds']:.0f} | {r['twice']} |" for r in rows]
    return "\n".join(lines) + "\n"


def _grid(rows: Rows, corner: str, cell: Any, add: bool = False) -> str:
    columns = list(dict.fromkeys(row["column"] for row in rows))
    names = list(dict.fromkeys(row["row"] for row in rows))
    cells: dict[tuple[str, str], str] = {(row["row"], row["column"]): cell(row) for row in rows}
    lines = [f"| {corner} | {' | '.join(columns)} |", f"| --- |{' --: |' * len(columns)}"]
    lines += [f"| {name} | {' | '.join(cells.get((name, column), '') for column in columns)} |" for name in names]
    if add:
        sums = [sum(row["fired"] for row in rows if row["column"] == column) for column in columns]
        lines.append(f"| in all | {' | '.join(map(str, sums))} |")
    return "\n".join(lines) + "\n"


def _sentences(rows: Rows) -> list[tuple[str, str]]:
    """What is said in each case, without the names of the test's own store."""
    return list({row["column"]: row["said"].partition(": ")[2] for row in rows}.items())


if __name__ == "__main__":
    PAGE.write_text(page(measured()))
    print(f"wrote {PAGE.relative_to(ROOT)}")
