"""`make eks-up` and `make eks-down` against cloud_double.py, killed at every change and run again.

The double does not know AWS's own rules; so that no option is misspelt, every `aws` command is also checked against
botocore's models of the API.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore import xform_name

ROOT = Path(__file__).parents[2]
DOUBLE = Path(__file__).with_name("cloud_double.py")
BUCKET = "pyrite-123456789012-us-east-1"
IMAGES = [f"pyrite/pyrite-{each}" for each in ("controller:0.1.0", "worker:0.1.0", "worker:0.1.0-cuda")]
LOGS = "/aws/eks/pyrite/cluster"
EMPTY: dict[str, Any] = {
    "stack": None,
    "parameters": {},
    "cluster": False,
    "buckets": [],
    "objects": [],
    "logs": [],
    "images": [],
    "releases": [],
    "pending": {},
    "runs": {},
    "volume": False,
    "locked": False,
    "quota": 48.0,
    "unreachable": False,
    "changes": 0,
    "log": [],
}
UP = {
    "stack": "CREATE_COMPLETE",
    "cluster": True,
    "buckets": [BUCKET],
    "logs": [LOGS],
    "releases": ["cluster-autoscaler", "pyrite"],
}
RUNNING = UP | {"parameters": {"Namespace": "pyrite"}, "runs": {"one": "Running"}, "objects": ["model"]}

#: Commands of the AWS CLI that are not operations of an API.
CLI_ONLY = {
    ("cloudformation", "deploy"),
    ("eks", "update-kubeconfig"),
    ("ecr", "get-login-password"),
    *(("s3", name) for name in ("cp", "ls", "sync")),
}


class Cloud:
    """The double's world and programs, in ``folder``."""

    def __init__(self, folder: Path, **world: Any):
        self._file = folder / "world.json"
        self.bin = folder / "bin"
        self.bin.mkdir()
        for name in ("aws", "helm", "kubectl", "docker"):
            program = self.bin / name
            program.write_text(f"#!{sys.executable} -S\n{DOUBLE.read_text()}")
            program.chmod(0o755)
        self.reset(**world)

    def reset(self, **world: Any) -> None:
        self._file.write_text(json.dumps(EMPTY | world))

    @property
    def world(self) -> dict[str, Any]:
        return json.loads(self._file.read_text())

    def run(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": f"{self.bin}{os.pathsep}/usr/bin{os.pathsep}/bin",
            "WORLD": str(self._file),
            "AWS_REGION": "us-east-1",
            "YES": "1",
            "POLL_SECONDS": "0",
            **environment,
        }
        command = [sys.executable, ROOT / "scripts" / script, *arguments]
        return subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
        )

    def up(self, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.run("eks_up.py", "--email", "me@example.com", **environment)


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    return Cloud(tmp_path)


def state(world: dict[str, Any], keys: Any) -> dict[str, Any]:
    return {key: world[key] for key in keys}


def assert_commands_exist(log: list[list[str]]) -> None:
    """Every `aws` command is an operation with these options in botocore's model of the API."""
    session = botocore.session.Session()
    for _, service, operation, *words in (each for each in log if each[0] == "aws"):
        if (service, operation) in CLI_ONLY:
            continue
        model = session.get_service_model(service.removesuffix("api"))  # s3api
        names = {xform_name(name, "-"): name for name in model.operation_names}
        assert operation in names, f"{service} {operation}"
        members = model.operation_model(names[operation]).input_shape.members
        known = {f"--{xform_name(member, '-')}" for member in members} | {"--output", "--query", "--max-items"}
        assert {word for word in words if word.startswith("--")} <= known, f"{service} {operation} {words}"


def test_up_creates_everything_and_again_changes_nothing(cloud: Cloud) -> None:
    done = cloud.up()
    assert done.returncode == 0, done.stderr
    assert state(cloud.world, UP) == UP
    assert cloud.world["images"] == IMAGES
    assert cloud.world["parameters"]["GpuZone"] == "us-east-1c"  # us-east-1e offers the GPU, but not EKS
    assert_commands_exist(cloud.world["log"])
    for text in ("idle          $0.31 an hour, $7.39 a day", "GPU node      $5.74 an hour more", "November 2026"):
        assert text in done.stdout
    before = cloud.world
    done = cloud.run("eks_up.py")
    assert done.returncode == 0, done.stderr
    assert state(cloud.world, [*UP, "images", "parameters"]) == state(before, [*UP, "images", "parameters"])
    assert "This updates" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
def test_up_can_be_killed_at_every_change(cloud: Cloud, when: str) -> None:
    kill = 1
    while True:
        cloud.reset(images=IMAGES if when == "before" else [])  # building them takes most of the time
        killed = cloud.up(KILL_AT=str(kill), KILL_WHEN=when)
        if killed.returncode == 0:
            break
        assert cloud.world["changes"] == kill, killed.stderr
        done = cloud.up()
        assert done.returncode == 0, done.stderr
        assert state(cloud.world, UP) == UP, f"killed {when} change {kill}"
        kill += 1
    assert kill > (6 if when == "before" else 9)  # logs (2), stack, kubeconfig, images (3), releases (2)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
def test_down_can_be_killed_at_every_change(cloud: Cloud, when: str) -> None:
    kill = 1
    while True:
        cloud.reset(**RUNNING)
        killed = cloud.run("eks_down.py", "--delete-data", KILL_AT=str(kill), KILL_WHEN=when)
        if killed.returncode == 0:
            break
        assert cloud.world["changes"] == kill, killed.stderr
        done = cloud.run("eks_down.py", "--delete-data")
        assert done.returncode == 0, done.stderr
        assert "Nothing remains." in done.stdout
        nothing = EMPTY | {"runs": {"one": "Cancelled"}}
        assert state(cloud.world, UP | {"objects": [], "runs": {}}) == state(nothing, UP | {"objects": [], "runs": {}})
        kill += 1
    assert kill > 8  # kubeconfig, run, releases (2), stack, objects, bucket, logs


def test_down_keeps_results_and_lists_what_remains(cloud: Cloud) -> None:
    cloud.reset(**RUNNING, volume=True)
    done = cloud.run("eks_down.py")
    assert done.returncode == 0, done.stderr
    assert (cloud.world["stack"], cloud.world["buckets"], cloud.world["objects"]) == (None, [BUCKET], ["model"])
    assert f"bucket {BUCKET}, 1.00 GB: $0.02 a month" in done.stdout
    assert "volume vol-1, 40 GiB: $3.20 a month; aws ec2 delete-volume --volume-id vol-1" in done.stdout
    assert f"log group {LOGS}, 2.00 GB: $0.06 a month" in done.stdout
    assert_commands_exist(cloud.world["log"])
    assert cloud.up().returncode == 0  # uses the bucket that remains
    assert cloud.world["parameters"]["CreateBucket"] == "false"


@pytest.mark.parametrize("status", ["ROLLBACK_COMPLETE", "DELETE_FAILED"])
def test_up_replaces_a_failed_stack(cloud: Cloud, status: str) -> None:
    """It has none of the failed stack's parameters; the plan neither."""
    cloud.reset(stack=status, parameters={"GpuZone": "us-east-1z", "GpuCapacity": "SPOT"})
    done = cloud.up()
    assert done.returncode == 0, done.stderr
    assert cloud.world["stack"] == "CREATE_COMPLETE"
    assert cloud.world["parameters"]["GpuZone"] == "us-east-1c"
    assert "spot" not in done.stdout


@pytest.mark.parametrize(
    ("status", "command"),
    [("pending-install", "uninstall"), ("uninstalling", "uninstall"), ("pending-upgrade", "rollback")],
)
def test_up_continues_after_a_killed_helm(cloud: Cloud, status: str, command: str) -> None:
    """Regression: Helm refuses to upgrade a pending release, so all later runs failed. A rollback keeps its values."""
    cloud.reset(**UP, images=IMAGES, pending={"pyrite": status})
    done = cloud.run("eks_up.py")
    assert done.returncode == 0, done.stderr
    assert state(cloud.world, UP) == UP
    assert cloud.world["pending"] == {}
    assert [words[1] for words in cloud.world["log"] if words[2:3] == ["pyrite"] and words[1] != "status"] == [command]


@pytest.mark.parametrize("given", ["GpuZone=us-east-1d", "OtherZone=us-east-1c"])
def test_up_chooses_the_zone_that_is_not_given(cloud: Cloud, given: str) -> None:
    """Regression: both zones could be the same, and EKS then refuses to create the cluster."""
    done = cloud.run("eks_up.py", "--email", "me@example.com", given)
    assert done.returncode == 0, done.stderr
    assert state(cloud.world["parameters"], ("GpuZone", "OtherZone")) == {
        "GpuZone": "us-east-1d",
        "OtherZone": "us-east-1c",
    }


def test_down_stops_if_objects_cannot_be_deleted(cloud: Cloud) -> None:
    """Regression: it repeated the request forever, because the exit code of `aws` is 0."""
    cloud.reset(buckets=[BUCKET], objects=["model"], locked=True)
    done = cloud.run("eks_down.py", "--delete-data")
    assert done.returncode == 2
    assert "AccessDenied" in done.stderr


def test_down_of_an_unreachable_cluster_says_how_to_delete_it(cloud: Cloud) -> None:
    """Regression: another IAM user could not stop the costs, and read only that kubectl failed."""
    cloud.reset(**RUNNING, unreachable=True)
    done = cloud.run("eks_down.py")
    assert done.returncode == 2
    assert "aws cloudformation delete-stack --stack-name pyrite --region us-east-1" in done.stderr
    assert cloud.world["stack"] == "CREATE_COMPLETE"


@pytest.mark.parametrize(
    ("world", "arguments", "message"),
    [
        ({"quota": 8.0}, ("--email", "a@b.c"), "is 8 vCPUs; 1 x g5.12xlarge need 48. Request it"),
        ({"quota": None}, ("--email", "a@b.c"), "is 0 vCPUs; 1 x g5.12xlarge need 48. Request it"),
        ({}, ("--email", "a@b.c", "MaxGpuNodes=2"), "is 48 vCPUs; 2 x g5.12xlarge need 96. Request it"),
        ({}, (), "EMAIL is missing"),
        ({}, ("GpuCapacity=CHEAP",), "GpuCapacity=CHEAP: the value must be ON_DEMAND or SPOT."),
        ({}, ("Zone=x",), "Zone: infra/eks.yaml has no such parameter"),
        ({}, ("--email", "me"), "BudgetEmail=me: the value must match [^@ ]+@[^@ ]+ (Receives an email"),
        ({}, ("--stack", "Pyrite"), "--stack Pyrite: use lower-case letters"),
        (
            {},
            ("--email", "a@b.c", "GpuZone=us-east-1e"),
            "GpuZone=us-east-1e: EKS needs two zones, one of them with g5",
        ),
        ({}, ("--email", "a@b.c", "OtherZone=us-east-1e"), "OtherZone=us-east-1e: EKS needs two zones"),
    ],
)
def test_mistakes_change_nothing(cloud: Cloud, world: dict[str, Any], arguments: tuple[str, ...], message: str) -> None:
    cloud.reset(**world)
    done = cloud.run("eks_up.py", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert cloud.world["changes"] == 0


def test_up_needs_a_build_tool_before_it_creates_anything(cloud: Cloud) -> None:
    """Regression: it failed after 20 minutes, with a cluster that already cost money."""
    (cloud.bin / "docker").unlink()
    done = cloud.up(PATH=str(cloud.bin))
    assert done.returncode == 2
    assert "none of docker, podman, buildah works" in done.stderr
    assert cloud.world["changes"] == 0


def test_down_of_a_wrong_region_names_the_region(cloud: Cloud) -> None:
    """Regression: it promised to delete a cluster, and reported that nothing remains."""
    done = cloud.run("eks_down.py")
    assert done.returncode == 0, done.stderr
    assert "There is no stack pyrite in account 123456789012, us-east-1. If the cluster is in another" in done.stdout
    assert "This cancels" not in done.stdout
    done = cloud.run("eks_down.py", "--delete-data", YES="")
    assert done.returncode == 2
    assert f"This deletes the bucket {BUCKET} WITH ALL RESULTS." in done.stdout


def test_without_an_answer_nothing_changes(cloud: Cloud) -> None:
    cloud.reset(**RUNNING)
    done = cloud.run("eks_down.py", YES="")
    assert done.returncode == 2
    assert "YES=1 answers yes" in done.stderr
    assert cloud.world["changes"] == 0
