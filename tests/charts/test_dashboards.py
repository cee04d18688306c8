"""Dashboards query existing series, and every panel has a description."""

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

from charts.test_alerts import HEALTHY, check_queries
from charts.tools import CHART, objects
from pyrite import metrics

ROOT = CHART.parents[1]
RULES = yaml.safe_load((CHART / "files" / "rules.yaml").read_text())
BOARDS = {path.stem: json.loads(path.read_text()) for path in sorted((CHART / "dashboards").glob("*.json"))}
boards = pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)

#: vLLM's metrics from the source of 0.32: one type and name per line.
VLLM = Path(__file__).with_name("vllm_metrics.txt")

#: The DCGM exporter's metrics that the panels use; all are in its default-counters.csv.
DCGM = {f"DCGM_FI_DEV_{name}" for name in ("GPU_UTIL", "FB_USED", "FB_FREE", "POWER_USAGE")}

#: Values of Grafana's variables for evaluating queries without Grafana.
VARIABLES = {
    **{"$__rate_interval": "5m", "$namespace": "ml", "$iteration": ".*", "$pod": ".*"},
    **{'~"$run"': '~".*"', "$run": "r"},  # All, for variables with several values
}

#: Series of a run in a cluster, with values over two hours; judging series are those of test_alerts.
WORKER = 'namespace="ml", run="r", iteration="1", stage="judge", shard="0", component="worker", pod="r-judge-1-0"'
TRAINING = WORKER.replace("judge", "finetune")
CONTROLLER = 'namespace="ml", component="controller", pod="c-1"'
SERVER = 'namespace="ml", component="vllm", pod="pyrite-vllm-0", engine="0", model_name="m"'
SERIES = {
    **HEALTHY,
    **{
        f'{name}_bucket{{{labels}, le="{le}"}}': f"0+{n}x120"
        for name, labels in (
            ("pyrite_llm_request_seconds", WORKER),
            ("pyrite_controller_sync_seconds", CONTROLLER),
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
    f'pyrite_llm_request_failures_total{{{WORKER}, reason="busy"}}': "0+1x120",
    f'pyrite_llm_requests_in_flight{{{WORKER}, server="http://s:8000"}}': "7x120",
    f'pyrite_llm_concurrency_limit{{{WORKER}, server="http://s:8000"}}': "8x120",
    f'pyrite_llm_server_up{{{WORKER}, server="http://s:8000"}}': "1x120",
    f"pyrite_llm_prompt_tokens_total{{{WORKER}}}": "0+600x120",
    f"pyrite_llm_cached_tokens_total{{{WORKER}}}": "0+400x120",
    f"pyrite_finetune_loss{{{TRAINING}}}": "0.3x120",
    f"pyrite_controller_api_calls_total{{{CONTROLLER}}}": "0+9x120",
    f'pyrite_controller_runs{{{CONTROLLER}, phase="Running"}}': "1x120",
    f'pyrite_run_steps{{{CONTROLLER}, run="r"}}': "9x120",
    f'pyrite_run_started_timestamp_seconds{{{CONTROLLER}, run="r"}}': "60x120",
    f'pyrite_run_stage_seconds{{{CONTROLLER}, run="r", stage="prepare", iteration=""}}': "60x120",
    f'pyrite_run_gate_passed{{{CONTROLLER}, run="r"}}': "0x120",
    f'pyrite_run_examples{{{CONTROLLER}, run="r", iteration="1", type="hard"}}': "60x120",
    **{f'pyrite_run_hard_{m}{{{CONTROLLER}, run="r", iteration="1"}}': "60x120" for m in ("positives", "negatives")},
    f'pyrite_run_training_loss{{{CONTROLLER}, run="r", iteration="1"}}': "0.2x120",
    **{
        f'pyrite_run_pairs{{{CONTROLLER}, run="r", iteration="1", outcome="{o}"}}': "60x120"
        for o in ("judged", "cached")
    },
    **{f'pyrite_run_grades{{{CONTROLLER}, run="r", iteration="1", grade="{g}"}}': "60x120" for g in (1, 4)},
    **{
        f'pyrite_run_validation_{metric}{{{CONTROLLER}, run="r", model="{model}", iteration="{i}"}}': "0.5x120"
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
    **{
        f'{name}{{gpu="0", exported_namespace="ml", exported_pod="{pod}", namespace="gpu", pod="d"}}': "9x120"
        for name in DCGM
        for pod in ("pyrite-vllm-0", "r-finetune-1-0")
    },
}


#: Also a second run whose pods have the same names.
TWO_RUNS = {**SERIES, **{name.replace('run="r"', 'run="s"'): values for name, values in SERIES.items()}}


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def queries(board: dict[str, Any]) -> list[str]:
    found = [target["expr"] for panel in panels(board) for target in panel["targets"]]
    return found + [one["query"] for one in board["templating"]["list"] if one["type"] == "query"]


def series(declared: list[tuple[str, str]]) -> set[str]:
    """Series names of metrics given as (type, name)."""
    endings = {"counter": ("",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    return {f"{name}{ending}" for metric_type, name in declared for ending in endings[metric_type]}


def test_all_queried_metrics_exist() -> None:
    """A renamed metric would silently leave a panel empty and an alert inactive."""
    vllm = [tuple(line.split()) for line in VLLM.read_text().splitlines()]
    existing = series([(m.type, m.name) for m in metrics.DEFINITIONS]) | series(vllm)  # type: ignore[arg-type]
    rules = [rule for group in RULES["groups"] for rule in group["rules"]]
    existing |= {rule["record"] for rule in rules if "record" in rule}
    expressions = [query for board in BOARDS.values() for query in queries(board)] + [rule["expr"] for rule in rules]
    existing |= DCGM
    names = {name for query in expressions for name in re.findall(r"(?:run:)?(?:pyrite_|vllm:|DCGM_)[\w:]+", query)}
    assert len(names) > 50
    assert names - existing == set()


def test_all_recorded_series_are_used() -> None:
    recorded = {rule["record"] for group in RULES["groups"] for rule in group["rules"] if "record" in rule}
    expressions = " ".join(query for board in BOARDS.values() for query in queries(board)) + yaml.safe_dump(
        RULES["groups"][1]
    )
    assert {name for name in recorded if name not in expressions} == set()


def test_the_list_of_vllm_metrics_matches_its_source() -> None:
    """Runs if vLLM is installed (make real-vllm); shows the differences after an upgrade of vLLM."""
    found = sorted(ROOT.glob(".venv-real-vllm/lib/python3*/site-packages/vllm/v1/metrics/loggers.py"))
    if not found:
        pytest.skip("vLLM is not installed; `make real-vllm` installs it")
    assert declared(found[0]) == VLLM.read_text().splitlines()


def declared(source: Path) -> list[str]:
    """Type and series name of each metric that the module ``source`` creates."""
    metrics_found = []
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            metric_type = node.func.attr.removeprefix("_").removesuffix("_cls")
            keywords = {keyword.arg: keyword.value for keyword in node.keywords}
            name = keywords.get("name")
            if metric_type in ("counter", "gauge", "histogram") and isinstance(name, ast.Constant):
                ending = "_total" if metric_type == "counter" else ""
                metrics_found.append(f"{metric_type} {str(name.value).removesuffix(ending)}{ending}")
    return sorted(set(metrics_found))


def test_the_json_files_are_up_to_date() -> None:
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
def test_every_panel_has_a_description_and_a_unit(board: dict[str, Any]) -> None:
    for panel in panels(board):
        assert len(panel["description"]) > 15, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}", panel["title"]


@boards
def test_every_panel_has_explicit_thresholds_or_none(board: dict[str, Any]) -> None:
    """No panel uses Grafana's default, green up to 80, which marks any number as good."""
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
            assert defaults["custom"]["thresholdsStyle"]["mode"] == "dashed", (
                f"{panel['title']}: thresholds are invisible"
            )


def test_thresholds_match_the_alerts() -> None:
    """A panel changes its color at the limit of its alert."""
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
    """At 1280 pixels, a number needs 4 of 24 columns, a plot with its legend 8."""
    lines: dict[int, list[dict[str, int]]] = {}
    for panel in board["panels"]:
        position = panel["gridPos"]
        lines.setdefault(position.get("y", 0), []).append({"x": 0, "y": 0, **position})
        assert position["w"] >= (4 if panel["type"] == "stat" else 8), panel["title"]
    bottom = 0
    for y, line in sorted(lines.items()):
        assert y >= bottom, "panels of two lines overlap"
        assert sum(position["w"] for position in line) == 24
        assert all(a["x"] + a["w"] == b["x"] for a, b in pairwise(sorted(line, key=lambda position: position["x"])))
        bottom = y + max(position["h"] for position in line)


@boards
def test_every_query_returns_data(board: dict[str, Any], tmp_path: Path) -> None:
    """The series have real labels: a mismatch would silently leave a panel empty."""
    one = [{"labels": "{}", "value": 1}]
    check_queries(
        tmp_path, TWO_RUNS, {f"clamp_max(count({expr}), 1)": one for expr in expanded_queries(board).values()}
    )
    for (title, legend), expr in expanded_queries(board).items():
        for label in re.findall(r"{{(\w+)}}", legend):
            label_in_result = rf'by \([^)]*\b{label}\b|label_replace\(.*"{label}"'
            assert re.search(label_in_result, expr), f"{title}: the query aggregates away the legend's {label}"


@boards
def test_no_panel_shows_nan_when_idle(board: dict[str, Any], tmp_path: Path) -> None:
    """Between steps and before the first pair, 0 / 0 must not show up as NaN."""
    idle = {name: "0x120" for name in SERIES if "_limit{" not in name}
    numbers = expanded_queries({"panels": [panel for panel in panels(board) if panel["type"] != "timeseries"]})
    check_queries(tmp_path, idle, {f"({expr}) != ({expr})": [] for expr in numbers.values()})


@pytest.mark.parametrize(
    "labels", ['exported_namespace="ml", exported_pod="{}", namespace="gpu", pod="d"', 'namespace="ml", pod="{}"']
)
def test_gpus_are_found_with_and_without_honor_labels(labels: str, tmp_path: Path) -> None:
    """The DCGM exporter's labels are renamed by default; each board has only the GPUs of its own pods."""
    pods = {"run": "r-finetune-1-0", "vllm": "pyrite-vllm-0"}
    names = [*pods.values(), "r2-finetune-1-0"]
    shown = {f'DCGM_FI_DEV_GPU_UTIL{{gpu="0", {labels.format(name)}}}': "50x120" for name in names}
    for name, pod in pods.items():
        expr = expanded_queries(BOARDS[name])["GPU utilization", "{{pod}}: GPU {{gpu}}"].replace('".*"', '"pyrite.*"')
        check_queries(tmp_path, shown, {expr: [{"labels": f'{{gpu="0", pod="{pod}"}}', "value": 0.5}]})


def expanded_queries(board: dict[str, Any]) -> dict[tuple[str, str], str]:
    """Each panel's queries with all variables replaced, by title and legend."""
    found = {}
    for panel in panels(board):
        for target in panel["targets"]:
            expr = target["expr"]
            for name, value in VARIABLES.items():
                expr = expr.replace(name, value)
            assert "$" not in expr, panel["title"]
            found[panel["title"], target["legendFormat"]] = expr
    return found


def test_each_dashboard_has_a_config_map_for_the_sidecar() -> None:
    """The sidecar finds ConfigMaps by their label."""
    found = objects("--set=metrics.rules.enabled=true,metrics.dashboards.enabled=true")
    maps = [one for one in found if one["metadata"].get("labels", {}).get("grafana_dashboard") == "1"]
    loaded = {name: json.loads(text) for one in maps for name, text in one["data"].items()}
    assert loaded == {f"pyrite-{name}.json": board for name, board in BOARDS.items()}
