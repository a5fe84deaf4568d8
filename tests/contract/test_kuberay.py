"""recipes/launch/kuberay.yaml against the RayJob fields of KubeRay 1.6, and its own promises.

The schema is written from KubeRay's API reference: the fields of RayJobSpec, RayClusterSpec and the group specs, and of
a pod what the file uses. Kubernetes drops unknown fields silently: here they fail.
"""

import copy
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from realad_verl.recipes_dir import list_recipes
from realad_verl.verl_ext.recipe.compose import compose_recipe

FILE = Path(__file__).resolve().parents[2] / "recipes" / "launch" / "kuberay.yaml"
STRING, WHOLE, YES_NO, ANY = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}, {}
TEXTS = {"type": "object", "additionalProperties": STRING}


def closed(required: str = "", **properties) -> dict:
    """An object with these fields and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def some(kind: dict) -> dict:
    return {"type": "array", "items": kind, "minItems": 1}


CONTAINER = closed(
    "name image",
    name=STRING,
    image=STRING,
    resources=closed(requests=TEXTS, limits=TEXTS),
    env=some(closed("name value", name=STRING, value=STRING)),
    envFrom=some(closed(secretRef=closed("name", name=STRING))),
    volumeMounts=some(closed("name mountPath", name=STRING, mountPath=STRING)),
)
VOLUME = closed(
    "name",
    name=STRING,
    persistentVolumeClaim=closed("claimName", claimName=STRING),
    emptyDir=closed(medium=STRING, sizeLimit=STRING),
)
POD = closed("spec", metadata=ANY, spec=closed("containers", containers=some(CONTAINER), volumes=some(VOLUME)))
HEAD = closed(
    "template rayStartParams",
    template=POD,
    rayStartParams=TEXTS,
    serviceType=STRING,
    headService=ANY,
    enableIngress=YES_NO,
    resources=TEXTS,
    labels=TEXTS,
)
WORKER = closed(
    "groupName template rayStartParams",
    groupName=STRING,
    replicas=WHOLE,
    minReplicas=WHOLE,
    maxReplicas=WHOLE,
    numOfHosts=WHOLE,
    idleTimeoutSeconds=WHOLE,
    suspend=YES_NO,
    scaleStrategy=ANY,
    rayStartParams=TEXTS,
    template=POD,
    resources=TEXTS,
    labels=TEXTS,
)
CLUSTER = closed(
    "headGroupSpec workerGroupSpecs",
    rayVersion=STRING,
    authOptions=closed("mode", mode={"enum": ["disabled", "token"]}, secretName=STRING, enableK8sTokenAuth=YES_NO),
    headGroupSpec=HEAD,
    workerGroupSpecs=some(WORKER),
    **dict.fromkeys(
        (
            "upgradeStrategy",
            "suspend",
            "managedBy",
            "autoscalerOptions",
            "headServiceAnnotations",
            "enableInTreeAutoscaling",
            "gcsFaultToleranceOptions",
            "networkPolicy",
            "tlsOptions",
        ),
        ANY,
    ),
)
SPEC = closed(
    "entrypoint rayClusterSpec",
    entrypoint=STRING,
    rayClusterSpec=CLUSTER,
    activeDeadlineSeconds={"type": "integer", "minimum": 1},
    preRunningDeadlineSeconds={"type": "integer", "minimum": 1},
    backoffLimit={"type": "integer", "minimum": 0},
    ttlSecondsAfterFinished={"type": "integer", "minimum": 0},
    shutdownAfterJobFinishes=YES_NO,
    suspend=YES_NO,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    runtimeEnvYAML=STRING,
    entrypointNumCpus={"type": "number"},
    entrypointNumGpus={"type": "number"},
    **dict.fromkeys(
        (
            "jobId",
            "metadata",
            "clusterSelector",
            "submitterConfig",
            "submitterPodTemplate",
            "managedBy",
            "deletionStrategy",
            "entrypointResources",
        ),
        ANY,
    ),
)
JOB = closed(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=closed("name", name={"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}),
    spec=SPEC,
)


@pytest.fixture()
def job() -> dict:
    return yaml.safe_load(FILE.read_text())


def test_fields_of_kuberay(job):
    jsonschema.validate(job, JOB)


@pytest.mark.parametrize("path", ["spec", "spec.rayClusterSpec", "spec.rayClusterSpec.headGroupSpec.template.spec"])
def test_the_schema_sees_a_mistyped_field(job, path):
    broken = copy.deepcopy(job)
    node = broken
    for part in path.split("."):
        node = node[part]
    node["preRuningDeadlineSeconds"] = 5
    with pytest.raises(jsonschema.ValidationError, match="preRuningDeadlineSeconds"):
        jsonschema.validate(broken, JOB)


def test_token_limits_and_counts(job):
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert spec["preRunningDeadlineSeconds"] <= 3600 and spec["shutdownAfterJobFinishes"] and spec["backoffLimit"] == 0
    recipe = re.search(r"realad train (\S+)", spec["entrypoint"])[1]
    assert recipe in list_recipes()
    trainer = compose_recipe(recipe).trainer
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"] == trainer.nnodes
    (container,) = workers["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == str(trainer.n_gpus_per_node)
    assert f"joined $RAY_ADDRESS {workers['replicas'] + 1} --limit" in spec["entrypoint"]


def test_mounts_have_volumes_and_no_secret_is_written_down(job):
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert container["resources"]["requests"] == container["resources"]["limits"]
            assert not any(re.search("KEY|TOKEN|SECRET", variable["name"]) for variable in container["env"])
