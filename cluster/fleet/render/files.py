"""Every file that `moemesh fleet render` makes."""

from __future__ import annotations

import re
from importlib.metadata import version

from cluster.errors import ConfigError
from cluster.fleet.file import FleetFile
from cluster.fleet.render.kubernetes import kubernetes
from cluster.fleet.render.ray_up import ray_up
from cluster.fleet.render.systemd import unit

KUBERNETES_NAME = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")


def files(fleet: FleetFile, path: str, secrets: str, image: str) -> dict[str, str]:
    """Text by name, relative to the folder that they are for.

    path: of the fleet file, absolute; secrets: likewise of the folder with token and cluster.key; image: for
    pods. Raises ConfigError for a fleet whose name cannot be that of a Kubernetes object.
    """
    if not KUBERNETES_NAME.fullmatch(fleet.name):
        raise ConfigError(
            f"name of the fleet is {fleet.name!r}; pods need lower-case letters, digits and -, a letter first"
        )
    units = {f"systemd/{host.name}/moemesh.service": unit(fleet, host) for host in fleet.hosts}
    return {
        "ray-cluster.yaml": ray_up(fleet, path, secrets),
        **units,
        "kubernetes.yaml": kubernetes(fleet, image, version("ray")),
    }
