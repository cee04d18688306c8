"""Write charts/pyrite/crds/trainingruns.yaml from the RunSpec; with --check, say whether it is in step."""

import sys
from pathlib import Path

import yaml

from pyrite.controller.schema import definition

TARGET = Path(__file__).resolve().parents[1] / "charts/pyrite/crds/trainingruns.yaml"
HEAD = "# Made by `make docs` from src/pyrite/spec.py; do not edit.\n"


def main() -> int:
    text = HEAD + yaml.safe_dump(definition(), sort_keys=False, allow_unicode=True, width=120)
    if "--check" in sys.argv[1:]:
        if TARGET.is_file() and TARGET.read_text(encoding="utf-8") == text:
            return 0
        print(f"{TARGET.name} is not what the RunSpec says; `make docs` writes it anew", file=sys.stderr)
        return 1
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
