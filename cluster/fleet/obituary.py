"""A machine that joins again tells the head's Ray that what it was before has ended.

Ray itself would find out after a day, since it is told to be that patient with machines that are away
(cluster/fleet/raynode.py), and until then starts nothing anew that ran there.
"""

from __future__ import annotations

import logging
import sys

import grpc
from ray._private.gcs_utils import create_gcs_channel
from ray.core.generated import common_pb2, gcs_pb2, gcs_service_pb2, gcs_service_pb2_grpc

log = logging.getLogger(__name__)

TIMEOUT_S = 5.0


def report(head: str, label: str, name: str) -> int:
    """Returns how many there were. head: host:port of the GCS; nothing must run any more of what has the
    label with this value. A head that does not answer is left for `ray start` to complain about."""
    found = 0
    with create_gcs_channel(head) as channel:
        nodes = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        try:
            known = nodes.GetAllNodeInfo(gcs_service_pb2.GetAllNodeInfoRequest(), timeout=TIMEOUT_S)
            for node in known.node_info_list:
                if node.state == gcs_pb2.GcsNodeInfo.ALIVE and node.labels.get(label) == name:
                    nodes.UnregisterNode(_ended(node.node_id), timeout=TIMEOUT_S)
                    found += 1
        except grpc.RpcError as error:
            log.warning("%s was not told that %s has ended before: %s", head, name, error)
    return found


def _ended(node: bytes) -> gcs_service_pb2.UnregisterNodeRequest:
    info = common_pb2.NodeDeathInfo(
        reason=common_pb2.NodeDeathInfo.UNEXPECTED_TERMINATION, reason_message="the machine joins again"
    )
    return gcs_service_pb2.UnregisterNodeRequest(node_id=node, node_death_info=info)


if __name__ == "__main__":
    report(*sys.argv[1:])
