"""The dashboards: what they ask for is there, and every panel says what it shows."""

import ast
import importlib.util
import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from charts.test_alerts import HEALTHY, asked
from charts.tools import CHART, objects
from pyrite import metrics

ROOT = CHART.parents[1]
RULES = yaml.safe_load((CHART / "files" / "rules.yaml").read_text())
BOARDS = {path.stem: json.loads(path.read_text()) for path in sorted((CHART / "dashboards").glob("*.json"))}
boards = pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)

#: vLLM's metrics as 0.32's source declares them, a kind and a name a line.
VLLM = Path(__file__).with_name("vllm_metrics.txt")

#: What the panels' variables stand for, where a query is to be read without Grafana.
VARIABLES = {
    **{"$__rate_interval": "5m", "$namespace": "ml", "$iteration": ".*", "$pod": ".*"},
    **{'~"$run"': '~".*"', "$run": "r"},  # All, where several may be chosen
}

#: Series as a scrape of a run on a cluster has them, with values over two hours. Of judging, what test_alerts has.
WORKER = 'namespace="ml", run="r", iteration="1", stage="judge", shard="0", component="worker", pod="r-judge-1-0"'
TRAINING = WORKER.replace("judge", "finetune")
SHOWN = 'namespace="ml", component="controller", pod="c-1"'
SERVER = 'namespace="ml", component="vllm", pod="pyrite-vllm-0", engine="0", model_name="m"'
SERIES = {
    **HEALTHY,
    **{
        f'{name}_bucket{{{labels}, le="{le}"}}': f"0+{n}x120"
        for name, labels in (
            ("pyrite_llm_request_seconds", WORKER),
            ("pyrite_controller_sync_seconds", SHOWN),
            ("vllm:time_to_first_token_seconds", SERVER),
            ("vllm:e2e_request_latency_seconds", SERVER),
            ("vllm:request_queue_time_seconds", SERVER),
        )
        for le, n in (("0.1", 5), ("1.0", 9), ("+Inf", 10))
    },
    **{
        f'pyrite_judge_pairs_total{{{WORKER}, outcome="{o}"}}': "0+1x120" for o in ("cached", "skipped", "not_selected")
    },
    f"pyrite_judge_truncated_passages_total{{{WORKER}}}": "1x120",
    f'pyrite_llm_retries_total{{{WORKER}, reason="busy"}}': "0+1x120",
    f'pyrite_llm_requests_in_flight{{{WORKER}, server="http://s:8000"}}': "7x120",
    f'pyrite_llm_concurrency_limit{{{WORKER}, server="http://s:8000"}}': "8x120",
    f'pyrite_llm_server_up{{{WORKER}, server="http://s:8000"}}': "1x120",
    f"pyrite_llm_prompt_tokens_total{{{WORKER}}}": "0+600x120",
    f"pyrite_llm_cached_tokens_total{{{WORKER}}}": "0+400x120",
    f"pyrite_finetune_loss{{{TRAINING}}}": "0.3x120",
    f"pyrite_controller_api_calls_total{{{SHOWN}}}": "0+9x120",
    f'pyrite_controller_runs{{{SHOWN}, phase="Running"}}': "1x120",
    f'pyrite_run_steps{{{SHOWN}, run="r"}}': "9x120",
    f'pyrite_run_started_timestamp_seconds{{{SHOWN}, run="r"}}': "60x120",
    f'pyrite_run_stage_seconds{{{SHOWN}, run="r", stage="prepare", iteration=""}}': "60x120",
    f'pyrite_run_gate_passed{{{SHOWN}, run="r"}}': "0x120",
    f'pyrite_run_examples{{{SHOWN}, run="r", iteration="1", type="hard"}}': "60x120",
    **{f'pyrite_run_hard_{m}{{{SHOWN}, run="r", iteration="1"}}': "60x120" for m in ("positives", "negatives")},
    f'pyrite_run_training_loss{{{SHOWN}, run="r", iteration="1"}}': "0.2x120",
    **{f'pyrite_run_pairs{{{SHOWN}, run="r", iteration="1", outcome="{o}"}}': "60x120" for o in ("judged", "cached")},
    **{f'pyrite_run_grades{{{SHOWN}, run="r", iteration="1", grade="{g}"}}': "60x120" for g in (1, 4)},
    **{
        f'pyrite_run_validation_{metric}{{{SHOWN}, run="r", model="{model}", iteration="{i}"}}': "0.5x120"
        for metric in ("mrr", "dcg")
        for model, i in (("base", 0), ("tuned", 1), ("best", 1))
    },
    **{
        f"{name}{{{SERVER}}}": "0+9x120"
        for name in (
            "vllm:num_requests_running",
            "vllm:num_requests_waiting",
            "vllm:kv_cache_usage_perc",
            "vllm:prefix_cache_hits_total",
            "vllm:prefix_cache_queries_total",
            "vllm:prompt_tokens_total",
            "vllm:generation_tokens_total",
            "vllm:num_preemptions_total",
        )
    },
    f'vllm:request_success_total{{{SERVER}, finished_reason="length"}}': "0+9x120",
}


#: The same twice: another run on another machine has pods of the same name.
TWICE = {**SERIES, **{name.replace('run="r"', 'run="s"'): values for name, values in SERIES.items()}}


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def queries(board: dict[str, Any]) -> list[str]:
    asked = [target["expr"] for panel in panels(board) for target in panel["targets"]]
    return asked + [one["query"] for one in board["templating"]["list"] if one["type"] == "query"]


def series(declared: list[tuple[str, str]]) -> set[str]:
    """The names in a scrape of metrics of (kind, name)."""
    endings = {"counter": ("",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    return {f"{name}{ending}" for kind, name in declared for ending in endings[kind]}


def test_every_metric_that_is_asked_for_is_there() -> None:
    """A metric that was renamed leaves a panel empty, and an alert silent, without a word."""
    vllm = [tuple(line.split()) for line in VLLM.read_text().splitlines()]
    there = series([(m.type, m.name) for m in metrics.DEFINITIONS]) | series(vllm)  # type: ignore[arg-type]
    rules = [rule for group in RULES["groups"] for rule in group["rules"]]
    there |= {rule["record"] for rule in rules if "record" in rule}
    asked = [query for board in BOARDS.values() for query in queries(board)] + [rule["expr"] for rule in rules]
    names = {name for query in asked for name in re.findall(r"(?:run:)?(?:pyrite_|vllm:)[\w:]+", query)}
    assert len(names) > 50
    assert names - there == set()


def test_every_series_that_is_recorded_is_used() -> None:
    recorded = {rule["record"] for group in RULES["groups"] for rule in group["rules"] if "record" in rule}
    asked = " ".join(query for board in BOARDS.values() for query in queries(board)) + yaml.safe_dump(
        RULES["groups"][1]
    )
    assert {name for name in recorded if name not in asked} == set()


def test_the_saved_list_of_vllms_metrics_is_what_its_source_says() -> None:
    """Where a vLLM is installed (make real-vllm); after an upgrade of vLLM this says what the list lacks."""
    found = sorted(ROOT.glob(".venv-real-vllm/lib/python3*/site-packages/vllm/v1/metrics/loggers.py"))
    if not found:
        pytest.skip("no vLLM is installed; make real-vllm installs it")
    assert declared(found[0]) == VLLM.read_text().splitlines()


def declared(source: Path) -> list[str]:
    """Kind and name, as a scrape has it, of each metric that ``source`` makes."""
    made = []
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            kind = node.func.attr.removeprefix("_").removesuffix("_cls")
            given = {word.arg: word.value for word in node.keywords}
            name = given.get("name")
            if kind in ("counter", "gauge", "histogram") and isinstance(name, ast.Constant):
                ending = "_total" if kind == "counter" else ""
                made.append(f"{kind} {str(name.value).removesuffix(ending)}{ending}")
    return sorted(set(made))


def test_the_files_are_what_the_code_makes() -> None:
    if not importlib.util.find_spec("grafana_foundation_sdk"):
        pytest.skip("grafana-foundation-sdk is not installed")
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "dashboards.py"), "--check"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


@boards
def test_every_panel_says_what_it_shows(board: dict[str, Any]) -> None:
    for panel in panels(board):
        assert len(panel["description"]) > 15, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}", panel["title"]


@boards
def test_every_panel_says_from_which_value_on_to_worry_or_that_there_is_none(board: dict[str, Any]) -> None:
    """Grafana's own default, green up to 80, must be nowhere: it says of any number that it is well."""
    for panel in panels(board):
        defaults = panel["fieldConfig"]["defaults"]
        first, *steps = [(step.get("value"), step["color"]) for step in defaults["thresholds"]["steps"]]
        if not steps:
            assert first == (None, "text"), panel["title"]
            continue
        values = [value for value, _ in steps]
        assert values == sorted(values), panel["title"]
        assert {first[1], steps[-1][1]} == {"green", "red"}, panel["title"]
        assert defaults["unit"] != "percentunit" or max(values) <= 1, f"{panel['title']}: 100% is 1"
        if panel["type"] == "timeseries":
            assert defaults["custom"]["thresholdsStyle"]["mode"] == "dashed", f"{panel['title']}: nobody sees them"


def test_what_an_alert_goes_by_has_a_colour_before_it_fires() -> None:
    """An alert's limit that is changed and the panel's not: red and no alert, or an alert and no red."""
    limits = {
        f"{name}: {panel['title']}": [
            step.get("value") for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
        ]
        for name, board in BOARDS.items()
        for panel in panels(board)
    }
    alerts = {rule["alert"]: rule["expr"] for group in RULES["groups"] for rule in group["rules"] if "alert" in rule}
    assert "> 0.95" in alerts["PyriteGradeCollapse"]
    assert limits["judging: Most frequent grade"][-1] == 0.95
    assert "0.5 *" in alerts["PyriteFailureBudgetHalfUsed"]
    assert limits["judging: Failure budget used"][1] == 0.5
    assert limits["run: Cost budget used"][-1] == limits["judging: Cost budget used"][-1] == 1
    assert limits["vllm: Servers not ready"][1] == 1
    assert limits["judging: Servers in use"][-1] == 1


@boards
def test_panels_are_wide_enough_and_do_not_overlap(board: dict[str, Any]) -> None:
    """At 1280 pixels a column has about 50: four hold a number, eight a plot with its legend."""
    lines: dict[int, list[dict[str, int]]] = {}
    for panel in board["panels"]:
        place = panel["gridPos"]
        lines.setdefault(place.get("y", 0), []).append({"x": 0, "y": 0, **place})
        assert place["w"] >= (4 if panel["type"] == "stat" else 8), panel["title"]
    bottom = 0
    for y, line in sorted(lines.items()):
        assert y >= bottom, "a panel begins above the end of the line before"
        assert sum(place["w"] for place in line) == 24
        assert all(a["x"] + a["w"] == b["x"] for a, b in pairwise(sorted(line, key=lambda place: place["x"])))
        bottom = y + max(place["h"] for place in line)


@boards
def test_every_query_finds_something(board: dict[str, Any], tmp_path: Path) -> None:
    """Over series with the labels of real ones: labels that do not match leave a panel empty without a word."""
    one = [{"labels": "{}", "value": 1}]
    asked(tmp_path, TWICE, {f"clamp_max(count({expr}), 1)": one for expr in filled(board).values()})
    for (title, legend), expr in filled(board).items():
        for label in re.findall(r"{{(\w+)}}", legend):
            kept = rf'by \([^)]*\b{label}\b|label_replace\(.*"{label}"'
            assert re.search(kept, expr), f"{title}: the legend's {label} is summed away"


@boards
def test_where_nothing_moves_no_panel_says_nan(board: dict[str, Any], tmp_path: Path) -> None:
    """Between two steps, and before the first pair: 0 of 0 is no number, and a panel of one number shows it large."""
    idle = {name: "0x120" for name in SERIES if "_limit{" not in name}
    numbers = filled({"panels": [panel for panel in panels(board) if panel["type"] != "timeseries"]})
    asked(tmp_path, idle, {f"({expr}) != ({expr})": [] for expr in numbers.values()})


def filled(board: dict[str, Any]) -> dict[tuple[str, str], str]:
    """Each panel's queries as Prometheus is asked them, by title and legend."""
    found = {}
    for panel in panels(board):
        for target in panel["targets"]:
            expr = target["expr"]
            for name, value in VARIABLES.items():
                expr = expr.replace(name, value)
            assert "$" not in expr, panel["title"]
            found[panel["title"], target["legendFormat"]] = expr
    return found


def test_the_chart_hands_each_dashboard_to_the_sidecar() -> None:
    """A ConfigMap that the sidecar does not find by its label is one that nobody ever sees."""
    found = objects("--set=metrics.rules.enabled=true,metrics.dashboards.enabled=true")
    maps = [one for one in found if one["metadata"].get("labels", {}).get("grafana_dashboard") == "1"]
    loaded = {name: json.loads(text) for one in maps for name, text in one["data"].items()}
    assert loaded == {f"pyrite-{name}.json": board for name, board in BOARDS.items()}
