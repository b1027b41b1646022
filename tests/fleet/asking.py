"""Clients of a fleet's gateways as a process of a host, with the retry policy of docs/clients.md, until its
input ends.

    python tests/fleet/asking.py SPEC      (JSON: {"gateways": {name: address}, "clients", "history": file})

Prints "asks" when it begins.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from itertools import count
from typing import Any, TextIO

import numpy as np

from cluster.cli.chaos_client import calling_gateways
from cluster.experiments.chaos.clients import Client
from cluster.experiments.chaos.history import History
from cluster.experiments.chaos.workload import Manner, Question, Turn, questions
from cluster.library.bundled import open_model

SEED = 7


def asked() -> list[Question]:
    """The same ones for those who ask and those who check."""
    return questions(np.random.SeedSequence(SEED), open_model().spec.vocab)


def turns(first: int, many: int) -> Iterator[Turn]:
    """Every question, one after the other, to its end."""
    return (Turn((first + number) % many, Manner.whole, 0, 0.0, 0.0) for number in count())


async def ask(spec: dict[str, Any], file: TextIO) -> None:
    history, stop, wanted = History(file), asyncio.Event(), asked()
    print("asks", flush=True)
    async with calling_gateways(spec["gateways"]) as caller, asyncio.TaskGroup() as group:
        for number in range(spec["clients"]):
            client = Client(number, caller, list(spec["gateways"]), wanted, history)
            group.create_task(client.ask(turns(number, len(wanted)), stop))
        await asyncio.to_thread(sys.stdin.read)
        stop.set()


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    with open(given["history"], "w") as history_file:
        asyncio.run(ask(given, history_file))
