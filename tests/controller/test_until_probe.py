"""`until: probe`: prepare, probe, stop with the result and without servers, continue from there."""

import pytest

from controller.fake_cluster import probe
from controller.harness import LLM, Harness
from pyrite.controller.settings import Settings
from pyrite.plan import Step

PAGE = "s3://bucket/store/runs/r/probe/probe.html"


def stages(harness: Harness) -> list[str]:
    return [job["metadata"]["labels"]["pyrite.dev/stage"] for job in harness.cluster.created_jobs.values()]


def accepted(harness: Harness) -> tuple[str, str]:
    (found,) = [each for each in harness.status("r").conditions if each.type == "JudgeAccepted"]
    return found.status, found.message


def probed(chart: Settings, go: bool | None) -> Harness:
    harness = Harness(chart, r={**LLM, "until": "probe"})
    harness.cluster.probes = [go]
    harness.run_to_end()
    harness.sync()
    harness.cluster.scale_pods()
    assert harness.cluster.replicas == 0, "the servers are up after the probe"
    assert stages(harness) == ["prepare", "embed", "probe"]
    assert harness.status("r").phase == "Probed"
    return harness


def test_a_go_stops_with_the_result_and_continues(chart: Settings) -> None:
    harness = probed(chart, go=True)
    status = harness.status("r")
    assert status.probe
    assert (status.probe.verdict, status.probe.failed, status.probe.page_uri) == ("go", "", PAGE)
    assert status.progress == "3/3"
    assert PAGE in status.message
    assert accepted(harness) == ("True", "")
    harness.cluster.edit("r", until=None)
    harness.run_to_end()
    assert harness.status("r").phase == "Succeeded"
    assert stages(harness).count("prepare") == stages(harness).count("probe") == 1


def test_a_no_go_stops_a_run_to_the_end_unless_forced(chart: Settings) -> None:
    harness = probed(chart, go=False)
    assert accepted(harness) == ("False", "not flat: shares of 25%")
    harness.cluster.edit("r", until=None)
    harness.sync()
    status = harness.status("r")
    assert status.phase == "Failed"
    assert status.message == (
        "this judge failed its probe (not flat: shares of 25%). Change the judge and probe again, or set spec.force to "
        f"true. The probe's page: {PAGE}"
    )
    assert len(stages(harness)) == 3
    harness.cluster.edit("r", force=True)
    harness.run_to_end()
    assert harness.status("r").phase == "Succeeded"


def test_a_probe_without_a_verdict_stops_no_run(chart: Settings) -> None:
    """The sample was too small: as in `pyrite train`, that is no reason to stop."""
    harness = probed(chart, go=None)
    assert accepted(harness)[0] == "Unknown"
    assert "gives no verdict" in harness.status("r").message
    harness.cluster.edit("r", until=None)
    harness.run_to_end()
    assert harness.status("r").phase == "Succeeded"


@pytest.mark.parametrize("edit", [{"judge": {**LLM["judge"], "model": "stronger"}}, {"retry": 1}], ids=str)
def test_another_judge_or_a_retry_is_probed_again(chart: Settings, edit: dict[str, object]) -> None:
    """A retry: the server was the cause, for example its chat template."""
    harness = probed(chart, go=False)
    harness.cluster.edit("r", **edit)
    harness.cluster.probes = [True]
    harness.run_to_end()
    assert harness.status("r").probe is not None
    assert accepted(harness) == ("True", "")
    assert stages(harness).count("probe") == 2
    harness.cluster.edit("r", until=None)
    harness.run_to_end()
    assert harness.status("r").phase == "Succeeded"


def test_failed_job_without_a_result_is_no_verdict(chart: Settings) -> None:
    harness = Harness(chart, r={**LLM, "until": "probe"})
    harness.finish_steps("r", before="embed")
    spec = harness.cluster.run("r").spec
    assert spec
    assert harness.store.finish(spec, [Step("embed", 0, 0)])
    for _ in range(3):
        harness.sync()
        harness.cluster.scale_pods()
    (job,) = harness.cluster.unfinished()
    harness.cluster.end(job, "Failed")
    other = spec.model_copy(update={"judge": spec.judge.model_copy(update={"model": "another"})})
    harness.store.files["runs/r/probe/probe.json"] = probe(other, True, "earlier")
    harness.sync()
    assert harness.status("r").phase == "Failed"
    assert job["metadata"]["name"] in harness.status("r").message
    assert accepted(harness)[0] == "Unknown"
