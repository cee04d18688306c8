"""Shared by `make eks-up` and `make eks-down`: running commands, the stack's state, prices, and the question."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import yaml

ROOT = Path(__file__).parents[1]
TEMPLATE = ROOT / "infra" / "eks.yaml"
HOURS_PER_MONTH = 730
POLL_SECONDS = float(os.environ.get("POLL_SECONDS", "10"))  # tests set it


def stop(message: str) -> NoReturn:
    """End with exit code 2: the user can fix it."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def require(*programs: str) -> None:
    """Stop if a program is missing."""
    missing = [program for program in programs if not shutil.which(program)]
    if missing:
        stop(f"{', '.join(missing)}: not installed. Install it and run the same command again.")


def run(*command: str | Path, allow: str = "", quiet: bool = False) -> str | None:
    """Run a command and return its output; None if it fails with an error that contains ``allow``.

    Its output is also shown, unless ``quiet``. Any other failure ends the script; it can be run again.
    """
    words = [str(word) for word in command]
    if not quiet:
        print(f"+ {' '.join(words)}", flush=True)
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE if allow else None, text=True)
    if not quiet and done.stdout:
        print(done.stdout, end="", flush=True)
    if done.returncode == 0:
        return done.stdout
    if allow and allow in done.stderr:
        return None
    print(done.stderr or "", end="", file=sys.stderr)
    stop(f"`{' '.join(words)}` failed; see its message above. Fix the cause and run the same command again.")


def query(*command: str, allow: str = "") -> Any:
    """The JSON output of an `aws` command; None if it fails with ``allow``, or prints nothing."""
    output = run("aws", *command, "--output", "json", allow=allow, quiet=True)
    return json.loads(output) if output else None


def select_region(region: str | None) -> str:
    """Use ``region``, or else the region of your AWS configuration, in all `aws` commands."""
    for source in (region, os.environ.get("AWS_REGION"), os.environ.get("AWS_DEFAULT_REGION")):
        if source:
            break
    else:
        done = subprocess.run(["aws", "configure", "get", "region"], stdout=subprocess.PIPE, text=True)
        source = done.stdout.strip() or stop("no AWS region is set. Set AWS_REGION=us-east-1, for example.")
    os.environ.update(AWS_REGION=source, AWS_DEFAULT_REGION=source, AWS_PAGER="")
    return source


def account() -> str:
    """The account of the AWS credentials."""
    return str(query("sts", "get-caller-identity")["Account"])


class Stack:
    """The CloudFormation stack ``name``, as it is now."""

    def __init__(self, name: str):
        self.name = name
        found = query("cloudformation", "describe-stacks", "--stack-name", name, allow="does not exist")
        self._stack = found["Stacks"][0] if found else {}

    @property
    def status(self) -> str:
        """Its status; empty if it does not exist."""
        return str(self._stack.get("StackStatus", ""))

    @property
    def parameters(self) -> dict[str, str]:
        return {each["ParameterKey"]: each["ParameterValue"] for each in self._stack.get("Parameters", [])}

    @property
    def outputs(self) -> dict[str, str]:
        return {each["OutputKey"]: each["OutputValue"] for each in self._stack.get("Outputs", [])}

    def settled(self) -> "Stack":
        """The stack after the operation that is still in progress, such as that of a run that was killed."""
        stack = self
        while stack.status.endswith("_IN_PROGRESS") and stack.status != "REVIEW_IN_PROGRESS":
            print(f"waiting: the stack is {stack.status}", flush=True)
            time.sleep(POLL_SECONDS)
            stack = Stack(self.name)
        return stack

    def delete(self) -> None:
        """Delete the stack, and stop if something prevents it."""
        run("aws", "cloudformation", "delete-stack", "--stack-name", self.name)
        left = Stack(self.name).settled()
        if left.status:
            self.print_failures()
            stop(
                f"the stack {self.name} is {left.status}. Delete what the messages above name (often a network "
                "interface or security group that a pod left behind), and run the same command again."
            )

    def print_failures(self) -> None:
        """Print why resources failed."""
        events = query("cloudformation", "describe-stack-events", "--stack-name", self.name, allow="does not exist")
        for event in reversed((events or {"StackEvents": []})["StackEvents"]):
            if event["ResourceStatus"].endswith("FAILED"):
                print(f"{event['LogicalResourceId']}: {event.get('ResourceStatusReason', '')}", file=sys.stderr)


def bucket_exists(bucket: str) -> bool:
    return run("aws", "s3api", "head-bucket", "--bucket", bucket, allow="404", quiet=True) is not None


def cluster_exists(name: str) -> bool:
    return bool(query("eks", "describe-cluster", "--name", name, allow="ResourceNotFoundException"))


def use_cluster(name: str) -> None:
    """Add the cluster to your kubeconfig, as the context ``name``."""
    run("aws", "eks", "update-kubeconfig", "--name", name, "--alias", name)


class Prices:
    """The prices in infra/prices.yaml, applied to the disks and nodes in the template."""

    def __init__(self) -> None:
        self._prices = yaml.safe_load((ROOT / "infra" / "prices.yaml").read_text())
        self.source = str(self._prices["source"])

    def month(self, kind: str, gigabytes: float) -> float:
        """Dollars per month for stored data: gp3, s3 or logs."""
        return float(self._prices["gigabyte_month"][kind]) * gigabytes

    def node(self, instance: str, gigabytes: int, iops: int = 3000, throughput: int = 125) -> float:
        """Dollars per hour for a node with its disk and public address."""
        hour, speed = self._prices["hour"], self._prices["gp3_month"]
        disk = self.month("gp3", gigabytes) + speed["iops"] * (iops - 3000) + speed["throughput"] * (throughput - 125)
        return float(hour[instance] + hour["public_address"] + disk / HOURS_PER_MONTH)

    def idle(self, cpu_instance: str) -> float:
        """Dollars per hour while nothing runs: the cluster and one CPU node."""
        return float(self._prices["hour"]["cluster"]) + self.node(cpu_instance, 100)

    def gpu(self) -> float:
        """Dollars per hour in addition for each GPU node that runs."""
        return self.node("g5.12xlarge", 200, iops=6000, throughput=500)


def confirm(plan: str) -> None:
    """Print the plan and ask; YES=1 answers yes. Exit code 0 if the answer is no."""
    print(plan, flush=True)
    if os.environ.get("YES") == "1":
        return
    try:
        answer = input("Continue? [y/N] ")
    except EOFError:
        stop("there is no terminal to ask on; YES=1 answers yes.")
    if answer.strip().lower() not in ("y", "yes"):
        print("Nothing was changed.")
        sys.exit(0)
