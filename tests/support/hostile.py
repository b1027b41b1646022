"""What a hostile client sends: valid messages with changed bytes, JSON of any shape, frames that lie."""

from __future__ import annotations

import json
import struct
from typing import Any

from hypothesis import strategies as st

from protos import generation_pb2 as pb
from protos import open_inference_pb2 as oip

GENERATION = "/moemesh.v1.Generation/"
INFERENCE = "/inference.GRPCInferenceService/"

PROMPTED = {"text": "abc"}
UNARY: tuple[tuple[str, Any], ...] = (
    (GENERATION + "Score", pb.ScoreRequest(top_logprobs=2, **PROMPTED)),
    (GENERATION + "Embed", pb.EmbedRequest(normalise=True, **PROMPTED)),
    (GENERATION + "Tokenize", pb.TokenizeRequest(**PROMPTED)),
    (GENERATION + "Detokenize", pb.DetokenizeRequest(token_ids=[1, 2, 200])),
    (GENERATION + "GetModel", pb.GetModelRequest(model="tiny")),
    (GENERATION + "Abort", pb.AbortRequest(request_id="r")),
    (INFERENCE + "ModelMetadata", oip.ModelMetadataRequest(name="tiny", version="1")),
    (INFERENCE + "RepositoryIndex", oip.RepositoryIndexRequest(ready=True)),
)

_SAMPLING = pb.Sampling(
    max_tokens=4, temperature=0.7, top_k=5, top_p=0.9, seed=7, stop=["zz"], stop_token_ids=[3], n=2
)
STREAMING: tuple[tuple[str, Any], ...] = (
    (
        GENERATION + "Generate",
        pb.GenerateRequest(sampling=_SAMPLING, request_id="r", priority=1, **PROMPTED),
    ),
    (
        GENERATION + "Generate",
        pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1, 2, 3]), sampling=pb.Sampling(max_tokens=3)),
    ),
    (
        GENERATION + "Chat",
        pb.ChatRequest(
            messages=[pb.ChatMessage(role="user", content="hi")],
            variables='{"a": [1]}',
            sampling=pb.Sampling(max_tokens=3),
        ),
    ),
)


def _inference() -> oip.ModelInferRequest:
    asked = oip.ModelInferRequest(model_name="tiny", id="7")
    asked.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    asked.inputs.add(name="max_tokens", datatype="INT32", shape=[1])
    asked.raw_input_contents.append(struct.pack("<I", 3) + b"abc")
    asked.raw_input_contents.append(struct.pack("<i", 3))
    return asked


INFER: tuple[tuple[str, Any], ...] = ((INFERENCE + "ModelInfer", _inference()),)
INFER_STREAM: tuple[tuple[str, Any], ...] = ((INFERENCE + "ModelStreamInfer", _inference()),)


@st.composite
def mutated(draw: st.DrawFn, valid: bytes) -> bytes:
    """Up to four edits: a byte changed, bytes put in or taken out, a length made huge, the end cut off."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(("change", "insert", "remove", "huge", "cut", "repeat"))):
            case "change":
                data[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case "insert":
                data[at:at] = draw(st.binary(max_size=8))
            case "remove":
                del data[at : at + draw(st.integers(1, 8))]
            case "huge":
                data[at:at] = b"\xff\xff\xff\xff\x0f"
            case "cut":
                del data[at:]
            case "repeat":
                data[at:at] = bytes(data[: draw(st.integers(0, 64))]) * 8
    return bytes(data)


def calls(methods: tuple[tuple[str, Any], ...]) -> st.SearchStrategy[tuple[str, bytes]]:
    return st.sampled_from(methods).flatmap(
        lambda each: st.tuples(st.just(each[0]), mutated(each[1].SerializeToString()))
    )


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.just(1 << 70)
    | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
KEYS = (
    *("model", "prompt", "messages", "max_tokens", "temperature", "top_p", "n", "stop", "stream", "seed"),
    *("logprobs", "top_logprobs", "stream_options", "response_format", "logit_bias", "user", "input"),
)
PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/embeddings")
GOOD = {"model": "tiny", "prompt": "abc", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """JSON with good and wrong values, JSON that is none, and JSON that is very deep."""
    kind = draw(st.sampled_from(("object", "object", "object", "bytes", "deep")))
    if kind == "deep":
        return draw(st.sampled_from((b"[", b'{"a":'))) * draw(st.integers(1, 20_000))
    names = draw(st.lists(st.sampled_from(KEYS), max_size=5, unique=True))
    value = {**GOOD, **{name: draw(VALUES) for name in names}}
    if draw(st.booleans()):
        value.pop(draw(st.sampled_from(tuple(GOOD))), None)
    data = json.dumps(value).encode()
    return draw(mutated(data)) if kind == "bytes" else data


GRPC_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HTTP_HEADS = (
    b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999999\r\n\r\n{",
    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n",
    b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n",
)


@st.composite
def raw_bytes(draw: st.DrawFn, beginnings: tuple[bytes, ...]) -> bytes:
    """The valid beginning of a conversation with its bytes changed, and more behind it."""
    begin = draw(mutated(draw(st.sampled_from(beginnings))))
    return begin + draw(st.binary(max_size=200))
