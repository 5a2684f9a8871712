"""The manifests: valid by Kubernetes' own schemas, and every name in them is one of ours."""

import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from support.web import client

from retouch.settings import Settings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".deploy" / "kubernetes"
MANIFESTS: dict[str, dict[str, Any]] = {
    each["kind"]: each
    for path in sorted(FOLDER.glob("*.yaml"))
    for each in yaml.load_all(path.read_text(encoding="utf-8"), yaml.CSafeLoader)
}
POD = MANIFESTS["Deployment"]["spec"]["template"]["spec"]
[CONTAINER] = POD["containers"]
OWN_KINDS = {"Deployment", "Service", "PersistentVolumeClaim"}


def closed(**properties: Any) -> dict[str, Any]:
    """A schema of an object with these properties at most."""
    return {"type": "object", "properties": properties, "additionalProperties": False}


TEXT, COUNT, ANY = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "object"}
# What the manifests use of the resources' definitions: prometheus-operator's
# monitoring.coreos.com_podmonitors.yaml and keda's keda.sh_scaledobjects.yaml.
CUSTOM = {
    "PodMonitor": closed(
        selector=closed(matchLabels=ANY),
        podMetricsEndpoints={
            "type": "array",
            "items": closed(
                port=TEXT,
                path=TEXT,
                interval={"type": "string", "pattern": "^[0-9]+s$"},
                authorization=closed(type=TEXT, credentials=closed(name=TEXT, key=TEXT)),
            ),
        },
    ),
    "ScaledObject": closed(
        scaleTargetRef=closed(name=TEXT),
        minReplicaCount=COUNT,
        maxReplicaCount=COUNT,
        pollingInterval=COUNT,
        advanced=closed(horizontalPodAutoscalerConfig=closed(behavior=closed(scaleDown=ANY))),
        triggers={
            "type": "array",
            "items": closed(
                type=TEXT, metadata=closed(serverAddress=TEXT, query=TEXT, threshold=TEXT)
            ),
        },
    ),
}


@pytest.mark.parametrize("kind", sorted(OWN_KINDS))
def test_a_manifest_is_valid_by_the_schema_of_kubernetes(kind: str) -> None:
    version = kubernetes_validate.latest_version()
    kubernetes_validate.validate(MANIFESTS[kind], version, strict=True)


@pytest.mark.parametrize("kind", sorted(CUSTOM))
def test_a_custom_resource_has_only_fields_of_its_definition(kind: str) -> None:
    jsonschema.validate(MANIFESTS[kind]["spec"], CUSTOM[kind])


def test_every_manifest_is_held_to_a_schema() -> None:
    assert set(MANIFESTS) == OWN_KINDS | set(CUSTOM)


def test_every_environment_variable_is_a_setting_with_a_value_that_passes() -> None:
    given = {one["name"].lower(): one["value"] for one in CONTAINER["env"]}
    assert Settings(_env_file=None, **given).model_fields_set == set(given)


async def test_every_path_is_a_route() -> None:
    paths = {CONTAINER[name]["httpGet"]["path"] for name in CONTAINER if name.endswith("Probe")}
    paths |= {one["path"] for one in MANIFESTS["PodMonitor"]["spec"]["podMetricsEndpoints"]}
    assert paths == {"/livez", "/readyz", "/metrics"}
    async with client() as http:
        for path in paths:
            assert (await http.get(path)).status_code == 200


def test_the_port_of_every_part_is_that_of_the_service_in_the_image() -> None:
    [port] = CONTAINER["ports"]
    assert port["containerPort"] == 3000
    used = {CONTAINER[name]["httpGet"]["port"] for name in CONTAINER if name.endswith("Probe")}
    used |= {one["targetPort"] for one in MANIFESTS["Service"]["spec"]["ports"]}
    used |= {one["port"] for one in MANIFESTS["PodMonitor"]["spec"]["podMetricsEndpoints"]}
    assert used == {port["name"]}


def test_every_part_selects_the_pods_of_the_deployment() -> None:
    labels = MANIFESTS["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert MANIFESTS["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert MANIFESTS["Service"]["spec"]["selector"] == labels
    assert MANIFESTS["PodMonitor"]["spec"]["selector"]["matchLabels"] == labels
    target = MANIFESTS["ScaledObject"]["spec"]["scaleTargetRef"]["name"]
    assert target == MANIFESTS["Deployment"]["metadata"]["name"]


async def test_the_fleet_grows_by_a_metric_that_the_service_has() -> None:
    [trigger] = MANIFESTS["ScaledObject"]["spec"]["triggers"]
    names = set(re.findall(r"retouch_\w+", trigger["metadata"]["query"]))
    assert names
    async with client() as http:
        text = (await http.get("/metrics")).text
    assert all(f"\n{name} " in text for name in names)


def test_the_key_of_the_metrics_is_in_the_secret_of_the_settings() -> None:
    [endpoint] = MANIFESTS["PodMonitor"]["spec"]["podMetricsEndpoints"]
    credentials = endpoint["authorization"]["credentials"]
    assert CONTAINER["envFrom"] == [{"secretRef": {"name": credentials["name"]}}]
    assert credentials["key"].lower() in Settings.model_fields


def test_a_stopping_pod_has_time_for_the_grace_of_its_edits() -> None:
    env = {one["name"]: one["value"] for one in CONTAINER["env"]}
    assert float(env["STOP_GRACE_SECONDS"]) + 5 <= POD["terminationGracePeriodSeconds"]


def test_what_is_mounted_is_where_the_image_writes() -> None:
    mounts = {one["mountPath"]: one["name"] for one in CONTAINER["volumeMounts"]}
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert f"HF_HOME={next(path for path in mounts if path != '/tmp')} " in dockerfile  # noqa: S108
    assert set(mounts.values()) == {volume["name"] for volume in POD["volumes"]}
    [claimed] = [each for each in POD["volumes"] if "persistentVolumeClaim" in each]
    claim = MANIFESTS["PersistentVolumeClaim"]["metadata"]["name"]
    assert claimed["persistentVolumeClaim"]["claimName"] == claim
    owner = re.findall(r"^USER (\d+)", dockerfile, re.MULTILINE)[-1]
    assert POD["securityContext"]["fsGroup"] == int(owner)
