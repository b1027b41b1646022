"""Headers of the data plane, as msgpack arrays. The only place that knows their order.

    DISPATCH  router incarnation, node incarnation, step, layer, micro-batch, attempt, table version,
              rows, counts bin u8[rows], experts bin u8|u16[pairs]
    RESULT    the first seven, pairs, queue length, service time in µs
    NOT_HERE  the first seven; the table version is the node's
    FAULT     the first seven, error name, message

Payload of a DISPATCH: rows [rows, Hp] int8, then scales [rows] float32; or rows [rows, Hp] float32.
Payload of a RESULT: [pairs, Hp], in the order of `experts`.
"""

from __future__ import annotations

from typing import Any

from cluster.errors import ProtocolError

Call = tuple[int, int, int]
"""(step, layer, micro-batch): names a call within one router."""

MAX_FAULT_CHARS = 4096


class Tag:
    """The first seven fields, which every message of the data plane carries."""

    __slots__ = ("attempt", "call", "node", "router", "table")

    def __init__(self, router: int, node: int, call: Call, attempt: int, table: int) -> None:
        self.router = router
        self.node = node
        self.call = call
        self.attempt = attempt
        self.table = table


def tag_of(header: Any) -> Tag:
    """Raises ProtocolError if `header` does not begin with the seven numbers."""
    try:
        router, node, step, layer, micro_batch, attempt, table = header[:7]
        return Tag(router + 0, node + 0, (step + 0, layer + 0, micro_batch + 0), attempt + 0, table + 0)
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"a data-plane header without its seven numbers: {error}") from error


def fault_header(tag: Tag, error: str, message: str) -> list[Any]:
    return [tag.router, tag.node, *tag.call, tag.attempt, tag.table, error, message[:MAX_FAULT_CHARS]]


def result_header(tag: Tag, table: int, pairs: int, queue: int, service_us: int) -> list[Any]:
    return [tag.router, tag.node, *tag.call, tag.attempt, table, pairs, queue, service_us]
