"""The bundled model gives these very tokens, on every machine, through every kind of cluster.

A change here is a change of the numerics: it needs a new version (cluster/types.py), not new numbers.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from cluster.config import EngineConfig
from cluster.library.bundled import open_model
from cluster.types import RequestId
from support.engines import Answer, Trace, engine_over, request, run_all

PROMPT = "In the beginning"
CONFIG = EngineConfig(kv_bytes=8 << 20)
SAMPLED = {"temperature": 0.8, "top_k": 50, "top_p": 0.95, "min_p": 0.02, "repetition_penalty": 1.1}

GREEDY = "475ce32700d9a436a4cc9f36e0c60b1b9aff934539b7e73bcdb6ba4550b2ee2f"
SAMPLES = "b5f95b0c23a5bd79eec0fa8292890c6c67a7704a73e853d6899ac07aa9ddb34c"
"""SHA-256 of 32 tokens (int32) and of all the logits that chose them (float32)."""


def fingerprint(trace: Trace, name: str, answer: Answer) -> str:
    digest = hashlib.sha256(np.array(answer.tokens, "<i4").tobytes())
    rows = trace.seen[RequestId(name)]
    for position in sorted(rows):
        digest.update(rows[position].astype("<f4").tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("nodes", [0, 3])
def test_tokens_and_logits_are_the_stored_ones(nodes: int) -> None:
    library = open_model()
    ids = library.tokenizer().encode(PROMPT)
    requests = [request("greedy", ids, 32), request("sampled", ids, 32, seed=7, **SAMPLED)]
    trace = Trace()
    with engine_over(library, CONFIG, nodes=nodes, probe=trace) as engine:
        answers = run_all(engine, requests)
    found = {name: fingerprint(trace, name, answer) for name, answer in answers.items()}
    assert found == {"greedy": GREEDY, "sampled": SAMPLES}
