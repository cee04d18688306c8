"""Create an EKS cluster for Pyrite, push the images, and install the chart. Run it again after any failure.

    make eks-up EMAIL=me@example.com [ARGS="--region us-west-2 GpuCapacity=SPOT"]

It prints the plan and its price, and asks; YES=1 answers yes. It needs aws, helm, and docker, podman or buildah.
"""

import argparse
import json
import re
import sys
from typing import Any

import yaml
from eks_common import (
    ROOT,
    TEMPLATE,
    Prices,
    Stack,
    account,
    bucket_exists,
    confirm,
    query,
    require,
    run,
    select_region,
    stop,
    use_cluster,
)
from images import TOOLS, is_available, version

from pyrite.doctor.aws import QUOTAS, VCPUS

AUTOSCALER = ("cluster-autoscaler", "--repo", "https://kubernetes.github.io/autoscaler", "--version", "9.56.0")
VALUES = ROOT / "charts" / "pyrite" / "values-eks.yaml"

#: Statuses from which CloudFormation can only delete a stack.
FAILED = ("CREATE_FAILED", "ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "DELETE_FAILED")

#: Zones, by their IDs, in which EKS cannot place a control plane.
WITHOUT_EKS = ("use1-az3", "usw1-az2", "cac1-az3")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stack", default="pyrite", help="name of the stack and the cluster")
    parser.add_argument("--region", help="default: the region of your AWS configuration")
    parser.add_argument("--email", help="receives the budget's alerts; needed for the first deployment")
    parser.add_argument("parameters", nargs="*", metavar="PARAMETER=VALUE", help="parameters of infra/eks.yaml")
    arguments = parser.parse_args()
    require("aws", "helm")
    if not re.fullmatch("[a-z][a-z0-9-]*", arguments.stack):  # it is also part of the names of bucket and repositories
        stop(f"--stack {arguments.stack}: use lower-case letters, digits and dashes, starting with a letter.")
    region, owner = select_region(arguments.region), account()
    stack = Stack(arguments.stack).settled()
    parameters = given_parameters(arguments.parameters, arguments.email)
    is_new = stack.status in ("", "REVIEW_IN_PROGRESS", *FAILED)
    if is_new:
        if not any(map(is_available, TOOLS)):
            stop(
                f"none of {', '.join(TOOLS)} works, and the images have to be built. Install one, or start its daemon."
            )
        if "BudgetEmail" not in parameters:
            stop("EMAIL is missing: the address for the budget's alerts. Use make eks-up EMAIL=me@example.com")
        parameters |= choose_zones(parameters)
    effective = template_defaults() | ({} if is_new else stack.parameters) | parameters
    check_quota(effective["GpuCapacity"], int(effective["MaxGpuNodes"]), region)
    confirm(plan(stack.name, is_new, effective, region, owner))

    if is_new:
        if stack.status not in ("", "REVIEW_IN_PROGRESS"):
            stack.delete()
        parameters["CreateBucket"] = str(not bucket_exists(f"{stack.name}-{owner}-{region}")).lower()
    logs = f"/aws/eks/{stack.name}/cluster"
    run("aws", "logs", "create-log-group", "--log-group-name", logs, allow="ResourceAlreadyExistsException")
    run("aws", "logs", "put-retention-policy", "--log-group-name", logs, "--retention-in-days", "14")
    outputs = deploy(stack, parameters, region)
    use_cluster(stack.name)
    push_images(outputs["Registry"], stack.name)
    namespace = effective["Namespace"]
    helm = ("helm", "upgrade", "--install", "--kube-context", stack.name, "--wait", "--timeout", "10m")
    unlock_release("cluster-autoscaler", "kube-system", stack.name)
    run(*helm, "cluster-autoscaler", *AUTOSCALER, *outputs["AutoscalerFlags"].split())
    unlock_release("pyrite", namespace, stack.name)
    chart = ("pyrite", ROOT / "charts" / "pyrite", "--values", VALUES)
    run(*helm, *chart, "--create-namespace", "--reset-then-reuse-values", *outputs["HelmFlags"].split())
    print(
        f"\nThe cluster {stack.name} is ready. Check it:  .venv/bin/pyrite doctor --on cluster -n {namespace}\n"
        f"Delete it:  make eks-down ARGS='--stack {stack.name} --region {region}'"
    )


def given_parameters(words: list[str], email: str | None) -> dict[str, str]:
    """The parameters of the command line."""
    parameters = dict(word.partition("=")[::2] for word in words) | ({"BudgetEmail": email} if email else {})
    known = _template()["Parameters"]
    for name, value in parameters.items():
        if name not in known:
            stop(f"{name}: infra/eks.yaml has no such parameter; it has {', '.join(known)}.")
        allowed = [str(each) for each in known[name].get("AllowedValues", [value])]
        if value not in allowed:
            stop(f"{name}={value}: the value must be {' or '.join(allowed)}.")
        if not re.fullmatch(pattern := known[name].get("AllowedPattern", ".*"), value):
            stop(f"{name}={value}: the value must match {pattern} ({known[name]['Description']}).")
    return parameters


def template_defaults() -> dict[str, str]:
    return {name: str(each.get("Default", "")) for name, each in _template()["Parameters"].items()}


def _template() -> dict[str, Any]:
    class Loader(yaml.SafeLoader):
        """Ignores CloudFormation's tags, which parameters do not have."""

    Loader.add_multi_constructor("!", lambda *_: None)
    return dict(yaml.load(TEMPLATE.read_text(), Loader))


def choose_zones(given: dict[str, str]) -> dict[str, str]:
    """A zone with g5.12xlarge for the GPU nodes, and another one; those in ``given`` are checked."""
    offered = query(
        *("ec2", "describe-instance-type-offerings", "--location-type", "availability-zone"),
        *("--filters", "Name=instance-type,Values=g5.12xlarge"),
    )["InstanceTypeOfferings"]
    zones = query("ec2", "describe-availability-zones", "--filters", "Name=zone-type,Values=availability-zone")
    usable = sorted(zone["ZoneName"] for zone in zones["AvailabilityZones"] if zone["ZoneId"] not in WITHOUT_EKS)
    with_gpu = sorted({each["Location"] for each in offered} & set(usable))
    gpu, other = given.get("GpuZone"), given.get("OtherZone")
    choices = [(a, b) for a in with_gpu for b in usable if a != b and gpu in (a, None) and other in (b, None)]
    if not choices:
        chosen = " and ".join(f"{name}={given[name]}" for name in ("GpuZone", "OtherZone") if name in given)
        stop(
            f"{chosen or 'the region'}: EKS needs two zones, one of them with g5.12xlarge. This region has "
            f"{', '.join(with_gpu) or 'no zone'} with it, and {', '.join(usable) or 'no zone'} for EKS. Choose another "
            "GpuZone or OtherZone, or another region: ARGS='--region us-east-1'."
        )
    return dict(zip(("GpuZone", "OtherZone"), choices[0], strict=True))


def check_quota(capacity: str, nodes: int, region: str) -> None:
    code, needed = QUOTAS[capacity], nodes * VCPUS
    which = ("--service-code", "ec2", "--quota-code", code)
    # A quota that was never changed for this account may exist only as AWS's default.
    found = query("service-quotas", "get-service-quota", *which, allow="NoSuchResourceException") or query(
        "service-quotas", "get-aws-default-service-quota", *which
    )
    value = found["Quota"]["Value"]
    if value < needed:
        stop(
            f"the quota for G instances ({capacity}) in {region} is {value:.0f} vCPUs; {nodes} x g5.12xlarge need "
            f"{needed}. Request it, which takes hours to days: aws service-quotas request-service-quota-increase "
            f"--service-code ec2 --quota-code {code} --desired-value {needed} --region {region}"
        )


def plan(name: str, is_new: bool, parameters: dict[str, str], region: str, owner: str) -> str:
    prices, gpu_nodes = Prices(), f"0 to {parameters['MaxGpuNodes']} g5.12xlarge in {parameters['GpuZone']}"
    idle, gpu = prices.idle(parameters["CpuInstanceType"]), prices.gpu()
    spot = " (on demand; spot is cheaper)" if parameters["GpuCapacity"] == "SPOT" else ""
    return f"""\
This {"creates" if is_new else "updates"} in account {owner}, {region}:
  stack {name} (15 to 20 minutes): VPC, EKS {parameters["KubernetesVersion"]}, bucket, image repositories, roles, budget
  1 to 4 nodes {parameters["CpuInstanceType"]}, and {gpu_nodes}
  images in {owner}.dkr.ecr.{region}.amazonaws.com/{name}, built here if missing; 10 to 30 minutes
  Helm releases cluster-autoscaler and pyrite
Price ({prices.source}):
  idle          ${idle:.2f} an hour, ${idle * 24:.2f} a day
  GPU node      ${gpu:.2f} an hour more for each while it runs{spot}, ${gpu * 24:.2f} a day
  `make eks-down` ends it, except for the bucket"""


def deploy(stack: Stack, parameters: dict[str, str], region: str) -> dict[str, str]:
    """Deploy the template, and return the stack's outputs."""
    overrides = [f"{name}={value}" for name, value in parameters.items()]
    progress = f"aws cloudformation describe-stack-events --stack-name {stack.name} --region {region}"
    print(f"up to 20 minutes; progress: {progress}", flush=True)
    done = run(
        *("aws", "cloudformation", "deploy", "--stack-name", stack.name, "--template-file", TEMPLATE),
        *("--capabilities", "CAPABILITY_IAM", "--no-fail-on-empty-changeset"),
        *(("--parameter-overrides", *overrides) if overrides else ()),
        allow="Failed to create/update the stack",
    )
    if done is None:
        stack.print_failures()
        stop(f"the stack {stack.name} could not be deployed. Fix the cause above and run the same command again.")
    return Stack(stack.name).outputs


def push_images(registry: str, prefix: str) -> None:
    """Build and push the images that values-eks.yaml names and the registry lacks."""
    values = yaml.safe_load(VALUES.read_text())
    for image, tags in {"controller": {version()}, "worker": tags_of(values["worker"])}.items():
        for tag in sorted(tags):
            repository = ("--repository-name", f"{prefix}/pyrite-{image}", "--image-ids", f"imageTag={tag}")
            if query("ecr", "describe-images", *repository, allow="ImageNotFoundException") is None:
                gpu = ("--gpu",) if tag.endswith("-cuda") else ()
                run(sys.executable, ROOT / "scripts" / "images.py", "--only", image, *gpu, "--push", registry)


def unlock_release(release: str, namespace: str, cluster: str) -> None:
    """End an operation of Helm that was killed: Helm would refuse to upgrade the release."""
    where = ("--namespace", namespace, "--kube-context", cluster)
    found = run("helm", "status", release, *where, "--output", "json", allow="not found", quiet=True)
    status = json.loads(found)["info"]["status"] if found else ""
    if status in ("pending-install", "uninstalling"):
        run("helm", "uninstall", release, *where, "--wait")
    elif status.startswith("pending-"):
        run("helm", "rollback", release, *where)


def tags_of(worker: dict[str, Any]) -> set[str]:
    """The tags of the worker's image, and of the stages' own images."""
    images = [worker.get("image", {}), *(stage["image"] for stage in worker["stages"].values() if "image" in stage)]
    return {image.get("tag") or version() for image in images}


if __name__ == "__main__":
    main()
