"""Write docs/metrics.md from metrics.py; with --check, say whether it is in step.

Usage: python scripts/metrics_reference.py [--check]
"""

import sys
from pathlib import Path

from pyrite.metrics import DESCRIBED, LABELS

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"

#: Start of a name, and the heading for what begins so.
_PARTS = {
    "pyrite_step_": "A worker's step",
    "pyrite_finetune_": "Training",
    "pyrite_judge_": "Judging",
    "pyrite_llm_": "The judge's servers, as a worker sees them",
    "pyrite_controller_": "The controller",
    "pyrite_server_": "The chart's vLLM server, as the controller sees it",
    "pyrite_run_": "Runs, as the controller and `pyrite train` see them",
}

_HEAD = """\
# Metrics

Generated from `src/pyrite/metrics.py` by `make docs`. Each process serves its
own at `/metrics`, where `PYRITE_METRICS_PORT`
names a port: on a cluster all do, on 9100. The first four parts are a worker's, and end with its pod. The others are
the controller's: what runs have come to, read from the store and the cluster, so that no gateway has to keep it.

On a cluster the chart's PodMonitor adds labels to a worker's metrics: `namespace`, `pod`, `component` (worker,
controller or vllm), `run`, `stage`, `iteration` and `shard`; `pyrite train --metrics-port` gives them to the metrics
of its steps, all but `namespace`, which the scrape should add. vLLM's own metrics (`vllm:...`) are in its
documentation.
"""


def reference() -> str:
    """The page as Markdown.

    Raises:
        ValueError: a metric belongs to no part.
    """
    lines = [_HEAD]
    for start, heading in _PARTS.items():
        lines += [f"## {heading}", "", "| metric | kind | labels | meaning |", "| --- | --- | --- | --- |"]
        for name, kind, text, labels in DESCRIBED:
            if name.startswith(start):
                lines.append(f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in labels)} | {text} |")
        lines.append("")
    if stray := [metric.name for metric in DESCRIBED if not metric.name.startswith(tuple(_PARTS))]:
        raise ValueError(f"no part of the page is for {stray}")
    lines += ["## Labels", "", "| label | values |", "| --- | --- |"]
    lines += [f"| `{label}` | {text} |" for label, text in LABELS.items()]
    return "\n".join([*lines, ""])


def main() -> int:
    """Exit code 1 where --check finds the page out of step."""
    text = reference()
    if "--check" in sys.argv[1:]:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
            print("docs/metrics.md is not in step with metrics.py; run `make docs`", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
