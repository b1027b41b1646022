"""Streams from a router as a process of its host: asks again and again until its input ends.

    python tests/fleet/client.py ADDRESS LIBRARY STREAMS TOKENS

Prints "asks" when it begins, and at the end every stream as a line of JSON (the fields of `Stream`).
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict

from cluster.experiments.live.streams import sampled_requests, streams_while
from cluster.library.reader import Library


def main(address: str, library: str, streams: str, tokens: str) -> None:
    wanted = sampled_requests(Library.open(library), int(streams), int(tokens))
    print("asks", flush=True)
    answers, _ = asyncio.run(streams_while(address, wanted, sys.stdin.read))
    for answer in answers:
        print(json.dumps(asdict(answer)))


if __name__ == "__main__":
    main(*sys.argv[1:])
