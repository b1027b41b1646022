"""The same fleet as pods: KubeRay's RayCluster and what it needs.

Every host of the file is a group of one pod with a name that a headless Service resolves; these names take
the place of the addresses. A pod runs `moemesh fleet join` as a machine does, in place of the command that
KubeRay would write.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from cluster.fleet.file import FleetFile, Host
from cluster.fleet.render.written import dump, fleet_text

RAY_BYTES = 1 << 30
"""What a pod gets beside the budget of its experts: Ray's own processes, Python, scratch."""

FILE = "/etc/moemesh/fleet.yaml"
SECRETS = "/run/secrets/moemesh"
USER = 1000
"""Of deploy/Dockerfile."""

GATEWAY_LABEL = "moemesh/gateway"


def kubernetes(fleet: FleetFile, image: str, ray_version: str) -> str:
    """Documents: ConfigMap, two Services, RayCluster. image: made from deploy/Dockerfile."""
    inside = replace(fleet, hosts=tuple(replace(host, address=_dns(fleet, host)) for host in fleet.hosts))
    documents = (
        _config_map(inside),
        _names(inside),
        _gateways(inside),
        _ray_cluster(inside, image, ray_version),
    )
    return _HEADER.format(name=fleet.name) + "---\n".join(map(dump, documents))


_HEADER = """\
# Needs KubeRay's operator and, in the same namespace:
#   Secret {name} with the keys token and cluster.key;
#   Secret {name}-gateway with the files of gateway.keys and gateway.tls, if the fleet file names them;
#   PersistentVolumeClaim {name}-library with the folder of the model, if it names one.
# Once the pods run, start the roles: kubectl exec HEAD -- moemesh fleet serve /etc/moemesh/fleet.yaml
"""


def _dns(fleet: FleetFile, host: Host) -> str:
    """Short: a pod's search list completes it with its namespace."""
    return f"{host.name}.{fleet.name}"


def _config_map(fleet: FleetFile) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": fleet.name},
        "data": {PurePosixPath(FILE).name: fleet_text(fleet)},
    }


def _names(fleet: FleetFile) -> dict[str, Any]:
    """Gives every pod its name, before it is ready too: that is how they find each other."""
    spec = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {"ray.io/cluster": fleet.name}}
    return _service(fleet.name, spec)


def _gateways(fleet: FleetFile) -> dict[str, Any]:
    own = fleet.gateway
    ports = [{"name": "grpc", "port": own.port}]
    if own.http_port is not None:
        ports.append({"name": "http", "port": own.http_port})
    selector = {"ray.io/cluster": fleet.name, GATEWAY_LABEL: "true"}
    return _service(f"{fleet.name}-gateway", {"selector": selector, "ports": ports})


def _service(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def _ray_cluster(fleet: FleetFile, image: str, ray_version: str) -> dict[str, Any]:
    workers = [host for host in fleet.hosts if not host.head]
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": fleet.name, "annotations": {"ray.io/overwrite-container-cmd": "true"}},
        "spec": {
            "rayVersion": ray_version,
            "headGroupSpec": {"rayStartParams": {}, "template": _template(fleet, fleet.head, image)},
            "workerGroupSpecs": [
                {
                    "groupName": host.name,
                    "replicas": 1,
                    "minReplicas": 1,
                    "maxReplicas": 1,
                    "rayStartParams": {},
                    "template": _template(fleet, host, image),
                }
                for host in workers
            ],
        },
    }


def _template(fleet: FleetFile, host: Host, image: str) -> dict[str, Any]:
    labels = dict(host.labels) | ({GATEWAY_LABEL: "true"} if host.gateways else {})
    return {
        "metadata": {"labels": labels},
        "spec": {
            "hostname": host.name,
            "subdomain": fleet.name,
            "securityContext": {"runAsUser": USER, "fsGroup": USER},
            "containers": [_container(fleet, host, image)],
            "volumes": _volumes(fleet, host),
        },
    }


def _container(fleet: FleetFile, host: Host, image: str) -> dict[str, Any]:
    """The probe is ours: KubeRay's asks agents of Ray that `fleet join` leaves out. The secrets are copied,
    because a volume of theirs in the state folder would make that read-only."""
    state = PurePosixPath(host.storage) / "state"
    alive = {"tcpSocket": {"port": host.ports.ray + (0 if host.head else 1)}, "periodSeconds": 10}
    begin = f"umask 077; mkdir -p {state}; cp {SECRETS}/token {SECRETS}/cluster.key {state}"
    environment = {
        "MOEMESH_STATE_DIR": str(state),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": f"{SECRETS}/token",
    }
    return {
        "name": "ray",
        "image": image,
        "command": ["sh", "-c"],
        "args": [f"{begin}; exec moemesh fleet join --block --host {host.name} {FILE}"],
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "resources": _resources(host),
        "readinessProbe": alive,
        "livenessProbe": alive | {"initialDelaySeconds": 180},
        "volumeMounts": _mounts(fleet, host),
    }


def _resources(host: Host) -> dict[str, Any]:
    """A router's trunk is as large as its model: where one runs, memory has no limit."""
    room = {"cpu": str(host.cores), "memory": str(host.memory_bytes + RAY_BYTES)}
    return {"requests": room} if host.routers else {"requests": room, "limits": {"memory": room["memory"]}}


def _mounts(fleet: FleetFile, host: Host) -> list[dict[str, Any]]:
    mounts: list[dict[str, Any]] = [
        {"name": "fleet", "mountPath": FILE, "subPath": PurePosixPath(FILE).name},
        {"name": "storage", "mountPath": host.storage},
        {"name": "secrets", "mountPath": SECRETS, "readOnly": True},
    ]
    for path in _access(fleet, host):
        mounts += [{"name": "access", "mountPath": path, "subPath": PurePosixPath(path).name}]
    if fleet.model:
        library = str(PurePosixPath(host.storage) / fleet.model)
        mounts.append({"name": "library", "mountPath": library, "readOnly": True})
    return mounts


def _volumes(fleet: FleetFile, host: Host) -> list[dict[str, Any]]:
    volumes: list[dict[str, Any]] = [
        {"name": "fleet", "configMap": {"name": fleet.name}},
        {"name": "storage", "emptyDir": {}},
        {"name": "secrets", "secret": {"secretName": fleet.name}},
    ]
    if _access(fleet, host):
        volumes.append({"name": "access", "secret": {"secretName": f"{fleet.name}-gateway"}})
    if fleet.model:
        claim = {"claimName": f"{fleet.name}-library", "readOnly": True}
        volumes.append({"name": "library", "persistentVolumeClaim": claim})
    return volumes


def _access(fleet: FleetFile, host: Host) -> list[str]:
    """Files of keys and certificates that the host's gateways read."""
    tls = fleet.gateway.tls
    named = [fleet.gateway.keys, *((tls.certificate, tls.key, tls.client_ca) if tls else ())]
    return [path for path in named if path] if host.gateways else []
