"""Streams through gateways as a process of a host, whose clients follow the documented policy: asks again and
again until its input ends.

    python tests/fleet/resuming.py ADDRESS,ADDRESS… LIBRARY STREAMS TOKENS

Prints "asks" when it begins, and at the end every stream as a line of JSON (the fields of `Stream`).
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from cluster.cli.bench_gateways import clients, streams_of
from cluster.experiments.live.streams import sampled_requests
from cluster.library.reader import Library


def main(addresses: str, library: str, streams: str, tokens: str) -> None:
    wanted = sampled_requests(Library.open(library), int(streams), int(tokens))
    print("asks", flush=True)
    with clients({address: address for address in addresses.split(",")}, len(wanted)) as each:
        answers, _ = streams_of(each, wanted, sys.stdin.read)
    for answer in answers:
        print(json.dumps(asdict(answer)))


if __name__ == "__main__":
    main(*sys.argv[1:])
