"""Delete the EKS cluster that `make eks-up` created, and list what remains and its cost. Run it again after a failure.

    make eks-down [ARGS="--region us-west-2 --delete-data"]

It cancels runs, uninstalls the Helm releases and deletes the stack with its images. The bucket with all results stays,
unless --delete-data is given. It prints the plan and asks; YES=1 answers yes. It needs aws, helm and kubectl.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from eks_common import (
    POLL_SECONDS,
    Prices,
    Stack,
    account,
    bucket_exists,
    cluster_exists,
    confirm,
    query,
    require,
    run,
    select_region,
    stop,
    use_cluster,
)

ENDED = ("Probed", "Succeeded", "Failed", "Cancelled")
CANCEL_SECONDS = 120
GIGABYTE = 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stack", default="pyrite", help="name of the stack and the cluster")
    parser.add_argument("--region", help="default: the region of your AWS configuration")
    parser.add_argument(
        "--delete-data", action="store_true", help="also delete the bucket with all results, and the logs"
    )
    arguments = parser.parse_args()
    require("aws", "helm", "kubectl")
    region, owner = select_region(arguments.region), account()
    stack = Stack(arguments.stack).settled()
    bucket, prices = f"{stack.name}-{owner}-{region}", Prices()
    data = f"deletes the bucket {bucket} WITH ALL RESULTS" if arguments.delete_data else f"keeps the bucket {bucket}"
    if stack.status:
        idle = prices.idle(stack.parameters.get("CpuInstanceType", "m6i.xlarge"))
        confirm(
            f"This cancels all runs, deletes the cluster and the stack {stack.name} in account {owner}, {region}, with "
            f"its images,\nand {data}. 15 minutes. It saves ${idle:.2f} an hour (${idle * 24:.2f} a day), and "
            f"${prices.gpu():.2f} an hour more if the GPU node runs\n({prices.source})."
        )
        if cluster_exists(stack.name):
            try:
                uninstall(stack.name, stack.parameters.get("Namespace", "pyrite"))
            except SystemExit:
                print(
                    "The cluster still runs and costs money. If it cannot be reached, delete it without cancelling its "
                    f"runs:\naws cloudformation delete-stack --stack-name {stack.name} --region {region}",
                    file=sys.stderr,
                )
                raise
        stack.delete()
    else:
        print(
            f"There is no stack {stack.name} in account {owner}, {region}. If the cluster is in another region, give "
            "it: ARGS='--region us-west-2'."
        )
        if arguments.delete_data:
            confirm(f"This {data}.")
    if arguments.delete_data:
        delete_bucket(bucket)
        for group in log_groups(stack.name):
            run("aws", "logs", "delete-log-group", "--log-group-name", group["logGroupName"])
    print(remaining(stack.name, bucket, prices))


def uninstall(cluster: str, namespace: str) -> None:
    """Cancel the runs and uninstall the releases, so that no pod or volume outlives its node."""
    use_cluster(cluster)
    kubectl = ("kubectl", "--context", cluster, "--namespace", namespace)
    deadline = time.monotonic() + CANCEL_SECONDS
    while (running := running_runs(kubectl)) and time.monotonic() < deadline:
        for name, cancelled in running.items():
            if not cancelled:
                run(*kubectl, "patch", "trainingrun", name, "--type=merge", "--patch", '{"spec":{"cancel":true}}')
        time.sleep(POLL_SECONDS)
    if running:
        print(f"{', '.join(running)}: not cancelled after {CANCEL_SECONDS} s; the cluster is deleted anyway")
    for release, where in (("pyrite", namespace), ("cluster-autoscaler", "kube-system")):
        run("helm", "uninstall", release, "--namespace", where, "--kube-context", cluster, "--wait", allow="not found")


def running_runs(kubectl: tuple[str, ...]) -> dict[str, bool]:
    """The runs that have not ended, and whether they are being cancelled."""
    listed = run(*kubectl, "get", "trainingruns", "--output", "json", allow="the server doesn't have", quiet=True)
    runs = json.loads(listed)["items"] if listed else []
    return {
        each["metadata"]["name"]: bool(each["spec"].get("cancel"))
        for each in runs
        if each.get("status", {}).get("phase") not in ENDED
    }


def delete_bucket(bucket: str) -> None:
    """Delete the bucket with all versions of all objects."""
    if not bucket_exists(bucket):
        return
    while versions := object_versions(bucket, limit=True):
        with tempfile.TemporaryDirectory() as folder:
            batch = Path(folder) / "delete.json"
            objects = [{"Key": each["Key"], "VersionId": each["VersionId"]} for each in versions]
            batch.write_text(json.dumps({"Objects": objects, "Quiet": True}))
            reply = query("s3api", "delete-objects", "--bucket", bucket, "--delete", f"file://{batch}") or {}
        if errors := reply.get("Errors"):
            stop(f"{bucket}: objects could not be deleted: {errors[0]}. Fix the cause and run the same command again.")
    run("aws", "s3api", "delete-bucket", "--bucket", bucket)


def object_versions(bucket: str, *, limit: bool = False) -> list[dict[str, Any]]:
    """All versions and delete markers; with ``limit``, as many as one request can delete."""
    page = query("s3api", "list-object-versions", "--bucket", bucket, *(("--max-items", "1000") if limit else ())) or {}
    return [*page.get("Versions", []), *page.get("DeleteMarkers", [])][: 1000 if limit else None]


def log_groups(cluster: str) -> list[dict[str, Any]]:
    found = query("logs", "describe-log-groups", "--log-group-name-prefix", f"/aws/eks/{cluster}/")
    return list(found["logGroups"])


def remaining(cluster: str, bucket: str, prices: Prices) -> str:
    """What still exists, with its cost and the command that deletes it."""
    lines = []
    instances = query("ec2", "describe-instances", "--filters", f"Name=tag:eks:cluster-name,Values={cluster}")
    for reservation in instances["Reservations"]:
        for each in reservation["Instances"]:
            if each["State"]["Name"] not in ("terminated", "shutting-down"):
                delete = f"aws ec2 terminate-instances --instance-ids {each['InstanceId']}"
                lines.append(f"  {each['InstanceType']} {each['InstanceId']}: EXPENSIVE, terminate it: {delete}")
    volumes = query("ec2", "describe-volumes", "--filters", f"Name=tag:kubernetes.io/cluster/{cluster},Values=owned")
    for each in volumes["Volumes"]:
        cost = prices.month("gp3", each["Size"])
        delete = f"aws ec2 delete-volume --volume-id {each['VolumeId']}"
        lines.append(f"  volume {each['VolumeId']}, {each['Size']} GiB: ${cost:.2f} a month; {delete}")
    for each in log_groups(cluster):
        size = each.get("storedBytes", 0) / GIGABYTE
        delete = f"aws logs delete-log-group --log-group-name {each['logGroupName']}"
        lines.append(
            f"  log group {each['logGroupName']}, {size:.2f} GB: ${prices.month('logs', size):.2f} a month; {delete}"
        )
    if bucket_exists(bucket):
        size = sum(each.get("Size", 0) for each in object_versions(bucket)) / GIGABYTE
        cost = prices.month("s3", size)
        lines.append(f"  bucket {bucket}, {size:.2f} GB: ${cost:.2f} a month; make eks-down ARGS=--delete-data")
    if not lines:
        return "Nothing remains."
    return "\n".join([f"What remains ({prices.source}):", *lines])


if __name__ == "__main__":
    main()
