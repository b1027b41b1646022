"""What a joining machine tells the GCS, over a real channel of Ray's to a service that is pretended."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from ray.core.generated import gcs_pb2, gcs_service_pb2, gcs_service_pb2_grpc

from cluster.errors import StartFailed
from cluster.fleet.obituary import Obituary
from cluster.fleet.raynode import LABEL

ALIVE, DEAD = gcs_pb2.GcsNodeInfo.ALIVE, gcs_pb2.GcsNodeInfo.DEAD


class Nodes(gcs_service_pb2_grpc.NodeInfoGcsServiceServicer):
    """known: (id, label, state); ended: ids that were unregistered."""

    known = ((b"old", "pi", ALIVE), (b"older", "pi", DEAD), (b"other", "pi-2", ALIVE))

    def __init__(self) -> None:
        self.ended: list[bytes] = []

    def GetAllNodeInfo(self, request: Any, context: grpc.ServicerContext) -> Any:
        nodes = [
            gcs_pb2.GcsNodeInfo(node_id=number, labels={LABEL: name}, state=state)
            for number, name, state in self.known
        ]
        return gcs_service_pb2.GetAllNodeInfoReply(node_info_list=nodes)

    def UnregisterNode(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.ended.append(request.node_id)
        return gcs_service_pb2.UnregisterNodeReply()


@pytest.fixture
def gcs() -> Iterator[tuple[Nodes, str]]:
    nodes = Nodes()
    server = grpc.server(ThreadPoolExecutor(2))
    gcs_service_pb2_grpc.add_NodeInfoGcsServiceServicer_to_server(nodes, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield nodes, f"127.0.0.1:{port}"
    server.stop(0).wait()


def tell(head: str, log: Path, patience_s: float) -> None:
    obituary = Obituary({**os.environ, "RAY_AUTH_MODE": "disabled"}, head, "pi", log, patience_s)
    try:
        while not obituary.finished():
            time.sleep(0.05)
    finally:
        obituary.end()


def test_only_what_lives_of_that_name_has_ended(gcs: tuple[Nodes, str], tmp_path: Path) -> None:
    nodes, head = gcs
    tell(head, tmp_path / "log", 10.0)
    assert nodes.ended == [b"old"]


def test_a_head_that_is_not_there_is_an_error_that_says_so(gcs: tuple[Nodes, str], tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match=r"127.0.0.1:1 of the head does not hear .*DEADLINE_EXCEEDED"):
        tell("127.0.0.1:1", tmp_path / "log", 0.5)
