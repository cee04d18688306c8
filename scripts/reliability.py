"""Run the fault tests against a real S3 server, and write docs/reliability.md from their measurements.

    make real-s3 ARGS=--install-only    # once
    make reliability                    # or: .venv/bin/python scripts/reliability.py

Takes about 25 minutes. The page is written only if all tests pass.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/reliability.md"
TESTS = ["tests/real/test_s3_faults.py", "tests/real/test_s3_runs.py", "tests/real/test_s3_llm.py"]

Row = dict[str, Any]
Rows = list[Row]

HEAD = """\
# The cost of S3 faults

A step may be computed more than once; its result is published once. A transient fault only costs time. A permanent one
is reported at once, in one sentence. `make reliability` writes this page from tests against a real S3 server
(SeaweedFS) behind a fault-injecting proxy; a test fails if its fault did not happen. For faults of pods, nodes and the
controller, see [the cost of cluster faults](reliability-cluster.md).

A request times out after 15 s without a byte. boto3 tries it up to four times, and Pyrite repeats that for 15 minutes,
with pauses of up to 20 s. Every object carries its sha256, which readers verify. The manifest, which makes a step
finished, is written last, with `If-None-Match` or `If-Match`, and read back. 409 is retried. After 412 Pyrite reads the
manifest: it may be its own, if the response to an earlier attempt was lost. No ambiguous response leads to a deletion.
See also [design](design.md).

A process that is killed during a large upload leaves parts in the bucket, which cost money and are not listed. A
lifecycle rule deletes them:

    aws s3api put-bucket-lifecycle-configuration --bucket BUCKET --lifecycle-configuration '{"Rules": [{
      "ID": "unfinished uploads", "Status": "Enabled", "Filter": {},
      "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7}}]}'

"""

OBSTORE = """
## Why not obstore

[obstore](https://developmentseed.org/obstore/) (bindings of Rust's `object_store`) was tried as a replacement of boto3:
version 0.12.1, against SeaweedFS behind the same proxy. It creates and replaces objects conditionally (of eight
concurrent `mode="create"` one won), sends metadata and KMS headers, and retries 5xx, 429 and broken connections itself.
Unlike boto3 it also detects cut headers. But it cannot replace Pyrite's own handling:

| situation | obstore | Pyrite with boto3 |
| --- | --- | --- |
| create, 409 | `AlreadyExistsError`, although the key does not exist | retried |
| own conditional put, response lost | `AlreadyExistsError` or `PreconditionError` | recognized as its own |
| conditional put, body cut or stalled | `GenericError` | retried and read back |
| `head` | no user metadata, so no sha256 | sha256 from the metadata |
| missing bucket, on any request | `FileNotFoundError`, as for a missing key | "the bucket does not exist" |
| wrong key, clock skew, access denied | `PermissionDeniedError`, S3's code only in its text | a message each |
| `RequestTimeout` (400) | not retried | retried |
| full store (507) | retried | reported at once |
| unknown host | `GenericError`, as for a refused connection | "cannot resolve HOST" |
| `AWS_PROFILE`, SSO | ignored; needs boto3 as the credential provider | supported |

The read-back, the retries, the error messages and boto3 itself would stay. About 35 of the 660 lines for S3 would go
(the check for cut headers, the client's configuration), and parsing S3's codes out of error texts would add as many.
Both support web identity and EKS Pod Identity; neither was tried.
"""


def measured() -> Rows:
    """Run the tests and return their measurements. Exits with their exit code if one failed or was skipped."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        command = [sys.executable, "-m", "pytest", "-m", "real", "-p", "no:cacheprovider", *TESTS]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYRITE_RELIABILITY_ROWS": str(rows)}, check=False)
        if done.returncode != 0 or not rows.is_file():
            print(f"{PAGE.name} was not written: a test failed, or the server is not installed (see `make real-s3`).")
            sys.exit(done.returncode or 1)
        return [json.loads(line) for line in rows.read_text().splitlines()]


def page(rows: Rows) -> str:
    """The page's text."""
    tables: dict[str, Rows] = defaultdict(list)
    for row in rows:
        tables[row["table"]].append(row)
    parts = [
        HEAD,
        "## A complete run with faults\n\n"
        "A run of one iteration, 9 steps, on a tiny model, with every fifth request broken (every 40th stalled for\n"
        "30 s). Tables and weights were identical to those of a run in a folder without faults.\n\n",
        _runs(tables["runs"]),
        "\nFaults per step: in its manifest, its outputs, and its saved work in progress. Requests that belong to no\n"
        "step (lists, embeddings, the probe at the start) count for the run.\n\n",
        _grid(tables["steps"], "step", lambda row: str(row["fired"]), total=True),
        "\nFaults in the write of every step's manifest, up to five in a row:\n\n",
        _grid(tables["manifests"], "step", lambda row: str(row["fired"])),
        "\n## Replies of an LLM\n\n"
        "Questions (`generate`) and judgments of an LLM are saved every five seconds, in parts that a shard merges\n"
        "when it finishes. A run with both, two shards each, with a stub as the LLM: its tables were identical to\n"
        "those of a run in a folder without faults, they contained every pair once, and no saved pair was requested\n"
        "again.\n\n",
        _llm_runs(tables["llm runs"]),
        "\nFaults per operation on parts, and in the steps' own outputs and manifests:\n\n",
        _grid(tables["llm"], "operation", lambda row: str(row["fired"])),
        "\n## One operation at a time\n\n"
        "Consecutive faults / requests until the operation succeeded. Waits are shorter in these tests. All contents\n"
        "that were written or read were correct.\n\n",
        _grid(tables["operations"], "operation", lambda row: f"{row['fired']} / {row['requests']}"),
        "\n## Faults with the default waits\n\n",
        *(f"- Connections refused for 60 s: succeeded after {row['seconds']:.0f} s.\n" for row in tables["down"]),
        *(f"- A stall of 30 s: succeeded after {row['seconds']:.0f} s, by a retry.\n" for row in tables["stall"]),
        "\n## Permanent faults\n\n",
        "Seconds until the error. The command exits with code 2.\n\n",
        _grid(tables["permanent"], "operation", lambda row: f"{row['seconds']:.1f}"),
        "\n",
        *(f'- {case}: "{message}"\n' for case, message in _messages(tables["permanent"])),
        OBSTORE,
    ]
    return "".join(parts)


def _runs(rows: Rows) -> str:
    lines = ["| fault | requests | broken | seconds |", "| --- | --: | --: | --: |"]
    lines += [f"| {r['column']} | {r['requests']:,} | {r['fired']} | {r['seconds']:.0f} |" for r in rows]
    return "\n".join(lines) + "\n"


def _llm_runs(rows: Rows) -> str:
    lines = ["| fault | requests broken | seconds | pairs requested again |", "| --- | --: | --: | --: |"]
    lines += [f"| {r['column']} | {r.get('fired', '')} | {r['seconds']:.0f} | {r['repeated']} |" for r in rows]
    return "\n".join(lines) + "\n"


def _grid(rows: Rows, corner: str, cell: Callable[[Row], str], total: bool = False) -> str:
    columns = list(dict.fromkeys(row["column"] for row in rows))
    names = list(dict.fromkeys(row["row"] for row in rows))
    cells: dict[tuple[str, str], str] = {(row["row"], row["column"]): cell(row) for row in rows}
    lines = [f"| {corner} | {' | '.join(columns)} |", f"| --- |{' --: |' * len(columns)}"]
    lines += [f"| {name} | {' | '.join(cells.get((name, column), '') for column in columns)} |" for name in names]
    if total:
        sums = [sum(row["fired"] for row in rows if row["column"] == column) for column in columns]
        lines.append(f"| total | {' | '.join(map(str, sums))} |")
    return "\n".join(lines) + "\n"


def _messages(rows: Rows) -> list[tuple[str, str]]:
    """The message of each case, without the name of the test's store."""
    return list({row["column"]: row["message"].partition(": ")[2] for row in rows}.items())


if __name__ == "__main__":
    PAGE.write_text(page(measured()))
    print(f"wrote {PAGE.relative_to(ROOT)}")
