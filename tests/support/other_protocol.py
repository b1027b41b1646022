"""A process that speaks another protocol: our code, but for the number.

    python tests/support/other_protocol.py PROTOCOL node
    python tests/support/other_protocol.py PROTOCOL router ADDRESS

A node prints its address and answers until its input ends. A router asks the node at ADDRESS, small questions
and large ones, by every kind of client that we have, and prints "agreed", or how it was refused.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path

FRAMES = "cluster.dispatch.frames"
TOKENS = (1, 2, 33, 700, 1)
"""Rows of one call: by the short way, and in fragments."""

LIMIT_S = 20.0


def become(protocol: int) -> None:
    """Before anything of the dispatch is imported: constants are copied when it is."""
    spec = importlib.util.find_spec(FRAMES)
    assert spec is not None
    assert spec.origin is not None
    assert FRAMES not in sys.modules
    module = sys.modules[FRAMES] = importlib.util.module_from_spec(spec)
    source = Path(spec.origin).read_text()
    changed = source.replace("\nPROTOCOL = 1\n", f"\nPROTOCOL = {protocol}\n")
    assert protocol == 1 or changed != source
    exec(compile(changed, spec.origin, "exec"), module.__dict__)


def serve() -> None:
    from support.expert_nodes import running

    with running(1) as nodes:
        print(nodes.addresses[nodes.names[0]], flush=True)
        sys.stdin.read()


def ask(address: str) -> None:
    from cluster.balance.placement import round_robin
    from cluster.dispatch.aio import FrameStream
    from cluster.dispatch.client import ControlClient
    from cluster.dispatch.exchange import Exchange
    from cluster.dispatch.kinds import Kind
    from cluster.types import NodeId
    from support.expert_nodes import SHAPE, make_call, round_trip, router

    identity = router()
    name = NodeId("n0")
    exchange = Exchange(identity, SHAPE, round_robin(SHAPE.layers, SHAPE.experts, [name]), {name: address})
    try:
        exchange.connect(LIMIT_S)
        for step, tokens in enumerate(TOKENS):
            round_trip(exchange, make_call(tokens, step=step))
    finally:
        exchange.close()
    with ControlClient(address, identity=identity) as client:
        assert client.call(Kind.STATUS, {}).kind is Kind.REPLY

    async def stream() -> None:
        async with await FrameStream.open(address, identity=identity) as opened:
            await opened.send(Kind.STATUS, {})
            assert (await opened.recv()).kind is Kind.REPLY

    asyncio.run(stream())


def main(protocol: str, role: str, *address: str) -> None:
    become(int(protocol))
    from cluster.errors import MoemeshError
    from kernels import warm

    warm.compile_all(apart=True)  # as every role before it serves
    if role == "node":
        serve()
        return
    try:
        ask(*address)
    except MoemeshError as error:
        print(f"{type(error).__name__}: {error}")
    else:
        print("agreed")


if __name__ == "__main__":
    main(*sys.argv[1:])
