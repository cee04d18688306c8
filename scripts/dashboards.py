"""Generate charts/pyrite/dashboards/*.json from scripts/boards. With --check, only verify that they are up to date.

Usage: python scripts/dashboards.py [--check]
"""

import sys
from pathlib import Path

from boards.judging import judging
from boards.run import run
from boards.vllm import vllm
from grafana_foundation_sdk.cog.encoder import JSONEncoder

FOLDER = Path(__file__).resolve().parents[1] / "charts" / "pyrite" / "dashboards"


def main() -> int:
    """Return 1 if --check finds an outdated file."""
    encoder = JSONEncoder(sort_keys=True, indent=2)
    expected = {f"{f.__name__}.json": encoder.encode(f()) + "\n" for f in (judging, run, vllm)}
    if "--check" in sys.argv[1:]:
        actual = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}
        if actual != expected:
            print(
                "charts/pyrite/dashboards is outdated: it differs from scripts/boards. Run `make docs`.",
                file=sys.stderr,
            )
            return 1
        return 0
    FOLDER.mkdir(exist_ok=True)
    for name, text in expected.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
