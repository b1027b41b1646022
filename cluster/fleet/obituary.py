"""A machine that joins again, after it had ended without a word, tells the head's Ray that it had.

Ray itself would find out after a day, since it is told to be that patient with machines that are away
(cluster/fleet/raynode.py), and until then start nothing anew of what ran there.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Mapping

from cluster.fleet.raynode import LABEL

log = logging.getLogger(__name__)

CALL_S, REPORT_S = 5.0, 30.0


def report(environment: Mapping[str, str], head: str, name: str) -> bool:
    """Have Ray take machines of this name for dead, of which nothing may run any more; returns whether it
    was told.

    In a process of its own, since Ray reads its environment once, when it is imported. head: host:port of the
    GCS; one that does not answer is left for `ray start` to complain about.
    """
    command = [sys.executable, "-m", "cluster.fleet.obituary", head, name]
    try:
        subprocess.run(command, env=environment, capture_output=True, text=True, timeout=REPORT_S, check=True)
        return True
    except subprocess.CalledProcessError as error:
        why = error.stderr.strip().splitlines()[-1:] or [f"exit code {error.returncode}"]
        log.warning("Ray at %s was not told that %s had ended: %s", head, name, why[0])
    except subprocess.TimeoutExpired:
        log.warning("Ray at %s was not told that %s had ended: no answer in %g s", head, name, REPORT_S)
    return False


def _unregister(head: str, name: str) -> None:
    from ray._private.gcs_utils import create_gcs_channel
    from ray.core.generated import common_pb2, gcs_pb2, gcs_service_pb2, gcs_service_pb2_grpc

    why = common_pb2.NodeDeathInfo(
        reason=common_pb2.NodeDeathInfo.UNEXPECTED_TERMINATION, reason_message="the machine joins again"
    )
    with create_gcs_channel(head) as channel:
        gcs = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        known = gcs.GetAllNodeInfo(gcs_service_pb2.GetAllNodeInfoRequest(), timeout=CALL_S)
        for node in known.node_info_list:
            if node.state == gcs_pb2.GcsNodeInfo.ALIVE and node.labels.get(LABEL) == name:
                ended = gcs_service_pb2.UnregisterNodeRequest(node_id=node.node_id, node_death_info=why)
                gcs.UnregisterNode(ended, timeout=CALL_S)


if __name__ == "__main__":
    _unregister(*sys.argv[1:])
