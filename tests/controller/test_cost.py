"""The cost of a run, the stop at its budget, and the server's lease."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from controller.harness import LLM, Harness
from pyrite.controller import controller
from pyrite.controller.lease import expire
from pyrite.controller.metrics import run_samples
from pyrite.controller.settings import Settings

#: At 2 dollars an hour.
BUDGET = 5.0


class Clock(datetime):
    """The controller's clock, which tests set forward."""

    offset = timedelta()

    @classmethod
    def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
        del tz
        return datetime.now(UTC) + cls.offset


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Clock]]:
    monkeypatch.setattr(controller, "datetime", Clock)
    yield Clock
    Clock.offset = timedelta()


@pytest.fixture
def suspending(chart: Settings) -> Settings:
    cost = chart.cost.model_copy(update={"budget_dollars": BUDGET, "on_budget": "suspend"})
    return chart.model_copy(update={"cost": cost})


def dollars(harness: Harness, chart: Settings) -> float:
    samples = run_samples(harness.cluster.run("r"), None, False, chart.cost, Clock.now())
    (cost,) = [float(value) for metric, _, value in samples if metric.name == "pyrite_run_cost_dollars"]
    return round(cost, 2)


def condition(harness: Harness, kind: str) -> tuple[str, str]:
    (found,) = [each for each in harness.status("r").conditions if each.type == kind]
    return found.status, found.message


def test_run_over_its_budget_is_suspended_until_it_is_raised(suspending: Settings) -> None:
    harness = Harness(suspending, r=LLM)
    harness.start_judging("r")
    Clock.offset += timedelta(hours=2)
    harness.sync()
    assert harness.status("r").phase == "Running"
    assert dollars(harness, suspending) == 4.0
    Clock.offset += timedelta(hours=1)
    for _ in range(3):
        harness.sync()
        harness.cluster.remove_deleted()
    status = harness.status("r")
    assert status.phase == "Suspended"
    assert "budget of $5.00" in status.message
    assert "spec.budget_dollars" in status.message
    assert condition(harness, "OverBudget")[0] == "True"
    assert (status.cost, harness.cluster.replicas, harness.cluster.unfinished()) == ("$6.00", 0, [])
    Clock.offset += timedelta(days=3)
    harness.sync()
    assert harness.status("r").phase == "Suspended", "the judging that was stopped is no longer counted"
    assert dollars(harness, suspending) == 6.0, "a suspended run costs nothing"
    harness.cluster.edit("r", budget_dollars=20)
    harness.run_to_end()
    assert harness.status("r").phase == "Succeeded"
    assert condition(harness, "OverBudget") == ("False", "")


def test_time_until_the_server_is_ready_is_charged(suspending: Settings) -> None:
    """A server that never starts holds its GPUs. Earlier, only steps were charged, so such a run never stopped."""
    harness = Harness(suspending, r=LLM)
    harness.finish_steps("r", before="judge")
    harness.sync()
    assert harness.status("r").phase == "Waiting"
    assert harness.cluster.replicas == 2
    Clock.offset += timedelta(hours=3)
    harness.sync()
    assert harness.status("r").phase == "Suspended"
    harness.sync()
    assert harness.cluster.replicas == 0


def test_budget_alone_does_not_stop_a_run(suspending: Settings) -> None:
    cost = suspending.cost.model_copy(update={"on_budget": "alert"})
    harness = Harness(suspending.model_copy(update={"cost": cost}), r=LLM)
    harness.start_judging("r")
    Clock.offset += timedelta(hours=3)
    harness.sync()
    assert harness.status("r").phase == "Running"
    assert condition(harness, "OverBudget")[0] == "True"


@pytest.mark.parametrize("minutes", [14, 16])
def test_expired_lease_scales_the_server_to_zero(chart: Settings, minutes: int) -> None:
    """A controller that renews its lease keeps its server; the server of a dead one is gone after the lease."""
    harness = Harness(chart, r=LLM)
    harness.start_judging("r")
    last = harness.cluster.renewed
    Clock.offset += timedelta(minutes=10)
    harness.sync()
    assert harness.cluster.renewed - last > timedelta(minutes=9)
    now = harness.cluster.renewed + timedelta(minutes=minutes)
    expire(harness.cluster, "pyrite-vllm", timedelta(minutes=15), now)  # type: ignore[arg-type]
    assert harness.cluster.replicas == (2 if minutes < 15 else 0)


def test_lease_is_not_renewed_while_no_run_needs_the_server(chart: Settings) -> None:
    harness = Harness(chart, r=LLM)
    harness.start_judging("r")
    harness.cluster.edit("r", suspend=True)
    for _ in range(2):
        harness.sync()
        harness.cluster.remove_deleted()
    last = harness.cluster.renewed
    Clock.offset += timedelta(minutes=10)
    harness.sync()
    assert harness.cluster.renewed == last
