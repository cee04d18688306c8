"""Checks of a cluster through the Kubernetes API: the release, GPUs, volumes, and a Job with a worker's access."""

import json
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import yaml
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from pyrite.controller.api import IF_UNREACHABLE, error_message
from pyrite.controller.client import load_context
from pyrite.controller.manifests import GPU, merge_patch
from pyrite.doctor import Check
from pyrite.errors import PyriteError

_TIMEOUT = 10
#: Seconds for the Job: an image of several GB may have to be pulled, and a CPU node started.
JOB_SECONDS = 900
_POLL_SECONDS = 2.0
_EKS = re.compile(r"arn:aws[-a-z]*:eks:(?P<region>[a-z0-9-]+):\d+:cluster/(?P<name>.+)")
_RELEASE = "app.kubernetes.io/name=pyrite"

#: Starts of messages of containers that will not start without a change.
_HOPELESS = ("Back-off pulling image", "InvalidImageName", "secret ", "exec ")

Object = dict[str, Any]


class Release(NamedTuple):
    """What the chart installed in a namespace."""

    settings: Object  # the controller's settings.yaml
    controller: Object  # a Deployment
    server: Object | None  # the vLLM server's StatefulSet

    @property
    def images(self) -> list[str]:
        """Pyrite's own images."""
        worker = self.settings["worker"]
        stages = (stage.get("image") for stage in worker.get("stages", {}).values())
        controller = self.controller["spec"]["template"]["spec"]["containers"][0]["image"]
        return sorted({controller, worker["image"], *filter(None, stages)})

    @property
    def accounts(self) -> list[str]:
        """The service accounts that need access to the store."""
        controller = self.controller["spec"]["template"]["spec"]["serviceAccountName"]
        return [controller, self.settings["worker"]["pod"]["serviceAccountName"]]

    @property
    def gpus(self) -> int:
        """The number of GPUs that the servers, or else a stage, claim at a time."""
        stages = self.settings["worker"].get("stages", {}).values()
        claimed = [_gpus(stage.get("resources") or {}) for stage in stages]
        if self.server:
            containers = self.server["spec"]["template"]["spec"]["containers"]
            claimed.append(self.settings["server"]["replicas"] * sum(_gpus(each["resources"]) for each in containers))
        return max(claimed, default=0)

    @property
    def claims(self) -> list[Object]:
        """The volume claims of the vLLM server."""
        return list(self.server["spec"].get("volumeClaimTemplates", [])) if self.server else []


class Answers(NamedTuple):
    """The replies of the Kubernetes API."""

    release: Release | None
    nodes: Sequence[Object]
    daemon_sets: Sequence[Object]
    storage_classes: Sequence[Object]


def checks(answers: Answers, namespace: str, amis: Sequence[str]) -> list[Check]:
    """All checks but the Job. ``amis``: types of the GPU node groups' images, on EKS."""
    release = answers.release
    if release is None:
        fix = "Install it (docs/cluster.md), or name its namespace with -n."
        return [Check("release", "fail", f"Pyrite is not installed in namespace {namespace}", fix)]
    found = [check_controller(release.controller), *map(check_registry, release.images)]
    if release.gpus:
        found.append(check_device_plugin(answers.nodes, answers.daemon_sets, amis))
    else:
        found.append(Check("device plugin", "skip", "no stage or server uses GPUs"))
    return [*(each for each in found if each), check_storage_class(release.claims, answers.storage_classes)]


def _gpus(resources: Object) -> int:
    return int(resources.get("limits", {}).get(GPU, 0))


def check_controller(deployment: Object) -> Check:
    """The controller runs."""
    if not deployment["spec"].get("replicas", 1):
        fix = "Set it: helm upgrade pyrite charts/pyrite --reset-then-reuse-values --set store.url=s3://BUCKET/pyrite"
        return Check("release", "fail", "store.url is not set, so the controller has 0 replicas", fix)
    if not deployment.get("status", {}).get("readyReplicas"):
        fix = f"kubectl describe pods -l {_RELEASE},app.kubernetes.io/component=controller"
        return Check("release", "fail", "the controller is not ready", fix)
    return Check("release", "ok", "the controller is ready")


def check_registry(image: str) -> Check | None:
    """An image without a registry would be looked up on Docker Hub; None if it has one."""
    if "/" in image:
        return None
    fix = "On EKS, push it and set its repository. On one node, load it into the node (`scripts/kube.sh load`)."
    return Check(f"image {image}", "warn", "it names no registry", fix)


def check_device_plugin(nodes: Sequence[Object], daemon_sets: Sequence[Object], amis: Sequence[str]) -> Check:
    """GPUs can be requested: nodes offer them, or will when they start."""
    name = "device plugin"
    gpus = {node["metadata"]["name"]: int(node["status"].get("allocatable", {}).get(GPU, 0)) for node in nodes}
    if count := sum(gpus.values()):
        return Check(name, "ok", f"GPUs: {count}; nodes with GPUs: {sum(number > 0 for number in gpus.values())}")
    if any("BOTTLEROCKET" in ami for ami in amis):
        return Check(name, "ok", "part of Bottlerocket; no GPU node runs now")
    plugins = [each["metadata"]["name"] for each in daemon_sets if "nvidia" in each["metadata"]["name"]]
    if plugins:
        return Check(name, "ok", f"DaemonSet {plugins[0]}; no GPU node runs now")
    fix = (
        "Use Bottlerocket's NVIDIA image, which includes it (infra/eks.yaml), or: helm upgrade --install nvdp "
        "nvidia-device-plugin --repo https://nvidia.github.io/k8s-device-plugin --namespace kube-system"
    )
    return Check(name, "fail", "no node offers nvidia.com/gpu, and there is no plugin", fix)


def check_storage_class(claims: Sequence[Object], classes: Sequence[Object]) -> Check:
    """The storage class of the server's volumes exists."""
    name = "storage class"
    if not claims:
        return Check(name, "skip", "no pod has a volume claim")
    known = [each["metadata"]["name"] for each in classes]
    default = "storageclass.kubernetes.io/is-default-class"
    defaults = [
        each["metadata"]["name"] for each in classes if each["metadata"].get("annotations", {}).get(default) == "true"
    ]
    wanted = claims[0]["spec"].get("storageClassName")
    if wanted in known or (not wanted and defaults):
        return Check(name, "ok", wanted or f"{defaults[0]}, the default")
    found = f"{wanted or 'a default'} does not exist; the cluster has {', '.join(known) or 'none'}"
    fix = "Set server.persistence.enabled=false, or install the EBS CSI driver and create the class."
    return Check(name, "fail", found, fix)


def doctor_job(release: Release, namespace: str, name: str) -> Object:
    """A Job that runs `pyrite doctor` as a judge pod does: its image, service account, environment and network."""
    worker = release.settings["worker"]
    labels = {
        "app.kubernetes.io/name": "pyrite",
        "app.kubernetes.io/instance": release.settings["instance"],
        "app.kubernetes.io/component": "worker",
        "pyrite.dev/stage": "judge",
    }
    servers = [] if release.server else release.settings["judge"].get("urls", [])
    env = [*worker.get("env", []), {"name": "PYRITE_CACHE", "value": "/cache"}]
    if secret := release.settings["judge"].get("keySecret"):
        reference = {"secretKeyRef": {"name": secret, "key": "api-key"}}
        env.append({"name": "PYRITE_JUDGE_API_KEY", "valueFrom": reference})
    pod: Object = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": "worker",
                "image": worker["image"],
                "imagePullPolicy": worker.get("imagePullPolicy", "IfNotPresent"),
                # Network policies apply to a new pod with a delay; until then everything may be allowed.
                "command": ["sh", "-c", 'sleep 3 && exec pyrite doctor "$@"', "sh"],
                "args": [word for url in servers for word in ("--judge-url", url)],
                "env": env,
                "envFrom": worker.get("envFrom", []),
                "resources": {
                    "requests": {"cpu": "250m", "memory": "512Mi", "ephemeral-storage": "256Mi"},
                    "limits": {"cpu": "1", "memory": "2Gi", "ephemeral-storage": "2Gi"},
                },
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [{"name": "cache", "mountPath": "/cache"}, {"name": "tmp", "mountPath": "/tmp"}],
            }
        ],
        "volumes": [{"name": "cache", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}],
    }
    for patch in (worker["pod"], worker.get("stages", {}).get("judge", {}).get("pod", {})):
        pod = merge_patch(pod, patch)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": JOB_SECONDS,
            "ttlSecondsAfterFinished": 600,
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def check_job(job: Object, log: str, pods: Sequence[Object]) -> Check:
    """The result of the Job: the lines of its table that failed, or why it did not run."""
    name = "from a worker pod"
    status = job.get("status", {})
    if status.get("succeeded"):
        return Check(name, "ok", "the store is readable and writable with the pod's own role")
    failed = [line.split(maxsplit=1)[-1] for line in log.splitlines() if line.lstrip().startswith(("FAIL", "error"))]
    if failed:
        fix = (
            "In the pod, credentials come from a Pod Identity association or IRSA role (EKS), or else from the Secret "
            "store.existingSecret. Check the network policies too."
        )
        return Check(name, "fail", "; ".join(failed), fix)
    waiting = [
        state["waiting"].get("message") or state["waiting"].get("reason", "")
        for pod in pods
        for state in (each.get("state", {}) for each in pod.get("status", {}).get("containerStatuses", []))
        if "waiting" in state
    ]
    conditions = [each for pod in pods for each in pod.get("status", {}).get("conditions", [])]
    unscheduled = [each.get("message", "") for each in conditions if each.get("reason") == "Unschedulable"]
    reason = next(filter(None, [*waiting, *unscheduled, log.strip()[-300:]]), "it did not start")
    return Check(name, "fail", reason, f"kubectl describe job {job['metadata']['name']}")


class Api:
    """The Kubernetes API with the user's kubeconfig, for one namespace.

    Raises:
        UserError: no cluster is configured.
    """

    def __init__(self, namespace: str | None):
        context = load_context("run `make eks-up`")
        self.namespace: str = namespace or context.get("namespace") or "default"
        self.cluster: str = context["cluster"]
        self._core, self._apps = client.CoreV1Api(), client.AppsV1Api()
        self._batch, self._storage = client.BatchV1Api(), client.StorageV1Api()

    @property
    def eks(self) -> Mapping[str, str] | None:
        """Region and name of the EKS cluster; None on other clusters."""
        match = _EKS.fullmatch(self.cluster)
        return match.groupdict() if match else None

    def read(self) -> Answers:
        """Read everything that ``checks`` needs.

        Raises:
            PyriteError: the API server does not respond, or refuses.
        """
        try:
            return Answers(
                self._release(),
                self._items(self._core.list_node),
                self._items(self._apps.list_daemon_set_for_all_namespaces),
                self._items(self._storage.list_storage_class),
            )
        except (ApiException, HTTPError) as error:
            advice = f". {IF_UNREACHABLE}" if isinstance(error, HTTPError) else ""
            raise PyriteError(f"the Kubernetes API of {self.cluster}: {error_message(error)}{advice}") from None

    def run_job(self, release: Release) -> Check:
        """Run the doctor's Job, and delete it."""
        name = f"pyrite-doctor-{uuid.uuid4().hex[:8]}"
        try:
            self._batch.create_namespaced_job(
                self.namespace, doctor_job(release, self.namespace, name), _request_timeout=_TIMEOUT
            )
        except (ApiException, HTTPError) as error:
            fix = "Ask for the permission to create Jobs, or run `helm test pyrite`."
            return Check("from a worker pod", "fail", f"cannot create a Job: {error_message(error)}", fix)
        try:
            return self._result(name)
        except (ApiException, HTTPError) as error:
            return Check("from a worker pod", "warn", f"not checked: {error_message(error)}", "Run it again.")
        finally:
            with suppress(ApiException, HTTPError):  # it is deleted ten minutes after its end
                self._batch.delete_namespaced_job(
                    name, self.namespace, propagation_policy="Background", _request_timeout=_TIMEOUT
                )

    def _result(self, name: str) -> Check:
        deadline = time.monotonic() + JOB_SECONDS
        while True:
            read = self._batch.read_namespaced_job
            job = json.loads(read(name, self.namespace, _preload_content=False, _request_timeout=_TIMEOUT).data)
            status = job.get("status", {})
            ended = status.get("succeeded") or status.get("failed") or time.monotonic() > deadline
            pods = self._items(
                self._core.list_namespaced_pod, self.namespace, label_selector=f"batch.kubernetes.io/job-name={name}"
            )
            if ended or check_job(job, "", pods).found.startswith(_HOPELESS):
                return check_job(job, self._log(pods), pods)
            time.sleep(_POLL_SECONDS)

    def _log(self, pods: Sequence[Object]) -> str:
        for pod in pods:
            try:
                log = self._core.read_namespaced_pod_log(
                    pod["metadata"]["name"], self.namespace, _preload_content=False, _request_timeout=_TIMEOUT
                )
                return str(log.data.decode(errors="replace"))
            except ApiException:
                continue  # the container has not started
        return ""

    def _release(self) -> Release | None:
        maps = self._items(self._core.list_namespaced_config_map, self.namespace, label_selector=_RELEASE)
        texts = [each["data"]["settings.yaml"] for each in maps if "settings.yaml" in each.get("data", {})]
        deployments = self._items(
            self._apps.list_namespaced_deployment,
            self.namespace,
            label_selector=f"{_RELEASE},app.kubernetes.io/component=controller",
        )
        if not texts or not deployments:
            return None
        settings = yaml.safe_load(texts[0])
        name = (settings.get("server") or {}).get("statefulSet")
        sets = self._items(self._apps.list_namespaced_stateful_set, self.namespace, label_selector=_RELEASE)
        server = next((each for each in sets if each["metadata"]["name"] == name), None)
        return Release(settings, deployments[0], server)

    @staticmethod
    def _items(method: Any, *arguments: str, **selectors: str) -> list[Object]:
        """A list as plain dictionaries, not as the client's models."""
        reply = method(*arguments, _preload_content=False, _request_timeout=_TIMEOUT, **selectors)
        items: list[Object] = json.loads(reply.data)["items"]
        return items
