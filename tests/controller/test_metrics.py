"""The controller's metrics of runs, checked against values computed by hand."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from controller.fake_cluster import FakeCluster, FakeStore
from controller.harness import JOBS
from pyrite import metrics
from pyrite.controller.controller import Controller
from pyrite.controller.metrics import Exporter, run_samples
from pyrite.controller.observed import Stored
from pyrite.controller.settings import CostSettings, Settings, load
from pyrite.plan import StepState, chain
from pyrite.spec import RunSpec

AT = datetime(2026, 11, 23, 8, tzinfo=UTC)
SPEC = RunSpec.model_validate({"name": "r", "source": {"kind": "sample"}, "iterations": 2, "judge": {"shards": 2}})
COST = CostSettings(dollars_per_hour=6.0, budget_dollars=100.0)


def manifest(start: int, minutes: int, **summary: Any) -> dict[str, Any]:
    started = AT + timedelta(minutes=start)
    finished = started + timedelta(minutes=minutes)
    return {"started": started.isoformat(), "finished": finished.isoformat(), "summary": summary}


def judged(start: int, grades: dict[str, int], cached: int) -> dict[str, Any]:
    outcomes = {"judged": sum(grades.values()), "cached": cached, "skipped": 2, "not_selected": 3, "missing": 1}
    return manifest(start, 30, **outcomes, grades=grades)


def val(**scores: float) -> dict[str, Any]:
    return {name.replace("_", "-"): {"mrr@5": value, "dcg@5": value + 1} for name, value in scores.items()}


def stored(**manifests: dict[str, Any]) -> Stored:
    found = {name.replace("_", "-").replace("--", "."): one for name, one in manifests.items()}
    states = [StepState(step, "done" if step.name in found else "ready", "k", {}) for step in chain(SPEC)]
    return Stored(states, found)


def exported(found: Stored | None) -> dict[str, float]:
    """The samples of a run as a scrape shows them: name{label values} and value."""
    cluster = FakeCluster(FakeStore())
    cluster.add("r", {"source": {"kind": "sample"}, "iterations": 2, "judge": {"shards": 2}})
    samples = run_samples(cluster.run("r"), found, False, COST, AT)
    return {f"{metric.name}{{{','.join(labels)}}}": float(value) for metric, labels, value in samples}


def test_metrics_of_a_run_come_from_its_manifests() -> None:
    got = exported(
        stored(
            prepare=manifest(0, 10),
            validate_0=manifest(10, 5, val=val(base=0.4)),
            retrieve_1=manifest(15, 5),
            judge_1__0=judged(20, {"1": 6, "4": 4}, cached=5),
            judge_1__1=judged(30, {"1": 3, "2": 7}, cached=0),
            mine_1=manifest(60, 1, hard=12, easy=24, title_pairs=7, hard_positives=9, hard_negatives=20),
            finetune_1=manifest(61, 9, loss=0.25),
            validate_1=manifest(70, 5, val={**val(iteration_1=0.5), **val(**{"iteration_1@0.6": 0.6})}),
            judge_2__0=judged(90, {"1": 1}, cached=0),
        )
    )
    assert got["pyrite_run_phase{r,Pending}"] == 1
    assert got["pyrite_run_phase{r,Failed}"] == 0
    assert (got["pyrite_run_steps_done{r}"], got["pyrite_run_steps{r}"]) == (9, len(chain(SPEC)))
    assert got["pyrite_run_stage_seconds{r,prepare,}"] == 600
    pairs = {name.split(",")[2][:-1]: n for name, n in got.items() if name.startswith("pyrite_run_pairs{r,1")}
    assert pairs == {"judged": 15, "cached": 5, "skipped": 4, "not_selected": 6, "missing": 2}
    grades = {name.split(",")[2][:-1]: n for name, n in got.items() if name.startswith("pyrite_run_grades{r,1")}
    assert grades == {"1": 9, "2": 7, "4": 4}
    assert (got["pyrite_run_examples{r,1,hard}"], got["pyrite_run_examples{r,1,title_pairs}"]) == (12, 7)
    assert (got["pyrite_run_hard_positives{r,1}"], got["pyrite_run_hard_negatives{r,1}"]) == (9, 20)
    assert got["pyrite_run_training_loss{r,1}"] == 0.25
    mrr = {name.partition("{r,")[2]: n for name, n in got.items() if name.startswith("pyrite_run_validation_mrr")}
    assert mrr == {"base,0}": 0.4, "tuned,1}": 0.5, "best,1}": 0.6}
    assert got["pyrite_run_validation_dcg{r,base,0}"] == 1.4
    second = [metric for metric in got if metric.startswith(("pyrite_run_pairs{r,2", "pyrite_run_grades{r,2"))]
    assert not second, "metrics of a partly judged iteration would look complete"


@pytest.mark.parametrize(("second", "minutes"), [(30, 40), (20 + 72 * 60, 60)], ids=["parallel", "days later"])
def test_time_between_shards_is_no_stage_time(second: int, minutes: int) -> None:
    first, later = judged(20, {"1": 1}, cached=0), judged(second, {"1": 1}, cached=0)
    got = exported(stored(prepare=manifest(0, 10), judge_1__0=first, judge_1__1=later))
    assert got["pyrite_run_stage_seconds{r,judge,1}"] == minutes * 60


@pytest.fixture(autouse=True)
def reset_metrics() -> Iterator[None]:
    yield
    metrics.SNAPSHOT_GAUGES.replace([])


@pytest.fixture
def chart(tmp_path: Path) -> Settings:
    path = tmp_path / "settings.yaml"
    path.write_text("instance: pyrite\nworker: {image: w}\n")
    return load(path, JOBS)


def test_restarted_controller_exports_finished_steps(chart: Settings) -> None:
    """Most syncs do not read the store. Without a read by the exporter, a run had no metrics until its Job ended."""
    store = FakeStore()
    cluster = FakeCluster(store)
    cluster.add("r", {"source": {"kind": "sample"}, "iterations": 2, "judge": {"shards": 2}})

    exporter = Exporter(store)  # type: ignore[arg-type]
    assert synced(exporter, cluster, store, chart)("steps_done") == 0
    cluster.complete(cluster.unfinished()[0])
    assert synced(exporter, cluster, store, chart)("steps_done") == 1
    assert synced(exporter, cluster, store, chart)("steps_done") == 1
    assert synced(Exporter(store), cluster, store, chart)("steps_done") == 1  # type: ignore[arg-type]
    del cluster.resources["r"]
    assert synced(exporter, cluster, store, chart)("steps_done") is None


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"step": "prepare"}', b"{}"])
def test_unreadable_manifests_affect_only_their_run(chart: Settings, content: bytes) -> None:
    """Regression: one old run crashed the controller at every start, or prevented it from reading other runs."""
    store = FakeStore()
    cluster = FakeCluster(store)
    for name in ("a-old", "r"):
        cluster.add(name, {"source": {"kind": "sample"}, "iterations": 1})
    cluster.resources["a-old"]["status"] = {"phase": "Succeeded", "observedGeneration": 1}
    store.files["runs/a-old/steps/prepare.json"] = content
    exporter = Exporter(store)  # type: ignore[arg-type]
    before = unreadable()
    for second in (0, 3, 6):
        value = synced(exporter, cluster, store, chart, AT + timedelta(seconds=second))
    assert value("steps_done") == 0
    assert value("phase", run="a-old", phase="Succeeded") == 1
    assert unreadable() == before + 1, "the run must not be read again at once"
    store.files.clear()
    value = synced(exporter, cluster, store, chart, AT + timedelta(minutes=2))
    assert value("steps_done", run="a-old") == 0


def test_job_queued_by_kueue_is_exported(chart: Settings) -> None:
    """Its run is Running without progress. Without the metric it would look stuck."""
    store = FakeStore()
    cluster = FakeCluster(store)
    cluster.add("r", {"source": {"kind": "sample"}, "queue": "team"})
    exporter = Exporter(store)  # type: ignore[arg-type]
    assert synced(exporter, cluster, store, chart)("queued") == 0
    [job] = cluster.unfinished()
    for queued in (True, False):
        job["spec"]["suspend"] = queued
        assert synced(exporter, cluster, store, chart)("queued") == queued


def unreadable() -> float:
    return metrics.REGISTRY.get_sample_value("pyrite_controller_errors_total", {"error_type": "unreadable_run"}) or 0.0


def synced(
    exporter: Exporter, cluster: FakeCluster, store: FakeStore, chart: Settings, now: datetime = AT
) -> Callable[..., float | None]:
    """Sync a controller that has just started. The result reads a metric pyrite_run_<name>, by default of run r."""
    controller = Controller(cluster, store, lambda: chart)  # type: ignore[arg-type]
    exporter.update(controller.sync(), now)
    return lambda name, **labels: metrics.REGISTRY.get_sample_value(f"pyrite_run_{name}", {"run": "r", **labels})
