"""Streams from a router as a process of its host: asks again and again until its input ends.

    python tests/fleet/client.py ADDRESS LIBRARY STREAMS TOKENS

Prints "asks" when it begins, and at the end every stream as a line of JSON (the fields of `Stream`).
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict

from cluster.experiments.live.streams import streams_while
from cluster.library.reader import Library
from cluster.types import EngineRequest, RequestId, SamplingParams

PROMPTS = ("And it came to pass", "To be, or not to be", "Once upon a time", "In the beginning")
TEMPERATURE = 0.8


def requests(library: Library, streams: int, tokens: int) -> list[EngineRequest]:
    """Sampled, each with a seed of its own: bits that differ anywhere soon change a token."""
    prompts = [tuple(library.tokenizer().encode(text)) for text in PROMPTS]
    return [
        EngineRequest(
            RequestId(str(number)),
            prompts[number % len(prompts)],
            SamplingParams(max_tokens=tokens, temperature=TEMPERATURE, seed=number, ignore_eos=True),
        )
        for number in range(streams)
    ]


def main(address: str, library: str, streams: str, tokens: str) -> None:
    wanted = requests(Library.open(library), int(streams), int(tokens))
    print("asks", flush=True)
    answers, _ = asyncio.run(streams_while(address, wanted, sys.stdin.read))
    for answer in answers:
        print(json.dumps(asdict(answer)))


if __name__ == "__main__":
    main(*sys.argv[1:])
