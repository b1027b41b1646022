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


Tag = list[int]
"""The first seven fields; a reply carries those of its request."""

ROUTER, NODE, STEP, LAYER, MICRO_BATCH, ATTEMPT, TABLE = range(7)


def tag_of(header: Any) -> Tag:
    """Raises ProtocolError if `header` does not begin with the seven numbers."""
    tag = header[:7] if type(header) is list else []
    for number in tag:
        if type(number) is not int:
            raise ProtocolError(f"a data-plane header with {number!r:.40} where a number belongs")
    if len(tag) != 7:
        raise ProtocolError("a data-plane header without its seven numbers")
    return tag


def fault_header(tag: Tag, error: str, message: str) -> list[Any]:
    return [*tag, error, message[:MAX_FAULT_CHARS]]
