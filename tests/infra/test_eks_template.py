"""infra/eks.yaml: checked by cfn-lint, and deployed into moto as far as moto supports its resources.

moto has no CloudFormation support for the types in NOT_IN_MOTO, so it creates no cluster, node group, add-on or
association. cfn-lint checks their properties against AWS's schemas; nothing else here tests them.
"""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from cfnlint.decode import decode
from moto import mock_aws

from charts.tools import CHART, get_object, objects, pod_specs
from infra.test_eks_scripts import IMAGES

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "infra" / "eks.yaml"
PARAMETERS = {"GpuZone": "us-east-1a", "OtherZone": "us-east-1b", "BudgetEmail": "me@example.com"}
NOT_IN_MOTO = {
    "AWS::Budgets::Budget",
    "AWS::EKS::Addon",
    "AWS::EKS::Cluster",
    "AWS::EKS::Nodegroup",
    "AWS::EKS::PodIdentityAssociation",
    "AWS::S3::BucketPolicy",
}
pytestmark = pytest.mark.filterwarnings("ignore:Tried to parse")  # the types in NOT_IN_MOTO
BUCKET = "pyrite-123456789012-us-east-1"


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    return decode(str(TEMPLATE))[0]


@pytest.fixture(scope="module")
def resources(template: dict[str, Any]) -> dict[str, Any]:
    return template["Resources"]


def deploy(**parameters: str) -> dict[str, str]:
    """Deploy the stack into moto, and return its outputs."""
    cloudformation = boto3.client("cloudformation")
    cloudformation.create_stack(
        StackName="pyrite",
        TemplateBody=TEMPLATE.read_text(),
        Capabilities=["CAPABILITY_IAM"],
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in (PARAMETERS | parameters).items()],
    )
    stack = cloudformation.describe_stacks(StackName="pyrite")["Stacks"][0]
    assert stack["StackStatus"] == "CREATE_COMPLETE"
    return {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with mock_aws():
        yield


def strings(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """All strings in the template, with their paths."""
    if isinstance(node, str):
        yield path, node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from strings(value, f"{path}/{key}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from strings(value, f"{path}/{index}")


def test_cfn_lint_finds_nothing() -> None:
    lint = subprocess.run([Path(sys.executable).with_name("cfn-lint"), TEMPLATE], capture_output=True, text=True)
    assert lint.returncode == 0, lint.stdout


def test_template_fits_into_a_request() -> None:
    """CloudFormation accepts 51,200 bytes without a bucket for the template."""
    assert len(TEMPLATE.read_bytes()) < 51_200


def test_embedded_json_is_valid(template: dict[str, Any]) -> None:
    """AWS parses these strings only during the deployment."""
    found = {path.rpartition("/")[2] for path, text in strings(template) if text.lstrip().startswith(("{", "["))}
    assert {"ConfigurationValues", "LifecyclePolicyText"} <= found
    for path, text in strings(template):
        if text.lstrip().startswith('{"'):
            assert json.loads(text), path


@pytest.mark.usefixtures("aws")
def test_moto_creates_all_supported_resources(resources: dict[str, Any]) -> None:
    deploy()
    created = boto3.client("cloudformation").list_stack_resources(StackName="pyrite")["StackResourceSummaries"]
    supported = {name for name, resource in resources.items() if resource["Type"] not in NOT_IN_MOTO}
    assert {each["LogicalResourceId"] for each in created if each["PhysicalResourceId"]} == supported


def test_bucket_is_versioned_encrypted_and_cleaned(resources: dict[str, Any]) -> None:
    """Read from the template, because moto ignores these properties."""
    bucket = resources["Bucket"]["Properties"]
    assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}
    (encryption,) = bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    assert encryption["ServerSideEncryptionByDefault"]["SSEAlgorithm"] == {"Fn::If": ["HasKey", "aws:kms", "AES256"]}
    assert any("AbortIncompleteMultipartUpload" in rule for rule in bucket["LifecycleConfiguration"]["Rules"])


def test_bucket_refuses_plain_http(resources: dict[str, Any]) -> None:
    (statement,) = resources["BucketPolicy"]["Properties"]["PolicyDocument"]["Statement"]
    assert (statement["Effect"], statement["Action"]) == ("Deny", "s3:*")
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


def policies(key: str) -> dict[str, list[dict[str, Any]]]:
    """The statements of the pods' roles by policy name, as moto resolved them."""
    deploy(KmsKeyArn=key)
    iam = boto3.client("iam")
    found = {}
    for role in (role["RoleName"] for role in iam.list_roles()["Roles"]):
        for policy in iam.list_role_policies(RoleName=role)["PolicyNames"]:
            document = iam.get_role_policy(RoleName=role, PolicyName=policy)["PolicyDocument"]
            statements = ast.literal_eval(document)["Statement"]  # moto does not encode it as JSON
            found[policy] = [each for each in statements if each]  # nor drop AWS::NoValue
    return found


@pytest.mark.usefixtures("aws")
@pytest.mark.parametrize("key", ["", "arn:aws:kms:us-east-1:123456789012:key/1"])
def test_pods_have_only_the_permissions_they_use(key: str) -> None:
    found = policies(key)

    def actions(policy: str) -> set[str]:
        lists = (statement["Action"] for statement in found[policy])
        return {action for each in lists for action in ([each] if isinstance(each, str) else each)}

    read = {"s3:ListBucket", "s3:GetObject"}
    write = read | {"s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"}
    assert actions("read-store") == read | ({"kms:Decrypt"} if key else set())
    assert actions("write-store") == write | ({"kms:Decrypt", "kms:GenerateDataKey"} if key else set())
    for statement in found["read-store"] + found["write-store"]:
        assert statement["Resource"].startswith((f"arn:aws:s3:::{BUCKET}", "arn:aws:kms:us-east-1:"))
    for statement in found["scale-node-groups"]:
        if statement["Resource"] == "*" and "Condition" not in statement:
            assert all(":Describe" in action or ":Get" in action for action in statement["Action"])


def test_gpu_nodes_scale_to_zero_in_one_zone(resources: dict[str, Any]) -> None:
    group = resources["GpuNodes"]["Properties"]
    assert group["ScalingConfig"] == {"MinSize": 0, "DesiredSize": 0, "MaxSize": {"Ref": "MaxGpuNodes"}}
    assert group["Subnets"] == [{"Ref": "GpuSubnet"}]
    assert group["Taints"] == [{"Key": "nvidia.com/gpu", "Value": "true", "Effect": "NO_SCHEDULE"}]
    values = yaml.safe_load((ROOT / "charts/pyrite/values-eks.yaml").read_text())
    assert [each["key"] for each in values["server"]["tolerations"]] == ["nvidia.com/gpu"]
    assert values["server"]["nodeSelector"]["node.kubernetes.io/instance-type"] in group["InstanceTypes"]
    (disk,) = resources["GpuTemplate"]["Properties"]["LaunchTemplateData"]["BlockDeviceMappings"]
    assert disk["DeviceName"] == "/dev/xvdb"  # Bottlerocket's data disk
    assert (disk["Ebs"]["VolumeSize"], disk["Ebs"]["VolumeType"], disk["Ebs"]["Encrypted"]) == (200, "gp3", True)
    # Regression: without the tag, Cluster Autoscaler adds no node for a pod that requests disk.
    [size] = [
        value for key, value in group["Tags"].items() if key.endswith("/node-template/resources/ephemeral-storage")
    ]
    servers = values["server"]["replicas"] * gibibytes(values["server"]["resources"]["requests"]["ephemeral-storage"])
    assert servers < gibibytes(size) < disk["Ebs"]["VolumeSize"]


def gibibytes(quantity: str) -> int:
    assert quantity.endswith("Gi")
    return int(quantity.removesuffix("Gi"))


def test_network_policies_are_enforced(resources: dict[str, Any]) -> None:
    settings = resources["NetworkAddon"]["Properties"]["ConfigurationValues"]
    assert json.loads(settings) == {"enableNetworkPolicy": "true"}
    for group in ("CpuNodes", "GpuNodes"):  # a node that starts first would run pods without a policy
        assert "NetworkAddon" in resources[group]["DependsOn"]


@pytest.mark.usefixtures("aws")
def test_outputs_are_values_of_the_chart() -> None:
    outputs = deploy()
    flags = outputs["HelmFlags"].split()
    values = yaml.safe_load((ROOT / "charts/pyrite/values.yaml").read_text())
    assert flags[:2] == ["--namespace", "pyrite"]
    settings = [
        setting.partition("=") for flag, setting in zip(flags[2::2], flags[3::2], strict=True) if flag == "--set"
    ]
    assert len(settings) == 4
    for name, _, value in settings:
        node = values
        for part in name.split("."):
            node = node[part]
        assert isinstance(node, str)
        assert "${" not in value
        assert value or name == "store.kmsKey"
    assert f"store.url=s3://{BUCKET}/pyrite" in flags
    assert f"imageRegistry={outputs['Registry']}" in flags


@pytest.mark.usefixtures("aws")
def test_outputs_make_nodes_pull_the_images_that_eks_up_pushes() -> None:
    outputs = deploy()
    rendered = objects("--values", str(CHART / "values-eks.yaml"), *outputs["HelmFlags"].split())
    settings = yaml.safe_load(get_object(rendered, "ConfigMap", "pyrite-settings")["data"]["settings.yaml"])
    worker = settings["worker"]
    pods = {name: pod for name, pod in pod_specs(rendered) if "-jobs/" not in name}
    used = {
        *(container["image"] for pod in pods.values() for container in pod["containers"]),
        worker["image"],
        *(each["image"] for each in worker["stages"].values() if "image" in each),
    }
    host = outputs["Registry"].partition("/")[0]
    [vllm] = pods["StatefulSet pyrite-vllm"]["containers"]
    assert used == {vllm["image"], *(f"{host}/{image}" for image in IMAGES)}


def test_identities_name_the_charts_service_accounts(resources: dict[str, Any]) -> None:
    identities = [each["Properties"] for each in resources.values() if each["Type"].endswith("PodIdentityAssociation")]
    accounts = {each["ServiceAccount"] for each in identities}
    assert accounts == {"pyrite-controller", "pyrite-worker", "cluster-autoscaler"}
