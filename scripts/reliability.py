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
import textwrap
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/reliability.md"
TESTS = ["tests/real/test_s3_faults.py", "tests/real/test_s3_runs.py", "tests/real/test_s3_llm.py"]

Row = dict[str, Any]
Rows = list[Row]

HEAD = """\
# The cost of S3 faults

Transient faults only cost time: a step may be computed more than once, but its result is published once. Permanent
faults are reported at once. `make reliability` writes this page from tests against a real S3 server (SeaweedFS) behind
a fault-injecting proxy; a test fails if its fault did not happen. For faults of pods, nodes and the controller, see
[the cost of cluster faults](reliability-cluster.md).

A request times out after 15 s without a byte. boto3 sends it up to four times, and Pyrite repeats that for 15 minutes,
with pauses of up to 20 s. Every object carries its sha256, which readers verify. The manifest, which makes a step
finished, is written last, with `If-None-Match` or `If-Match`, and read back. 409 is retried. After 412 Pyrite reads the
manifest, which may be its own if the response to an earlier attempt was lost. Nothing is deleted after an ambiguous
response. See also [design](design.md).

A process that is killed during a large upload leaves parts in the bucket, which cost money and are not listed. A
lifecycle rule deletes them:

    aws s3api put-bucket-lifecycle-configuration --bucket BUCKET --lifecycle-configuration '{"Rules": [{
      "ID": "unfinished uploads", "Status": "Enabled", "Filter": {},
      "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7}}]}'

"""

OBSTORE = """
## Why not obstore

[obstore](https://developmentseed.org/obstore/) (bindings of Rust's `object_store`, version 0.12.1) was tried instead of
boto3, against the same proxy. It supports conditional writes, metadata and KMS headers, retries 5xx, 429 and broken
connections itself and, unlike boto3, detects cut headers. But Pyrite would still need its own retries, read-back and
messages, and boto3:

- A conditional put raises `AlreadyExistsError` or `PreconditionError` after a 409 although the key does not exist, and
  after its own success if the response was lost. It is not retried if the body is cut or stalls.
- `head` returns no user metadata, so no sha256.
- A missing bucket looks like a missing key, an unknown host like a refused connection. Wrong keys, clock skew and
  denied access are one error, with S3's code only in its text.
- `RequestTimeout` (400) is not retried; a full store (507) is.
- `AWS_PROFILE` and SSO are ignored, unless boto3 is the credential provider.
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
        f"\n{_coverage(tables['steps'], 'step')}\n",
        f"In further runs, the write of every manifest was broken {_in_a_row(tables['manifests'])}.\n",
        "\n## Replies of an LLM\n\n"
        "Questions (`generate`) and judgments of an LLM are saved every five seconds, in parts that a shard merges\n"
        "when it finishes. A run with both, two shards each, with a stub as the LLM: its tables were identical to\n"
        "those of a run in a folder without faults. Only pairs whose reply was not yet saved were requested again.\n\n",
        _llm_runs(tables["llm runs"]),
        f"\n{_coverage(tables['llm'], 'operation on parts, and outputs and manifests of every step')}\n",
        "\n## One operation at a time\n\n"
        "The number of consecutive faults before each operation succeeded. It is lower if the client did not notice\n"
        "the fault, or found the operation done although its response was lost. 409 is a response to writes. Waits\n"
        "are shorter in these tests. All contents that were written or read were correct. Operations:\n"
        f"{textwrap.fill(_quote(row['row'] for row in tables['operations']), 118)}.\n\n",
        _survived(tables["operations"]),
        "\n## Faults with the default waits\n\n",
        *(f"- Connections refused for 60 s: succeeded after {row['seconds']:.0f} s.\n" for row in tables["down"]),
        *(f"- A stall of 30 s: succeeded after {row['seconds']:.0f} s, by a retry.\n" for row in tables["stall"]),
        "\n## Permanent faults\n\n",
        f"Every operation failed within {max(row['seconds'] for row in tables['permanent']):.1f} s, with exit code "
        "2:\n\n",
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


def _quote(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in dict.fromkeys(names))


def _survived(rows: Rows) -> str:
    """For each fault: the operations and the numbers of consecutive faults that they survived."""
    lines = ["| fault | consecutive faults |", "| --- | --- |"]
    for column in dict.fromkeys(row["column"] for row in rows):
        by_count: dict[int, list[str]] = defaultdict(list)
        for row in rows:
            if row["column"] == column:
                by_count[row["fired"]].append(row["row"])
        (most, _), *others = sorted(by_count.items(), key=lambda item: -len(item[1]))
        exceptions = "; ".join(f"{count} for {_quote(names)}" for count, names in others)
        lines.append(f"| {column} | {most}{'; ' if exceptions else ''}{exceptions} |")
    return "\n".join(lines) + "\n"


def _coverage(rows: Rows, what: str) -> str:
    """Which faults happened in every row."""
    columns, hit = dict.fromkeys(row["column"] for row in rows), {(row["row"], row["column"]) for row in rows}
    everywhere = [column for column in columns if all((row["row"], column) in hit for row in rows)]
    return f"Faults that hit every {what}: {', '.join(everywhere)}."


def _in_a_row(rows: Rows) -> str:
    """How many consecutive faults happened, and which."""
    low, high = min(row["fired"] for row in rows), max(row["fired"] for row in rows)
    times = f"{low}" if low == high else f"{low} to {high}"
    return f"{times} times in a row: {', '.join(dict.fromkeys(row['column'] for row in rows))}"


def _messages(rows: Rows) -> list[tuple[str, str]]:
    """The message of each case, without the name of the test's store."""
    return list({row["column"]: row["message"].partition(": ")[2] for row in rows}.items())


if __name__ == "__main__":
    PAGE.write_text(page(measured()))
    print(f"wrote {PAGE.relative_to(ROOT)}")
