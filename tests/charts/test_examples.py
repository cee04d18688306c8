"""The values files in examples/: valid objects that fit values-eks.yaml and the controller's Jobs.

The schemas are our own subset: the fields that the examples use, as strict as in the CRDs. Helm checks them, as it
checks values. The examples were also checked once against the complete CRDs of Karpenter and Kueue of August 2026,
which we do not copy.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.utils.quantity import parse_quantity

from charts.test_rendering import read_settings
from charts.tools import CHART, INSTALLATIONS, Object, get_object, helm, kube_score, objects, rendered
from pyrite.controller import manifests
from pyrite.controller.resource import parse
from pyrite.plan import Step


def closed(required: str = "", **properties: Any) -> Object:
    """The schema of an object with these fields and no others."""
    return {"type": "object", "additionalProperties": False, "properties": properties, "required": required.split()}


def array(items: Object, **bounds: int) -> Object:
    return {"type": "array", "items": items, "minItems": 1, **bounds}


TEXT = {"type": "string", "minLength": 1}
LABELS = {"type": "object", "minProperties": 1, "additionalProperties": {"type": "string"}}
QUANTITY = {"type": ["integer", "string"], "pattern": "^[0-9]+(Ki|Mi|Gi|Ti|m)?$"}
EFFECT = {"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]}
TOLERATION = closed(key=TEXT, operator={"enum": ["Exists", "Equal"]}, value=TEXT, effect=EFFECT)
REQUIREMENT = closed("key operator", key=TEXT, operator={"enum": ["In", "NotIn", "Exists"]}, values=array(TEXT))
EBS = closed(
    "volumeSize",
    volumeSize={"type": "string", "pattern": "^[0-9]+(Gi|Ti)$"},
    volumeType={"enum": ["gp3", "io2"]},
    encrypted={"type": "boolean"},
    deleteOnTermination={"type": "boolean"},
)
NODE_CLASS = closed("group kind name", group=TEXT, kind=TEXT, name=TEXT)
QUOTA = closed("name nominalQuota", name=TEXT, nominalQuota=QUANTITY)
FLAVOR = closed("name resources", name=TEXT, resources=array(QUOTA))
SPECS = {
    ("karpenter.k8s.aws/v1", "EC2NodeClass"): closed(
        "amiSelectorTerms subnetSelectorTerms securityGroupSelectorTerms role",
        amiSelectorTerms=array(closed("alias", alias={"pattern": "^(al2023|bottlerocket)@.+$"}), maxItems=1),
        role=TEXT,
        subnetSelectorTerms=array(closed("tags", tags=LABELS)),
        securityGroupSelectorTerms=array(closed("tags", tags=LABELS)),
        instanceStorePolicy={"enum": ["RAID0"]},
        blockDeviceMappings=array(closed(deviceName=TEXT, ebs=EBS)),
        metadataOptions=closed(httpTokens={"enum": ["required"]}, httpPutResponseHopLimit={"minimum": 1}),
    ),
    ("karpenter.sh/v1", "NodePool"): closed(
        "template",
        template=closed(
            "spec",
            spec=closed(
                "nodeClassRef requirements",
                nodeClassRef=NODE_CLASS,
                requirements=array(REQUIREMENT),
                taints=array(closed("key effect", key=TEXT, value=TEXT, effect=EFFECT)),
                expireAfter={"pattern": "^([0-9]+(s|m|h))+$|^Never$"},
            ),
        ),
        limits={"type": "object", "additionalProperties": QUANTITY},
        disruption=closed(
            "consolidateAfter",
            consolidationPolicy={"enum": ["WhenEmpty", "WhenEmptyOrUnderutilized"]},
            consolidateAfter={"pattern": "^([0-9]+(s|m|h))+$|^Never$"},
        ),
    ),
    ("kueue.x-k8s.io/v1beta2", "ResourceFlavor"): closed(nodeLabels=LABELS, tolerations=array(TOLERATION)),
    ("kueue.x-k8s.io/v1beta2", "ClusterQueue"): closed(
        namespaceSelector=closed(matchLabels=LABELS),
        resourceGroups=array(closed("coveredResources flavors", coveredResources=array(TEXT), flavors=array(FLAVOR))),
    ),
    ("kueue.x-k8s.io/v1beta2", "LocalQueue"): closed("clusterQueue", clusterQueue=TEXT),
}


def example(name: str, *more: str) -> list[Object]:
    """The objects of values-eks.yaml with an example."""
    return objects(*INSTALLATIONS["eks"], "--values", str(CHART / "examples" / f"{name}.yaml"), *more)


def invalid(added: list[Object], folder: Path) -> str:
    """Helm's errors for the objects."""
    metadata = closed("name", name=TEXT, namespace={"const": "pyrite"})
    schemas = [
        closed("metadata", apiVersion=TEXT, kind=TEXT, metadata=metadata, spec=SPECS[kind(one)]) for one in added
    ]
    names = [f"{one['kind']}/{one['metadata']['name']}" for one in added]
    schema = closed(**dict(zip(names, schemas, strict=True)))
    folder.mkdir(parents=True)
    (folder / "Chart.yaml").write_text(yaml.safe_dump({"apiVersion": "v2", "name": "objects", "version": "1.0.0"}))
    (folder / "values.schema.json").write_text(json.dumps(schema))
    (folder / "values.yaml").write_text(json.dumps(dict(zip(names, added, strict=True))))
    return helm("template", "objects", str(folder)).stderr


def kind(one: Object) -> tuple[str, str]:
    return one["apiVersion"], one["kind"]


@pytest.mark.parametrize("path", sorted((CHART / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_is_valid(path: Path, tmp_path: Path) -> None:
    added = [one for one in example(path.stem) if kind(one) in SPECS]
    assert len(added) == len(yaml.safe_load(path.read_text())["extraObjects"]), "an object has no schema"
    assert invalid(added, tmp_path / "valid") == ""
    for one in added:
        misspelt = {**one, "spec": {**one.get("spec", {}), "nodeLabel": {}}}
        assert "nodeLabel" in invalid([misspelt], tmp_path / one["kind"] / one["metadata"]["name"])
    text = rendered(*INSTALLATIONS["eks"], "--values", str(path))
    assert {name: checks for name, checks in kube_score(text).items() if checks} == {}


def test_the_gpu_node_pool_fits_the_servers() -> None:
    resources = example("karpenter")
    pool, node_class = (get_object(resources, kind) for kind in ("NodePool", "EC2NodeClass"))
    template = pool["spec"]["template"]["spec"]
    assert template["nodeClassRef"]["name"] == node_class["metadata"]["name"]
    [types] = [one["values"] for one in template["requirements"] if one["key"] == "node.kubernetes.io/instance-type"]
    server = get_object(resources, "StatefulSet")["spec"]["template"]["spec"]
    assert server["nodeSelector"]["node.kubernetes.io/instance-type"] in types
    [taint] = template["taints"]
    assert {"operator": "Exists", **taint} in server["tolerations"]
    replicas = yaml.safe_load((CHART / "values-eks.yaml").read_text())["server"]["replicas"]
    gpus = server["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    assert int(pool["spec"]["limits"]["nvidia.com/gpu"]) == replicas * gpus
    for count, most in ((1, "4"), (5, "8"), (8, "8")):
        pool = get_object(example("karpenter", f"--set=server.replicas={count}"), "NodePool")
        assert pool["spec"]["limits"]["nvidia.com/gpu"] == most


def test_the_queue_admits_every_job(tmp_path: Path) -> None:
    """Kueue never admits a Job that requests a resource that is not covered, or more than a flavor's quota."""
    resources = example("kueue")
    queue, local = (get_object(resources, kind) for kind in ("ClusterQueue", "LocalQueue"))
    assert local["spec"]["clusterQueue"] == queue["metadata"]["name"]
    namespace = {"kubernetes.io/metadata.name": local["metadata"]["namespace"]}
    assert queue["spec"]["namespaceSelector"]["matchLabels"] == namespace
    [group] = queue["spec"]["resourceGroups"]
    kinds = {one["metadata"]["name"]: one.get("spec", {}) for one in resources if one["kind"] == "ResourceFlavor"}
    assert {flavor["name"] for flavor in group["flavors"]} == kinds.keys()
    quotas = {
        each["name"]: {one["name"]: parse_quantity(one["nominalQuota"]) for one in each["resources"]}
        for each in group["flavors"]
    }
    assert all(list(quota) == group["coveredResources"] for quota in quotas.values()), "Kueue requires the same order"
    metadata = {
        "name": "r",
        "uid": "u",
        "generation": 1,
        "resourceVersion": "1",
        "creationTimestamp": "2026-11-23T08:00:00Z",
    }
    spec = {"source": {"kind": "sample"}, "judge": {"shards": 8}}
    run, loaded = parse({"metadata": metadata, "spec": spec}), read_settings(resources, tmp_path)
    for stage in loaded.jobs:
        job = manifests.job(run, [Step(stage, 1, shard) for shard in range(8)], "key", loaded)["spec"]
        [worker] = job["template"]["spec"]["containers"]
        requests = {**worker["resources"]["limits"], **worker["resources"]["requests"]}
        needed = {name: parse_quantity(number) * job.get("parallelism", 1) for name, number in requests.items()}
        flavor = "pyrite-g5" if manifests.needs_gpu({"spec": job}) else "pyrite-cpu"
        pod, quota = job["template"]["spec"], quotas[flavor]
        assert kinds[flavor].get("nodeLabels", {}).items() <= pod["nodeSelector"].items(), stage
        assert kinds[flavor].get("tolerations") == pod.get("tolerations"), stage
        assert all(number <= quota.get(name, -1) for name, number in needed.items()), (stage, needed)
