"""Convert the results of bench_noise.py into the table that `pyrite calibrate` and `pyrite report` quote.

Usage: python scripts/rehearsal_table.py OUTPUT [--data "MedQuAD (NIDDK, NINDS)"] [--file FILE]

OUTPUT: a file with the output of bench_noise.py, whose last line is JSON. Left out are conditions without errors, and
those whose share of the gain is not known, because their reference is not measured or gains nothing.

Fields of a row: answers (whether mining knows them: known or hidden), kappa and similarity (the settings of
judge.noise), measured (the mean kappa on the judged pairs), bias (mean judged minus true grade), gain_share (by metric:
mean share of the gain of a judge without errors with the same answers, and the lowest of the pairs of runs), below_base
(by metric: runs that handed over a model below base), runs.
"""

import json
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pyrite import __version__
from pyrite.report import rehearsal

FILE = Path(rehearsal.__file__).with_suffix(".yaml")


def rows(results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the table from the last line of bench_noise.py, in its order."""
    return [
        {
            **{name: found["condition"][name] for name in ("answers", "kappa", "similarity")},
            "measured": found["kappa"],
            **{name: found[name] for name in ("bias", "gain_share", "below_base", "runs")},
        }
        for found in results.values()
        if found["condition"]["kappa"] < 1
        and all(share["worst"] is not None and share["mean"] is not None for share in found["gain_share"].values())
    ]


def content(results: Mapping[str, Mapping[str, Any]], data: str) -> str:
    """The file's content, with the comment of the present one."""
    comment = "".join(f"{line}\n" for line in FILE.read_text().splitlines() if line.startswith("#"))
    table = {"data": data, "pyrite": __version__, "rows": rows(results)}
    return comment + yaml.safe_dump(table, sort_keys=False, default_flow_style=None, width=120)


def main() -> int:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="output of bench_noise.py")
    parser.add_argument("--data", default="MedQuAD (NIDDK, NINDS)", help="name of the data set")
    parser.add_argument("--file", type=Path, default=FILE, help="file to write")
    options = parser.parse_args()
    results = json.loads(options.output.read_text().splitlines()[-1])
    options.file.write_text(content(results, options.data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
