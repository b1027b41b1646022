"""A machine that joins tells the head's Ray that nothing of an earlier life of its runs any more.

Ray itself would find out after a day, since it is told to be that patient with machines that are away
(cluster/fleet/raynode.py), and until then start nothing anew of what ran there. Every join tells it: a
machine that has left while its head was away has nothing any more by which to know that it was there.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from cluster.errors import StartFailed
from cluster.fleet import processes
from cluster.fleet.processes import Mark
from cluster.fleet.raynode import LABEL, last_line

PATIENCE_S = 30.0
"""So long the head may take to come up, when all machines start at once."""

LIMIT_S = 120.0
"""For a process that imports Ray on a slow device, and two calls."""


class Obituary:
    """In a process of its own, since Ray reads its environment once, when it is imported."""

    def __init__(
        self, environment: Mapping[str, str], head: str, name: str, log: Path, patience_s: float = PATIENCE_S
    ) -> None:
        """Machines of this name are dead to Ray once it has `finished`. head: host:port of the GCS."""
        self._head, self._log, self._began = head, log, time.monotonic()
        with open(log, "wb") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cluster.fleet.obituary", head, name, str(patience_s)],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def mark(self) -> Mark | None:
        return processes.mark(self._process.pid)

    def finished(self) -> bool:
        """Raises StartFailed if the head cannot be told."""
        code = self._process.poll()
        if code is None and time.monotonic() < self._began + LIMIT_S:
            return False
        if code:
            why = last_line(self._log) or f"exit code {code}"
        elif code is None:
            why = f"no answer in {LIMIT_S:g} s"
        else:
            return True
        raise StartFailed(
            f"Ray at {self._head} of the head does not hear that this machine joins ({why}); is the head up, "
            "its ports.ray open, its token the same?"
        )

    def end(self) -> None:
        """End the process, if it is there still; idempotent."""
        self._process.kill()
        self._process.wait()


def _unregister(head: str, name: str, patience_s: str) -> str:
    """What went wrong, "" for nothing."""
    import grpc
    from ray._private.gcs_utils import create_gcs_channel
    from ray.core.generated import common_pb2, gcs_pb2, gcs_service_pb2, gcs_service_pb2_grpc

    why = common_pb2.NodeDeathInfo(
        reason=common_pb2.NodeDeathInfo.UNEXPECTED_TERMINATION, reason_message="the machine joins again"
    )
    try:
        with create_gcs_channel(head) as channel:
            gcs = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
            everybody = gcs_service_pb2.GetAllNodeInfoRequest()
            known = gcs.GetAllNodeInfo(everybody, timeout=float(patience_s), wait_for_ready=True)
            for node in known.node_info_list:
                if node.state == gcs_pb2.GcsNodeInfo.ALIVE and node.labels.get(LABEL) == name:
                    ended = gcs_service_pb2.UnregisterNodeRequest(node_id=node.node_id, node_death_info=why)
                    gcs.UnregisterNode(ended, timeout=float(patience_s))
    except grpc.RpcError as error:
        return f"{error.code().name}: {error.details()}"
    return ""


if __name__ == "__main__":
    sys.exit(_unregister(*sys.argv[1:]) or 0)
