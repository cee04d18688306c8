"""Two runs side by side: the model that each hands over, on the test queries that both have."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from pyrite.errors import UserError
from pyrite.evaluation.scoring import METRICS
from pyrite.evaluation.selection import label
from pyrite.evaluation.significance import Comparison, compare
from pyrite.report import formatting


@dataclass(frozen=True)
class Compared:
    """Run ``b`` against run ``a``.

    Attributes:
        a, b: names of the runs.
        model_a, model_b: the models compared, each run's chosen one.
        queries: test queries that both runs have; ``left_out`` those that only one has.
        rows: per metric, ``b``'s model against ``a``'s on the common queries.
        notes: what a reader should know before trusting the numbers.
    """

    a: str
    b: str
    model_a: str
    model_b: str
    queries: int
    left_out: int
    rows: dict[str, Comparison]
    notes: list[str]


def compare_reports(a: dict[str, Any], b: dict[str, Any]) -> Compared:
    """Compare two reports (as ``data.build`` makes them), paired query by query.

    Raises:
        UserError: the runs have no test query in common.
    """
    own_a, own_b = (report["per_query"][report["chosen"]] for report in (a, b))
    ids_a, ids_b = (set(own["mrr@5"]) for own in (own_a, own_b))
    common = sorted(ids_a & ids_b)
    if not common:
        raise UserError(
            f"runs {a['name']} and {b['name']} have no test query in common "
            f"({len(ids_a):,} and {len(ids_b):,}), so their numbers cannot be put side by side. "
            "Compare runs with the same source, seed and prepare settings."
        )
    rows = {
        metric: compare(
            np.array([own_a[metric][query] for query in common]),
            np.array([own_b[metric][query] for query in common]),
            max(a["resamples"], b["resamples"]),
            a["seed"],
        )
        for metric in METRICS
        if metric in own_a and metric in own_b
    }
    left_out = len(ids_a ^ ids_b)
    return Compared(
        a["name"],
        b["name"],
        a["chosen"],
        b["chosen"],
        len(common),
        left_out,
        rows,
        _notes(a, b, len(common), left_out),
    )


def _notes(a: dict[str, Any], b: dict[str, Any], common: int, left_out: int) -> list[str]:
    notes = []
    if left_out:
        both = formatting.plural(common, "test query", "test queries")
        notes.append(
            f"Only the {both} that both runs have; {left_out:,} left out. What is tested in one run may "
            "have been trained on in the other."
        )
    if a["test"]["corpus_sha256"] != b["test"]["corpus_sha256"]:
        notes.append("The runs search different passages: a part of the difference may be that, not the model.")
    elif not left_out and a["test"]["qrels_sha256"] != b["test"]["qrels_sha256"]:
        notes.append("The runs count different passages as relevant: a part of the difference may be that.")
    if a["base_model"] != b["base_model"]:
        notes.append(f"The base models differ: {a['base_model']} and {b['base_model']}.")
    return notes


def table(compared: Compared) -> Table:
    """The comparison for a terminal of 80 columns."""
    title = f"{compared.b} against {compared.a}, {formatting.plural(compared.queries, 'test query', 'test queries')}"
    wide = Table(
        title=escape(title),
        caption=escape("\n".join(["Difference with its 95% interval, paired by query.", *compared.notes])),
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    wide.add_column("")
    for name, model in ((compared.a, compared.model_a), (compared.b, compared.model_b)):
        wide.add_column(f"{escape(name)}\n[dim]{label(model)}[/]", justify="right", overflow="fold")
    wide.add_column("difference", justify="right", no_wrap=True)
    wide.add_column("p", justify="right", no_wrap=True)
    for metric, row in compared.rows.items():
        low, high = row.difference_interval.low, row.difference_interval.high
        colour = "green" if low > 0 else "red" if high < 0 else "default"
        between = f"{formatting.signed(low)} to {formatting.signed(high)}"
        wide.add_row(
            METRICS[metric].label,
            formatting.number(row.base),
            formatting.number(row.other),
            f"[{colour}]{formatting.signed(row.difference)}[/]\n[dim]{between}[/]",
            formatting.p_value(row.p_value).removeprefix("p ").removeprefix("= "),
        )
    return wide
