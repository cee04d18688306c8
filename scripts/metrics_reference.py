"""Generate docs/metrics.md from src/pyrite/metrics.py. With --check, only verify that it is up to date.

Usage: python scripts/metrics_reference.py [--check]
"""

import sys
from pathlib import Path

from pyrite.metrics import DEFINITIONS, LABELS

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"

#: Metric name prefix and the heading of its section.
_SECTIONS = {
    "pyrite_step_": "Steps",
    "pyrite_finetune_": "Training",
    "pyrite_judge_": "Judging",
    "pyrite_llm_": "LLM requests",
    "pyrite_controller_": "Controller",
    "pyrite_server_": "The chart's vLLM server",
    "pyrite_run_": "Runs",
}

_HEAD = """\
# Metrics

Generated from `src/pyrite/metrics.py` by `make docs`. A process serves its metrics at `/metrics` on the port in
`PYRITE_METRICS_PORT`; in the cluster this is 9100. The first four sections are exported by workers and end with the
worker's pod. The others are exported by the controller, which reads the store and the cluster, so no push gateway is
needed. On one machine `pyrite train --metrics-port` exports the metrics of the run and of its steps.

In the cluster the chart's PodMonitor adds labels to worker metrics: `namespace`, `pod`, `component` (worker, controller
or vllm), `run`, `stage`, `iteration` and `shard`. `pyrite train --metrics-port` sets the same labels except
`namespace`, which the scrape configuration should add. For vLLM's own metrics (`vllm:...`), see its documentation.
"""


def reference() -> str:
    """Return the page as Markdown.

    Raises:
        ValueError: a metric belongs to no section.
    """
    lines = [_HEAD]
    for start, heading in _SECTIONS.items():
        lines += [f"## {heading}", "", "| metric | type | labels | description |", "| --- | --- | --- | --- |"]
        for name, metric_type, text, labels in DEFINITIONS:
            if name.startswith(start):
                lines.append(f"| `{name}` | {metric_type} | {', '.join(f'`{label}`' for label in labels)} | {text} |")
        lines.append("")
    if unassigned := [metric.name for metric in DEFINITIONS if not metric.name.startswith(tuple(_SECTIONS))]:
        raise ValueError(f"no section of docs/metrics.md matches {unassigned}; add a prefix to _SECTIONS")
    lines += ["## Labels", "", "| label | values |", "| --- | --- |"]
    lines += [f"| `{label}` | {text} |" for label, text in LABELS.items()]
    return "\n".join([*lines, ""])


def main() -> int:
    """Return 1 if --check finds the page outdated."""
    text = reference()
    if "--check" in sys.argv[1:]:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
            print(
                "docs/metrics.md is outdated: it differs from src/pyrite/metrics.py. Run `make docs`.", file=sys.stderr
            )
            return 1
        return 0
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
