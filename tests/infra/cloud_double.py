"""A double of aws, helm, kubectl and docker: it pretends that AWS and the cluster do what the commands say.

Installed under each of these names. Its world is the JSON file $WORLD. It kills the program that called it at the
change number $KILL_AT, before the change or, with $KILL_WHEN=after, after it. A deployment and a deletion whose caller
is killed are still in progress; they end after the stack's status was requested twice. A Helm release whose upgrade is
killed stays pending.
"""

import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

FILE = Path(os.environ["WORLD"])
BUCKET = "pyrite-123456789012-us-east-1"
REGISTRY = "123456789012.dkr.ecr.us-east-1.amazonaws.com/pyrite"
OUTPUTS = {
    "Registry": REGISTRY,
    "HelmFlags": "--namespace pyrite --set store.region=us-east-1",
    "AutoscalerFlags": "--namespace kube-system --set awsRegion=us-east-1",
}


class Double:
    def __init__(self, words: list[str]):
        self.words = words
        self.world: dict[str, Any] = json.loads(FILE.read_text())
        self.world["log"].append(words)
        FILE.write_text(json.dumps(self.world))

    def option(self, name: str) -> str:
        return self.words[self.words.index(name) + 1]

    def changes(self, **to: Any) -> None:
        """Apply a change, unless the caller dies first."""
        self.world["changes"] += 1
        at = self.world["changes"] == int(os.environ.get("KILL_AT", "0"))
        after = os.environ.get("KILL_WHEN") == "after"
        if not at or after:
            if at and to.get("stack") in ("CREATE_COMPLETE", None) and "stack" in to:
                to["next_stack"] = to["stack"]
                to["stack"] = "DELETE_IN_PROGRESS" if to["stack"] is None else "CREATE_IN_PROGRESS"
            self.world |= to
        FILE.write_text(json.dumps(self.world))
        if at:
            os.kill(os.getppid(), signal.SIGKILL)
            sys.exit(1)

    def say(self, answer: Any) -> None:
        print(json.dumps(answer))

    def fail(self, message: str) -> None:
        print(message, file=sys.stderr)
        sys.exit(254)

    def answer(self) -> None:
        world, text = self.world, " ".join(self.words)
        match self.words:
            case ["aws", "sts", *_]:
                self.say({"Account": "123456789012"})
            case ["aws", "cloudformation", "describe-stacks", *_]:
                if not world["stack"]:
                    self.fail("An error occurred (ValidationError): Stack with id pyrite does not exist")
                parameters = [{"ParameterKey": k, "ParameterValue": v} for k, v in world["parameters"].items()]
                outputs = [{"OutputKey": key, "OutputValue": value} for key, value in OUTPUTS.items()]
                stack = {"StackStatus": world["stack"], "Parameters": parameters, "Outputs": outputs}
                self.say({"Stacks": [stack]})
                if world["stack"].endswith("_IN_PROGRESS"):
                    if world.pop("requested", False):
                        world["stack"] = world.pop("next_stack")
                    else:
                        world["requested"] = True
                    FILE.write_text(json.dumps(world))
            case ["aws", "cloudformation", "deploy", *_]:
                assert world["stack"] in (None, "CREATE_COMPLETE"), f"cannot deploy a stack that is {world['stack']}"
                given = dict(re.findall(r"(\w+)=(\S+)", text))
                if not world["stack"]:
                    assert {"GpuZone", "OtherZone", "BudgetEmail"} <= given.keys()
                    assert given["GpuZone"] != given["OtherZone"], "EKS needs two zones"
                    assert (given["CreateBucket"] == "true") == (BUCKET not in world["buckets"])
                buckets = sorted({*world["buckets"], BUCKET})
                parameters = world["parameters"] | given
                self.changes(stack="CREATE_COMPLETE", parameters=parameters, buckets=buckets, cluster=True)
            case ["aws", "cloudformation", "delete-stack", *_]:
                assert world["stack"] != "CREATE_COMPLETE" or not world["releases"], "uninstall the releases first"
                # The next stack has none of this one's parameters; the bucket is retained.
                self.changes(stack=None, parameters={}, cluster=False, images=[])
            case ["aws", "cloudformation", "describe-stack-events", *_]:
                self.say({"StackEvents": []})
            case ["aws", "s3api", "head-bucket", *_]:
                if self.option("--bucket") not in world["buckets"]:
                    self.fail("An error occurred (404) when calling the HeadBucket operation: Not Found")
            case ["aws", "s3api", "list-object-versions", *_]:
                if world["objects"]:
                    self.say({"Versions": [{"Key": key, "VersionId": "1", "Size": 10**9} for key in world["objects"]]})
            case ["aws", "s3api", "delete-objects", *_]:
                batch = json.loads(Path(self.option("--delete").removeprefix("file://")).read_text())
                gone = {each["Key"] for each in batch["Objects"]}
                if world["locked"]:  # the exit code is 0
                    self.say({"Errors": [{"Key": "model", "Code": "AccessDenied"}]})
                else:
                    self.changes(objects=[key for key in world["objects"] if key not in gone])
            case ["aws", "s3api", "delete-bucket", *_]:
                assert not world["objects"], "the bucket is not empty"
                self.changes(buckets=[])
            case ["aws", "logs", "create-log-group", *_]:
                if self.option("--log-group-name") in world["logs"]:
                    self.fail("An error occurred (ResourceAlreadyExistsException)")
                self.changes(logs=[self.option("--log-group-name")])
            case ["aws", "logs", "describe-log-groups", *_]:
                self.say({"logGroups": [{"logGroupName": name, "storedBytes": 2 * 10**9} for name in world["logs"]]})
            case ["aws", "logs", "delete-log-group", *_]:
                self.changes(logs=[])
            case ["aws", "ec2", "describe-instance-type-offerings", *_]:
                self.say(
                    {
                        "InstanceTypeOfferings": [
                            {"Location": zone} for zone in ("us-east-1e", "us-east-1d", "us-east-1c")
                        ]
                    }
                )
            case ["aws", "ec2", "describe-availability-zones", *_]:
                zones = {"us-east-1c": "use1-az4", "us-east-1d": "use1-az6", "us-east-1e": "use1-az3"}
                self.say({"AvailabilityZones": [{"ZoneName": name, "ZoneId": id_} for name, id_ in zones.items()]})
            case ["aws", "ec2", "describe-instances", *_]:
                self.say({"Reservations": []})
            case ["aws", "ec2", "describe-volumes", *_]:
                self.say({"Volumes": [{"VolumeId": "vol-1", "Size": 40}] if world["volume"] else []})
            case ["aws", "service-quotas", "get-service-quota", *_] if world["quota"] is None:
                self.fail("An error occurred (NoSuchResourceException)")
            case ["aws", "service-quotas", "get-aws-default-service-quota", *_]:
                self.say({"Quota": {"Value": 0.0}})
            case ["aws", "service-quotas", *_]:
                self.say({"Quota": {"Value": world["quota"]}})
            case ["aws", "eks", "describe-cluster", *_]:
                if not world["cluster"]:
                    self.fail("An error occurred (ResourceNotFoundException)")
                self.say({"cluster": {"status": "ACTIVE"}})
            case ["aws", "ecr", "describe-images", *_]:
                image = f"{self.option('--repository-name')}:{self.option('--image-ids').removeprefix('imageTag=')}"
                if image not in world["images"]:
                    self.fail("An error occurred (ImageNotFoundException)")
                self.say({"imageDetails": [{}]})
            case ["docker", "image", "inspect", *_]:
                print("linux/amd64")
            case ["docker", "push", name]:
                self.changes(images=sorted({*world["images"], name.partition("/")[2]}))
            case ["helm", "upgrade", *_]:
                release = "cluster-autoscaler" if "cluster-autoscaler" in self.words else "pyrite"
                if release in world["pending"]:
                    self.fail("Error: UPGRADE FAILED: another operation (install/upgrade/rollback) is in progress")
                status = "pending-upgrade" if release in world["releases"] else "pending-install"
                pending = world["pending"]
                self.changes(pending=pending | {release: status}, releases=sorted({*world["releases"], release}))
                self.world["pending"] = pending
                FILE.write_text(json.dumps(self.world))
            case ["helm", "status", release, *_]:
                if release not in world["releases"]:
                    self.fail("Error: release: not found")
                self.say({"info": {"status": world["pending"].get(release, "deployed")}})
            case ["helm", "rollback", release, *_]:
                assert world["pending"].pop(release) == "pending-upgrade", "there is no earlier revision"
                self.changes()
            case ["helm", "uninstall", release, *_]:
                assert not [run for run, phase in world["runs"].items() if phase != "Cancelled"], (
                    "runs are not cancelled"
                )
                if release not in world["releases"]:
                    self.fail(f"Error: uninstall: Release not loaded: {release}: release: not found")
                world["pending"].pop(release, None)
                self.changes(releases=[each for each in world["releases"] if each != release])
            case ["kubectl", *_] if world["unreachable"]:
                self.fail("Unable to connect to the server: dial tcp: i/o timeout")
            case ["kubectl", *_] if "patch" in self.words:
                assert '{"spec":{"cancel":true}}' in self.words
                self.changes(runs=world["runs"] | {self.words[self.words.index("patch") + 2]: "Cancelled"})
            case ["kubectl", *_] if "get" in self.words:
                items = [
                    {"metadata": {"name": name}, "spec": {}, "status": {"phase": phase}}
                    for name, phase in world["runs"].items()
                ]
                self.say({"items": items})
            case ["aws", "eks", "update-kubeconfig", *_] | ["aws", "logs", "put-retention-policy", *_]:
                self.changes()
            case ["aws", "ecr", "get-login-password", *_] | ["docker", "info" | "buildx" | "images" | "login", *_]:
                pass
            case _:
                self.fail(f"the double does not know: {text}")


if __name__ == "__main__":
    Double([Path(sys.argv[0]).name, *sys.argv[1:]]).answer()
