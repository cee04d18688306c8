"""Checks of an EKS cluster through the AWS API: quota, node groups, add-ons, Pod Identity, images."""

import json
import re
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import yaml
from botocore.exceptions import BotoCoreError, ClientError

from pyrite.doctor import Check, Unreadable, evaluate

T = TypeVar("T")

INSTANCE = "g5.12xlarge"
VCPUS, GPUS = 48, 4
#: Quotas of running G and VT instances, in vCPUs.
QUOTAS = {"ON_DEMAND": "L-DB2E81BA", "SPOT": "L-3819A6DF"}
#: vLLM's image unpacks to almost 30 GB, and each of four servers needs 34 GiB for its model.
MIN_DISK = 200
_DEFAULT_DISK = 20  # GiB, of a managed node group
_GPU_TAINT = "nvidia.com/gpu"
_ECR = re.compile(r"\d+\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(?:\.cn)?/(?P<repository>[^:@]+):(?P<tag>.+)")
_MANIFESTS = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)


class GpuGroup(NamedTuple):
    """A managed node group with GPUs."""

    name: str
    ami: str
    capacity: str
    instances: tuple[str, ...]
    zones: tuple[str, ...]
    disk: int  # GiB
    tainted: bool
    minimum: int
    maximum: int


class Answers(NamedTuple):
    """The replies of AWS."""

    quotas: Mapping[str, float] | Unreadable
    offered: Sequence[str] | Unreadable  # zones with INSTANCE
    groups: Sequence[GpuGroup] | Unreadable
    network: str | Unreadable  # configuration of the add-on vpc-cni; "" without the add-on
    agent: bool | Unreadable  # the Pod Identity agent is installed
    associations: Sequence[tuple[str, str]] | Unreadable  # namespace and service account
    images: Mapping[str, set[str] | Unreadable]  # architectures by reference; an empty set: no such image


def checks(answers: Answers, namespace: str, accounts: Sequence[str], gpus: int) -> list[Check]:
    """All checks.

    Args:
        accounts: the service accounts that need access to the store.
        gpus: the number of GPUs that the release claims at a time.
    """

    def permission(action: str) -> str:
        return f"Allow yourself {action}, or check it in the console."

    groups = answers.groups
    found = [
        evaluate(
            "GPU quota",
            answers.quotas,
            lambda quotas: check_quota(quotas, () if isinstance(groups, Unreadable) else groups),
            permission("servicequotas:GetServiceQuota"),
        ),
        evaluate(
            "GPU zone",
            answers.offered,
            lambda offered: check_zone(offered, () if isinstance(groups, Unreadable) else groups),
            permission("ec2:DescribeInstanceTypeOfferings"),
        ),
        evaluate("GPU nodes", groups, lambda found: check_groups(found, gpus), permission("eks:DescribeNodegroup")),
        evaluate("network policies", answers.network, check_network, permission("eks:DescribeAddon")),
        evaluate(
            "Pod Identity",
            answers.associations,
            lambda found: check_associations(found, answers.agent, namespace, accounts),
            permission("eks:ListPodIdentityAssociations"),
        ),
    ]
    return found + [
        evaluate(
            f"image {reference.rpartition('/')[2]}",
            platforms,
            lambda found, reference=reference: check_image(reference, found),  # type: ignore[misc]
            permission("ecr:BatchGetImage"),
        )
        for reference, platforms in answers.images.items()
    ]


def check_quota(quotas: Mapping[str, float], groups: Sequence[GpuGroup]) -> Check:
    """The quota allows as many nodes of its capacity type as the node group may have."""
    capacity, nodes = (groups[0].capacity, groups[0].maximum) if groups else ("ON_DEMAND", 1)
    value, needed = quotas[capacity], nodes * VCPUS
    text = f"{value:.0f} vCPUs of G instances ({capacity})"
    if value >= needed:
        return Check("GPU quota", "ok", text)
    request = f"aws service-quotas request-service-quota-increase --service-code ec2 --quota-code {QUOTAS[capacity]}"
    fix = (
        f"{nodes} x {INSTANCE} need {needed}. Request it; this takes hours to days: {request} --desired-value {needed}"
    )
    return Check("GPU quota", "fail", text, fix)


def check_zone(offered: Sequence[str], groups: Sequence[GpuGroup]) -> Check:
    """The node group's zones offer the instance."""
    zones = [zone for group in groups for zone in group.zones] or list(offered)
    usable = sorted(set(zones) & set(offered))
    if usable:
        return Check("GPU zone", "ok", f"{INSTANCE} is offered in {', '.join(usable)}")
    choice = f"Deploy with GpuZone={min(offered)}." if offered else "Choose another region."
    return Check("GPU zone", "fail", f"{INSTANCE} is not offered in {', '.join(zones) or 'this region'}", choice)


def check_groups(groups: Sequence[GpuGroup], gpus: int) -> Check:
    """Disk, taint, minimum and maximum of the GPU node groups."""
    if not groups:
        fix = f"Create a node group with {INSTANCE}; `make eks-up` does."
        return Check("GPU nodes", "fail", "no managed node group has GPUs", fix)
    for group in groups:
        if group.disk < MIN_DISK:
            fix = f"Images and models do not fit. Set {MIN_DISK} GiB in its launch template."
            return Check("GPU nodes", "fail", f"group {group.name}: a disk of {group.disk} GiB", fix)
        if not group.tainted:
            fix = f"Other pods keep the expensive node. Add the taint {_GPU_TAINT}:NoSchedule."
            return Check("GPU nodes", "warn", f"group {group.name}: no taint", fix)
        if group.minimum:
            fix = "An idle node costs $136 a day. Set the group's minimum to 0."
            return Check("GPU nodes", "warn", f"group {group.name}: minimum {group.minimum}", fix)
    maxima = ", ".join(f"group {group.name}: at most {group.maximum} nodes" for group in groups)
    most = GPUS * sum(group.maximum for group in groups)
    if gpus > most and all(group.instances == (INSTANCE,) for group in groups):
        fix = f"Some servers stay Pending. Deploy with MaxGpuNodes={-(-gpus // GPUS)}, or set server.replicas={most}."
        return Check("GPU nodes", "warn", f"{maxima}, so {most} GPUs; the release claims {gpus}", fix)
    text = ", ".join(f"group {group.name}: {group.disk} GiB, tainted, 0 to {group.maximum} nodes" for group in groups)
    return Check("GPU nodes", "ok", text)


def check_network(configuration: str) -> Check:
    """The VPC CNI enforces network policies."""
    name = "network policies"
    settings = yaml.safe_load(configuration) or {}  # AWS accepts JSON and YAML
    if str(settings.get("enableNetworkPolicy")).lower() == "true":
        return Check(name, "ok", "enforced by the add-on vpc-cni")
    fix = 'aws eks update-addon --addon-name vpc-cni --configuration-values \'{"enableNetworkPolicy":"true"}\''
    return Check(name, "fail", "not enforced: all traffic is allowed", f"{fix} --cluster-name CLUSTER")


def check_associations(
    found: Sequence[tuple[str, str]], agent: bool | Unreadable, namespace: str, accounts: Sequence[str]
) -> Check:
    """Each service account has a role, and the agent that provides its credentials runs."""
    missing = [account for account in accounts if (namespace, account) not in found]
    if missing:
        fix = "Create them (infra/eks.yaml has the roles), or use IRSA annotations or store.existingSecret."
        text = f"no association for {', '.join(missing)} in namespace {namespace}"
        return Check("Pod Identity", "warn", text, fix)
    if agent is False:
        fix = "aws eks create-addon --addon-name eks-pod-identity-agent --cluster-name CLUSTER"
        return Check("Pod Identity", "fail", "the add-on eks-pod-identity-agent is missing", fix)
    return Check("Pod Identity", "ok", f"associations for {', '.join(accounts)}")


def check_image(reference: str, platforms: set[str]) -> Check:
    """The image exists, and runs on amd64 nodes."""
    name = f"image {reference.rpartition('/')[2]}"
    push = f"make images ARGS='--push {reference.rpartition('/')[0]}'" + (" with --gpu" if "-cuda" in reference else "")
    if not platforms:
        return Check(name, "fail", f"{reference} is not in the registry", f"Push it: {push}")
    text = ", ".join(sorted(platforms))
    if "linux/amd64" not in platforms:
        return Check(name, "fail", f"built for {text}; nodes need linux/amd64", f"Build it again: {push}")
    return Check(name, "ok", text)


def platforms_of(manifest: Mapping[str, Any], config: Callable[[str], Mapping[str, Any]]) -> set[str]:
    """The platforms of an image manifest or index. ``config`` returns the configuration with a digest."""
    if "manifests" in manifest:
        entries = [each.get("platform", {}) for each in manifest["manifests"]]
    else:
        entries = [config(manifest["config"]["digest"])]
    # An index of buildx also lists attestations, whose platform is unknown.
    return {f"{each['os']}/{each['architecture']}" for each in entries if each.get("os", "unknown") != "unknown"}


def identity(session: Any) -> str:
    """The account and user of the credentials. Raises botocore's errors."""
    return str(session.client("sts").get_caller_identity()["Arn"])


def read(session: Any, cluster: str, images: Sequence[str], fetch: Callable[[str], bytes] | None = None) -> Answers:
    """Read everything from AWS. ``session``: a boto3 session with the cluster's region. ``fetch``: downloads a URL."""
    eks, ec2, quotas = session.client("eks"), session.client("ec2"), session.client("service-quotas")
    return Answers(
        quotas=_attempt(lambda: {capacity: _quota(quotas, code) for capacity, code in QUOTAS.items()}),
        offered=_attempt(lambda: _offered(ec2)),
        groups=_attempt(lambda: _groups(eks, ec2, cluster)),
        network=_attempt(lambda: (_addon(eks, cluster, "vpc-cni") or {}).get("configurationValues", "")),
        agent=_attempt(lambda: _addon(eks, cluster, "eks-pod-identity-agent") is not None),
        associations=_attempt(lambda: _associations(eks, cluster)),
        images={image: _attempt(lambda image=image: _platforms(session, image, fetch)) for image in images},  # type: ignore[misc]
    )


def _attempt(action: Callable[[], T]) -> T | Unreadable:
    try:
        return action()
    except (ClientError, BotoCoreError, OSError) as error:
        return Unreadable(error)


def _quota(quotas: Any, code: str) -> float:
    """The quota's value. One that was never changed for this account may exist only as AWS's default."""
    which = {"ServiceCode": "ec2", "QuotaCode": code}
    try:
        found = quotas.get_service_quota(**which)
    except quotas.exceptions.NoSuchResourceException:
        found = quotas.get_aws_default_service_quota(**which)
    return float(found["Quota"]["Value"])


def _offered(ec2: Any) -> list[str]:
    found = ec2.describe_instance_type_offerings(
        LocationType="availability-zone", Filters=[{"Name": "instance-type", "Values": [INSTANCE]}]
    )
    return sorted(each["Location"] for each in found["InstanceTypeOfferings"])


def _groups(eks: Any, ec2: Any, cluster: str) -> list[GpuGroup]:
    groups = []
    for name in eks.list_nodegroups(clusterName=cluster)["nodegroups"]:
        group = eks.describe_nodegroup(clusterName=cluster, nodegroupName=name)["nodegroup"]
        if "NVIDIA" not in group["amiType"] and not any(each.startswith(("g", "p")) for each in _instances(group)):
            continue
        subnets = ec2.describe_subnets(SubnetIds=group["subnets"])["Subnets"]
        taints = [taint for taint in group.get("taints", []) if taint.get("key") == _GPU_TAINT]
        groups.append(
            GpuGroup(
                name=name,
                ami=group["amiType"],
                capacity=group.get("capacityType", "ON_DEMAND"),
                instances=tuple(_instances(group)),
                zones=tuple(sorted({subnet["AvailabilityZone"] for subnet in subnets})),
                disk=_disk(ec2, group),
                tainted=any(taint["effect"] == "NO_SCHEDULE" for taint in taints),
                minimum=group["scalingConfig"]["minSize"],
                maximum=group["scalingConfig"]["maxSize"],
            )
        )
    return groups


def _instances(group: Mapping[str, Any]) -> list[str]:
    return list(group.get("instanceTypes") or [])


def _disk(ec2: Any, group: Mapping[str, Any]) -> int:
    """The largest disk of the group's nodes in GiB."""
    template = group.get("launchTemplate")
    if not template:
        return int(group.get("diskSize") or _DEFAULT_DISK)
    found = ec2.describe_launch_template_versions(LaunchTemplateId=template["id"], Versions=[template["version"]])
    data = found["LaunchTemplateVersions"][0]["LaunchTemplateData"]
    sizes = [mapping.get("Ebs", {}).get("VolumeSize", 0) for mapping in data.get("BlockDeviceMappings", [])]
    return max([_DEFAULT_DISK, *map(int, sizes)])


def _addon(eks: Any, cluster: str, name: str) -> Mapping[str, Any] | None:
    try:
        addon: Mapping[str, Any] = eks.describe_addon(clusterName=cluster, addonName=name)["addon"]
    except ClientError as error:
        if error.response["Error"]["Code"] == "ResourceNotFoundException":
            return None
        raise
    return addon


def _associations(eks: Any, cluster: str) -> list[tuple[str, str]]:
    found = eks.list_pod_identity_associations(clusterName=cluster)["associations"]
    return [(each["namespace"], each["serviceAccount"]) for each in found]


def _platforms(session: Any, image: str, fetch: Callable[[str], bytes] | None) -> set[str] | Unreadable:
    """The platforms of an image in ECR."""
    match = _ECR.fullmatch(image)
    if not match:
        return Unreadable("it is not in Amazon ECR")
    ecr, repository = session.client("ecr", region_name=match["region"]), match["repository"]
    try:
        found = ecr.batch_get_image(
            repositoryName=repository, imageIds=[{"imageTag": match["tag"]}], acceptedMediaTypes=list(_MANIFESTS)
        )["images"]
    except ClientError as error:
        if error.response["Error"]["Code"] != "RepositoryNotFoundException":
            raise
        found = []
    if not found:
        return set()

    def config(digest: str) -> Mapping[str, Any]:
        url = ecr.get_download_url_for_layer(repositoryName=repository, layerDigest=digest)["downloadUrl"]
        content: Mapping[str, Any] = json.loads((fetch or _download)(url))
        return content

    return platforms_of(json.loads(found[0]["imageManifest"]), config)


def _download(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as reply:
        content: bytes = reply.read()
    return content
