"""Alerts fire for their faults and not otherwise; promtool evaluates the rules."""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from charts.tools import CHART, get_object, objects

RULES = CHART / "files" / "rules.yaml"
RUN = 'namespace="ml", run="r"'
POD = f'{RUN}, iteration="1", stage="judge", component="worker", pod="r-judge-1-0"'
CONTROLLER = 'namespace="ml", component="controller", pod="c-1"'
#: Values by series in promtool's notation, one per minute; _ is a missing sample.
Series = dict[str, str]
Labels = dict[str, str]

HEALTHY: Series = {
    f"pyrite_controller_sync_seconds_count{{{CONTROLLER}}}": "0+15x120",
    f'pyrite_run_phase{{{CONTROLLER}, run="r", phase="Running"}}': "1x120",
    f'pyrite_run_phase{{{CONTROLLER}, run="r", phase="Waiting"}}': "0x120",
    f'pyrite_run_phase{{{CONTROLLER}, run="r", phase="Failed"}}': "0x120",
    f'pyrite_run_queued{{{CONTROLLER}, run="r"}}': "0x120",
    f'pyrite_controller_errors_total{{{CONTROLLER}, error_type="ApiException"}}': "0x120",
    f'pyrite_controller_errors_total{{{CONTROLLER}, error_type="unreadable_run"}}': "0+15x120",
    f'pyrite_run_steps_done{{{CONTROLLER}, run="r"}}': "3x120",
    f'pyrite_run_shards{{{CONTROLLER}, run="r"}}': "4x120",
    f'pyrite_run_shards_done{{{CONTROLLER}, run="r"}}': "1x120",
    f'pyrite_run_cost_dollars{{{CONTROLLER}, run="r"}}': "0+0.1x120",
    f'pyrite_run_cost_budget_dollars{{{CONTROLLER}, run="r"}}': "100x120",
    f'pyrite_server_replicas{{{CONTROLLER}, state="desired"}}': "4x120",
    f'pyrite_server_replicas{{{CONTROLLER}, state="ready"}}': "0x8 4x111",
    f'pyrite_step_units{{{POD}, unit="pairs judged"}}': "100000x120",
    f'pyrite_step_units_done{{{POD}, unit="pairs judged"}}': "0+60x120",
    f'pyrite_judge_pairs_total{{{POD}, outcome="judged"}}': "0+60x120",
    f'pyrite_judge_pairs_total{{{POD}, outcome="missing"}}': "0x60 4x59",
    f"pyrite_judge_missing_pairs_limit{{{POD}}}": "10x120",
    f'pyrite_judge_grades_total{{{POD}, grade="1"}}': "0+50x120",
    f'pyrite_judge_grades_total{{{POD}, grade="4"}}': "0+10x120",
}
_RUN: Labels = {"namespace": "ml", "run": "r"}
_ITERATION: Labels = {**_RUN, "iteration": "1"}


def healthy(name: str, **labels: str) -> str:
    """The series ``name`` in HEALTHY."""
    [one] = [
        key for key in HEALTHY if key.startswith(f"{name}{{") and all(f'{k}="{v}"' in key for k, v in labels.items())
    ]
    return one


#: No step reports progress.
NO_STEP_METRICS: dict[str, str | None] = {healthy("pyrite_step_units"): None, healthy("pyrite_step_units_done"): None}
WAITING: dict[str, str | None] = {
    healthy("pyrite_run_phase", phase="Running"): "0x120",
    healthy("pyrite_run_phase", phase="Waiting"): "1x120",
}


def controller_replaced(at: int, **runs_phase: str) -> dict[str, str | None]:
    """Controller series if a new pod takes over at minute ``at``; ``runs_phase`` are the new pod's values."""
    current = {key: value for key, value in HEALTHY.items() if CONTROLLER in key and " " not in value}
    old = {key: f"{value.split('x')[0]}x{at} stale" for key, value in current.items()}
    new = {key.replace("c-1", "c-2"): f"_x{at} {value.split('x')[0]}x{120 - at}" for key, value in current.items()}
    phases = {
        f'pyrite_run_phase{{{CONTROLLER.replace("c-1", "c-2")}, run="r", phase="{phase}"}}': value
        for phase, value in runs_phase.items()
    }
    return {**old, **new, **phases}


#: By fault: series that replace healthy ones (None: missing), the expected alert, and its labels.
FAULTS: dict[str, tuple[dict[str, str | None], str, Labels]] = {
    "the server hangs": (
        {
            healthy("pyrite_step_units_done"): "0+60x100 6000x19",
            healthy("pyrite_judge_pairs_total", outcome="judged"): "0+60x100 6000x19",
        },
        "PyriteJudgingStalled",
        _ITERATION,
    ),
    "workers crash and restart with the same cached pairs": (
        {
            healthy("pyrite_step_units_done"): "0+60x60 stale",
            healthy("pyrite_step_units"): "100000x60 stale",
            healthy("pyrite_judge_pairs_total", outcome="judged"): "0+60x60 stale",
            **{
                series.replace("r-judge-1-0", f"r-judge-1-{again}"): f"_x{61 + 5 * again} {values} stale"
                for again in range(1, 12)
                for series, values in {
                    healthy("pyrite_step_units"): "100000x2",
                    healthy("pyrite_step_units_done"): "1000+1000x2",
                    healthy("pyrite_judge_pairs_total", outcome="judged"): "0x2",
                }.items()
            },
        },
        "PyriteJudgingStalled",
        _ITERATION,
    ),
    "six of ten missing pairs are used": (
        {healthy("pyrite_judge_pairs_total", outcome="missing"): "0x60 6x59"},
        "PyriteFailureBudgetHalfUsed",
        {**_ITERATION, "pod": "r-judge-1-0"},
    ),
    "a server never becomes ready": (
        {healthy("pyrite_server_replicas", state="ready"): "3x120"},
        "PyriteServerNotReady",
        {"namespace": "ml"},
    ),
    "nearly all pairs get grade 1": (
        {
            healthy("pyrite_judge_grades_total", grade="1"): "0+97x120",
            healthy("pyrite_judge_grades_total", grade="4"): "0+3x120",
        },
        "PyriteGradeCollapse",
        {**_ITERATION, "grade": "1"},
    ),
    "the run fails": (
        {
            healthy("pyrite_run_phase", phase="Running"): "1x100 0x19",
            healthy("pyrite_run_phase", phase="Failed"): "0x100 1x19",
            f'pyrite_run_finished_timestamp_seconds{{{CONTROLLER}, run="r"}}': "_x101 6000x18",
        },
        "PyriteRunFailed",
        _RUN,
    ),
    "the controller is gone": (
        {key: f"{value.split('x')[0]}x100" for key, value in HEALTHY.items() if CONTROLLER in key and " " not in value},
        "PyriteControllerDown",
        {"namespace": "ml"},
    ),
    "no controller has ever run": (dict.fromkeys(HEALTHY), "PyriteControllerDown", {"component": "controller"}),
    "the controller hangs": (
        {healthy("pyrite_controller_sync_seconds_count"): "0+15x60 900x59"},
        "PyriteControllerDown",
        {"namespace": "ml"},
    ),
    "one controller of two is gone": (
        {
            healthy("pyrite_controller_sync_seconds_count"): "0+15x60",
            'pyrite_controller_sync_seconds_count{namespace="other", component="controller", pod="c-2"}': "0+15x120",
        },
        "PyriteControllerDown",
        {"namespace": "ml"},
    ),
    "all syncs fail": (
        {healthy("pyrite_controller_errors_total", error_type="ApiException"): "0x60 0+15x59"},
        "PyriteControllerFailing",
        {"namespace": "ml"},
    ),
    "a run waits for a server that never comes": ({**NO_STEP_METRICS, **WAITING}, "PyriteNoProgress", _RUN),
    "training hangs": (
        {
            **NO_STEP_METRICS,
            f'pyrite_step_units_done{{{RUN}, stage="finetune", pod="r-f", unit="training steps"}}': "0+1x30 30x89",
        },
        "PyriteNoProgress",
        _RUN,
    ),
    "the run exceeds its budget": (
        {healthy("pyrite_run_cost_dollars"): "0+1x120"},
        "PyriteCostOverBudget",
        _RUN,
    ),
}

#: Situations that resemble a fault but must not raise an alert.
HEALTHY_CASES: dict[str, dict[str, str | None]] = {
    "no fault": {},
    "a server is scaled to zero": {
        healthy("pyrite_server_replicas", state="desired"): "0x120",
        healthy("pyrite_server_replicas", state="ready"): "0x120",
    },
    "a shard has nothing left to judge": {
        healthy("pyrite_step_units"): "1200x120",
        healthy("pyrite_step_units_done"): "0+60x20 1200x99",
        healthy("pyrite_run_steps_done"): "0+1x120",
    },
    "no pair judged in the first seven minutes": {
        healthy("pyrite_step_units_done"): "_x113 0x7",
        healthy("pyrite_step_units"): "_x113 9x7",
        healthy("pyrite_judge_pairs_total", outcome="judged"): "_x113 0x7",
        healthy("pyrite_judge_pairs_total", outcome="missing"): "_x113 0x7",
        healthy("pyrite_run_steps_done"): "3x110 4x9",
    },
    "judging has ended with nearly all pairs grade 1": {
        healthy("pyrite_step_units"): "100000x110 stale",
        healthy("pyrite_step_units_done"): "0+900x110 stale",
        healthy("pyrite_judge_grades_total", grade="1"): "0+97x110 stale",
        healthy("pyrite_judge_grades_total", grade="4"): "0+3x110 stale",
    },
    "a run ended while the controller was replaced": {
        **NO_STEP_METRICS,
        **controller_replaced(100, Running="_x100 0x19", Succeeded="_x100 1x19"),
    },
    "a run's Job waits in Kueue's queue": {**NO_STEP_METRICS, healthy("pyrite_run_queued"): "1x120"},
    "a run waits for another run to release the GPUs": {
        **NO_STEP_METRICS,
        **WAITING,
        healthy("pyrite_run_queued"): "1x120",
    },
    "a run waits for a server that is starting": {
        **NO_STEP_METRICS,
        healthy("pyrite_run_phase", phase="Running"): "1x80 0x39",
        healthy("pyrite_run_phase", phase="Waiting"): "0x80 1x39",
    },
    "some syncs fail": {healthy("pyrite_controller_errors_total", error_type="ApiException"): "0+10x120"},
    "the first few pairs get the same grade": {
        healthy("pyrite_judge_grades_total", grade="1"): "0+1x120",
        healthy("pyrite_judge_grades_total", grade="4"): "0x120",
    },
    "a run failed long ago": {
        healthy("pyrite_run_phase", phase="Running"): "0x120",
        healthy("pyrite_run_phase", phase="Failed"): "1x120",
        f'pyrite_run_finished_timestamp_seconds{{{CONTROLLER}, run="r"}}': "-90000x120",
    },
    "a finished run exceeded its budget": {
        healthy("pyrite_run_cost_dollars"): "200x120",
        healthy("pyrite_run_phase", phase="Running"): "0x120",
        f'pyrite_run_phase{{{CONTROLLER}, run="r", phase="Succeeded"}}': "1x120",
    },
    "a server starts": {healthy("pyrite_server_replicas", state="ready"): "4x112 0x7"},
    "shards finish that Prometheus cannot scrape": {
        **NO_STEP_METRICS,
        healthy("pyrite_run_shards_done"): "0+1x120",
    },
    "a run has just begun": {
        **NO_STEP_METRICS,
        healthy("pyrite_run_phase", phase="Running"): "_x100 1x20",
        healthy("pyrite_run_steps_done"): "_x100 0x20",
    },
    "a controller is replaced by another": controller_replaced(60),
    "training progresses slowly": {
        **NO_STEP_METRICS,
        f'pyrite_step_units_done{{{RUN}, stage="finetune", unit="training steps"}}': "0x20 1x25 2x25 3x25 4x25",
    },
}


def promtool(*arguments: str) -> str:
    program = shutil.which("promtool")
    if not program:
        pytest.skip("promtool is not on PATH; scripts/install_prometheus.sh installs it")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def check_alerts(folder: Path, changed: dict[str, str | None], expected: list[Labels]) -> None:
    """Check that exactly the ``expected`` alerts fire after two hours of the healthy series with some ``changed``."""
    matchers = [", ".join(f'{label}="{value}"' for label, value in one.items()) for one in expected]
    firing = [{"labels": f"ALERTS{{{labels}}}", "value": 1} for labels in matchers]
    check_queries(folder, {**HEALTHY, **changed}, {'ALERTS{alertstate="firing"}': firing})


def check_queries(folder: Path, series: Mapping[str, str | None], expected: dict[str, list[dict[str, Any]]]) -> None:
    """Check with promtool that each query returns its ``expected`` samples after two hours of ``series``."""
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items() if values is not None],
        "promql_expr_test": [
            {"expr": expr, "eval_time": "2h", "exp_samples": samples} for expr, samples in expected.items()
        ],
    }
    path = folder / "test.yaml"
    path.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [test]}))
    promtool("test", "rules", str(path))


def test_promtool_accepts_the_rules() -> None:
    promtool("check", "rules", str(RULES))


def test_every_alert_has_a_runbook_and_a_test() -> None:
    for rule in alerts():
        assert set(rule["annotations"]) == {"summary", "description"}
        assert len(rule["annotations"]["description"]) > 150, f"{rule['alert']} has no runbook"
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["alert"] in {alert for _, alert, _ in FAULTS.values()}, "no fault tests this alert"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_raises_only_its_alert(fault: str, tmp_path: Path) -> None:
    changed, name, labels = FAULTS[fault]
    [severity] = [rule["labels"]["severity"] for rule in alerts() if rule["alert"] == name]
    firing = {"alertname": name, "alertstate": "firing", "severity": severity, **labels}
    check_alerts(tmp_path, changed, [firing])


@pytest.mark.parametrize("case", HEALTHY_CASES)
def test_no_alert_fires_without_a_fault(case: str, tmp_path: Path) -> None:
    check_alerts(tmp_path, HEALTHY_CASES[case], [])


def test_remaining_work_includes_pending_shards(tmp_path: Path) -> None:
    """Of four shards one is done, one is running with 92,800 pairs left, and two of 100,000 pairs are pending.

    Regression: the speed of a faster worker that ended three minutes ago counted. A finished worker that waits for
    its last scrape is not a running shard.
    """
    ended = {
        healthy(name).replace("r-judge-1-0", "r-judge-1-1"): values
        for name, values in {
            "pyrite_step_units": "100000x117 stale",
            "pyrite_step_units_done": "30000+600x116 100000 stale",
        }.items()
    }
    done = {
        healthy(name).replace("r-judge-1-0", "r-judge-1-2"): "100000x120"
        for name in ("pyrite_step_units", "pyrite_step_units_done")
    }
    labels = '{iteration="1", namespace="ml", run="r"}'
    expected = {"run:pyrite_judge_work_left:sum": 292800, "run:pyrite_judge_work_done:rate10m": 1}
    samples = {record: [{"labels": record + labels, "value": value}] for record, value in expected.items()}
    check_queries(tmp_path, {**HEALTHY, **ended, **done}, samples)


def test_judged_pairs_come_from_all_workers_or_manifests(tmp_path: Path) -> None:
    """Iteration 1 has a finished and a running worker; iteration 0 has only manifests."""
    judged = healthy("pyrite_judge_pairs_total", outcome="judged")
    series = {
        **HEALTHY,
        judged.replace("r-judge-1-0", "r-judge-1-1"): "0+10x30 stale",
        f'pyrite_run_pairs{{{CONTROLLER}, run="r", iteration="0", outcome="judged"}}': "5000x120",
    }
    record = "run:pyrite_judge_pairs:judged"
    expected = {"1": 7200 + 300, "0": 5000}
    samples = [
        {"labels": f'{record}{{iteration="{iteration}", namespace="ml", run="r"}}', "value": pairs}
        for iteration, pairs in expected.items()
    ]
    check_queries(tmp_path, series, {record: samples})


def test_the_chart_does_not_change_the_rules() -> None:
    """Runbooks contain {{ $labels }}, which Prometheus must evaluate, not helm."""
    rule = get_object(
        objects("--set=metrics.rules.enabled=true,metrics.rules.labels.release=prometheus"), "PrometheusRule"
    )
    assert rule["spec"] == yaml.safe_load(RULES.read_text())
    assert rule["metadata"]["labels"]["release"] == "prometheus"
