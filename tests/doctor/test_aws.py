"""The doctor's questions to AWS, with botocore's Stubber: it checks every request and reply against AWS's models."""

import json
from typing import Any
from urllib.error import URLError

import boto3
import pytest
from botocore.stub import Stubber

from pyrite.doctor import Check
from pyrite.doctor.aws import Answers, GpuGroup, check_groups, check_network, check_quota, checks, platforms_of, read

WORKER = "123456789012.dkr.ecr.us-east-1.amazonaws.com/pyrite/pyrite-worker:0.1.0-cuda"
ACCOUNTS = ["pyrite-controller", "pyrite-worker"]
GROUP = GpuGroup("gpu", "BOTTLEROCKET_x86_64_NVIDIA", "ON_DEMAND", ("g5.12xlarge",), ("us-east-1c",), 200, True, 0, 1)
GOOD = Answers(
    quotas={"ON_DEMAND": 48.0, "SPOT": 0.0},
    offered=["us-east-1c"],
    groups=[GROUP],
    network='{"enableNetworkPolicy": "true"}',
    agent=True,
    associations=[("pyrite", account) for account in ACCOUNTS],
    images={WORKER: {"linux/amd64"}},
)


class StubbedSession:
    """A boto3 session whose clients give prepared replies, in this order for each service."""

    def __init__(self) -> None:
        self.stubs: dict[str, Stubber] = {}
        self._clients: dict[str, Any] = {}

    def client(self, service: str, **options: Any) -> Any:
        del options
        if service not in self._clients:
            keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
            self._clients[service] = boto3.client(service, **keys)
            self.stubs[service] = Stubber(self._clients[service])
            self.stubs[service].activate()
        return self._clients[service]

    def reply(self, service: str, operation: str, reply: dict[str, Any]) -> None:
        self.client(service)
        self.stubs[service].add_response(operation, reply)

    def error(self, service: str, operation: str, code: str) -> None:
        self.client(service)
        self.stubs[service].add_client_error(operation, code)


def cluster(**association: str) -> StubbedSession:
    """A cluster as infra/eks.yaml creates it."""
    session = StubbedSession()
    session.reply("service-quotas", "get_service_quota", {"Quota": {"Value": 48.0}})
    session.error("service-quotas", "get_service_quota", "NoSuchResourceException")
    session.reply("service-quotas", "get_aws_default_service_quota", {"Quota": {"Value": 8.0}})
    session.reply(
        "ec2",
        "describe_instance_type_offerings",
        {"InstanceTypeOfferings": [{"InstanceType": "g5.12xlarge", "Location": "us-east-1c"}]},
    )
    session.reply("eks", "list_nodegroups", {"nodegroups": ["cpu", "gpu"]})
    for name, ami, instance in (("cpu", "", "m6i.xlarge"), ("gpu", "_NVIDIA", "g5.12xlarge")):
        group = {
            "nodegroupName": name,
            "amiType": f"BOTTLEROCKET_x86_64{ami}",
            "capacityType": "ON_DEMAND",
            "instanceTypes": [instance],
            "subnets": ["subnet-1"],
            "launchTemplate": {"id": "lt-1", "version": "1"},
            "scalingConfig": {"minSize": 0, "maxSize": 1, "desiredSize": 0},
            "taints": [{"key": "nvidia.com/gpu", "value": "true", "effect": "NO_SCHEDULE"}],
        }
        session.reply("eks", "describe_nodegroup", {"nodegroup": group})
    session.reply("ec2", "describe_subnets", {"Subnets": [{"AvailabilityZone": "us-east-1c"}]})
    data = {"BlockDeviceMappings": [{"DeviceName": "/dev/xvdb", "Ebs": {"VolumeSize": 200}}]}
    session.reply(
        "ec2", "describe_launch_template_versions", {"LaunchTemplateVersions": [{"LaunchTemplateData": data}]}
    )
    addon = {"addonName": "vpc-cni", "configurationValues": '{"enableNetworkPolicy": "true"}'}
    session.reply("eks", "describe_addon", {"addon": addon})
    session.reply("eks", "describe_addon", {"addon": {"addonName": "eks-pod-identity-agent"}})
    found = [{"namespace": "pyrite", "serviceAccount": account} for account in ACCOUNTS]
    session.reply("eks", "list_pod_identity_associations", {"associations": [each | association for each in found]})
    return session


def add_image(session: StubbedSession, architecture: str) -> Any:
    """Add a single-platform image to the registry; returns the download of its configuration."""
    manifest = json.dumps({"config": {"digest": "sha256:" + "0" * 64}})
    session.reply("ecr", "batch_get_image", {"images": [{"imageManifest": manifest}]})
    session.reply("ecr", "get_download_url_for_layer", {"downloadUrl": "https://layer"})
    return lambda _: json.dumps({"os": "linux", "architecture": architecture}).encode()


def statuses(found: list[Check]) -> dict[str, str]:
    return {check.name: check.status for check in found}


def test_cluster_of_the_template_passes() -> None:
    session = cluster()
    fetch = add_image(session, "amd64")
    answers = read(session, "pyrite", [WORKER], fetch)
    assert answers == GOOD._replace(quotas={"ON_DEMAND": 48.0, "SPOT": 8.0})
    assert set(statuses(checks(answers, "pyrite", ACCOUNTS, 4)).values()) == {"ok"}
    for stub in session.stubs.values():
        stub.assert_no_pending_responses()


def test_arm64_image_fails() -> None:
    session = cluster()
    answers = read(session, "pyrite", [WORKER], add_image(session, "arm64"))
    (check,) = [each for each in checks(answers, "pyrite", ACCOUNTS, 4) if each.name.startswith("image")]
    assert (check.status, check.found) == ("fail", "built for linux/arm64; nodes need linux/amd64")
    assert "make images ARGS='--push 123456789012.dkr.ecr.us-east-1.amazonaws.com/pyrite' with --gpu" in check.fix


@pytest.mark.parametrize("code", ["RepositoryNotFoundException", ""])
def test_missing_image_fails(code: str) -> None:
    session = cluster()
    if code:
        session.error("ecr", "batch_get_image", code)
    else:
        session.reply("ecr", "batch_get_image", {"images": []})
    answers = read(session, "pyrite", [WORKER])
    assert answers.images == {WORKER: set()}
    assert statuses(checks(answers, "pyrite", ACCOUNTS, 4))["image pyrite-worker:0.1.0-cuda"] == "fail"


def test_missing_permission_is_a_warning() -> None:
    session = cluster()
    session.error("ecr", "batch_get_image", "AccessDeniedException")
    found = checks(read(session, "pyrite", [WORKER]), "pyrite", ACCOUNTS, 4)
    assert found[-1].status == "warn"
    assert "ecr:BatchGetImage" in found[-1].fix


def test_failed_download_is_a_warning() -> None:
    """Regression: it ended with a traceback, for example behind a proxy."""
    session = cluster()
    add_image(session, "amd64")

    def fail(url: str) -> bytes:
        raise URLError(f"no route to {url}")

    found = checks(read(session, "pyrite", [WORKER], fail), "pyrite", ACCOUNTS, 4)
    assert (found[-1].status, "no route" in found[-1].found) == ("warn", True)


@pytest.mark.parametrize(
    ("change", "name", "status", "text"),
    [
        ({"quotas": {"ON_DEMAND": 8.0}}, "GPU quota", "fail", "--quota-code L-DB2E81BA --desired-value 48"),
        ({"offered": ["us-east-1d"]}, "GPU zone", "fail", "Deploy with GpuZone=us-east-1d"),
        ({"offered": []}, "GPU zone", "fail", "another region"),
        ({"groups": []}, "GPU nodes", "fail", "no managed node group has GPUs"),
        ({"groups": [GROUP._replace(disk=20)]}, "GPU nodes", "fail", "a disk of 20 GiB"),
        ({"groups": [GROUP._replace(tainted=False)]}, "GPU nodes", "warn", "Add the taint"),
        ({"groups": [GROUP._replace(minimum=1)]}, "GPU nodes", "warn", "$136 a day"),
        ({"groups": [GROUP._replace(maximum=2)]}, "GPU quota", "fail", "--quota-code L-DB2E81BA --desired-value 96"),
        ({"network": ""}, "network policies", "fail", "update-addon"),
        ({"associations": []}, "Pod Identity", "warn", "pyrite-controller, pyrite-worker in namespace pyrite"),
        ({"agent": False}, "Pod Identity", "fail", "eks-pod-identity-agent"),
    ],
)
def test_each_problem_is_found(change: dict[str, Any], name: str, status: str, text: str) -> None:
    found = {check.name: check for check in checks(GOOD._replace(**change), "pyrite", ACCOUNTS, 4)}
    assert found[name].status == status
    assert text in found[name].found + found[name].fix
    assert sum(check.status != "ok" for check in found.values()) == 1


def test_spot_group_needs_the_spot_quota() -> None:
    check = check_quota({"ON_DEMAND": 48.0, "SPOT": 0.0}, [GROUP._replace(capacity="SPOT")])
    assert check.status == "fail"
    assert "L-3819A6DF" in check.fix


def test_servers_that_do_not_fit_the_node_group_are_found() -> None:
    eight = check_groups([GROUP], 8)
    assert eight.status == "warn"
    assert "Deploy with MaxGpuNodes=2, or set server.replicas=4." in eight.fix
    assert check_groups([GROUP._replace(maximum=2)], 8).status == "ok"


def test_network_setting_may_be_a_boolean_or_yaml() -> None:
    assert check_network('{"enableNetworkPolicy": true}').status == "ok"
    assert check_network('enableNetworkPolicy: "true"').status == "ok"
    assert check_network('{"enableNetworkPolicy": "false"}').status == "fail"


def test_attestations_of_an_index_are_no_platform() -> None:
    platforms = [{"os": "linux", "architecture": "amd64"}, {"os": "unknown", "architecture": "unknown"}]
    assert platforms_of({"manifests": [{"platform": each} for each in platforms]}, lambda _: {}) == {"linux/amd64"}
