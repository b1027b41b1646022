"""Requests and what becomes of them as frames between gateways and routers.

SUBMIT: header {n, id, kind, prompt, sampling, emitted?, priority?, tier?, tenant?, trace?, grammar?};
payload: `prompt` int32 token ids, then `emitted` more, which another router has generated, then the grammar's
text in UTF-8. `sampling` has what differs from the default; `grammar` is the kind.

EVENTS: header {e: [[n, kind, ...], ...]}, n being the request's number on its connection:

    [n, "t", token id, logprob]                     a token; behind it, if the request asked for alternatives,
                                                    [id, logprob, id, logprob, ...]
    [n, "f", reason, prompt tokens, tokens]         the end of a generation
    [n, "s", count, alternatives of each]           a score: payload count float32, then their alternatives as
                                                    count * a int32 and count * a float32
    [n, "e", count, prompt tokens]                  an embedding: payload count float32
    [n, "x", error class, message, tokens]          an error

Payloads of a frame's events follow one another. All numbers are little-endian.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from cluster.dispatch.frames import Header
from cluster.errors import InvalidRequest
from cluster.types import (
    Alternatives,
    Embedded,
    Emitted,
    EngineRequest,
    Event,
    Failed,
    Finished,
    Grammar,
    RequestId,
    SamplingParams,
    Scored,
)

KINDS = ("generate", "score", "embed")
DEFAULTS = SamplingParams()
PLAIN = EngineRequest(RequestId(""), ())
PLAIN_FIELDS = tuple(f.name for f in dataclasses.fields(SamplingParams) if f.name != "grammar")

Entry = list[Any]


def pack_request(number: int, request: EngineRequest) -> tuple[Header, bytes]:
    """number: the request's, on this connection."""
    sampling = request.sampling
    header: dict[str, Any] = {
        "n": number,
        "id": request.request_id,
        "kind": request.kind,
        "prompt": len(request.prompt_ids),
        "sampling": {
            name: value
            for name in PLAIN_FIELDS
            if (value := getattr(sampling, name)) != getattr(DEFAULTS, name)
        },
    }
    payload = np.asarray(request.prompt_ids + request.emitted, "<i4").tobytes()
    if request.emitted:
        header["emitted"] = len(request.emitted)
    for name in ("priority", "tier", "tenant", "trace"):
        if (value := getattr(request, name)) != getattr(PLAIN, name):
            header[name] = value
    if sampling.grammar is not None:
        header["grammar"] = sampling.grammar.kind
        payload += sampling.grammar.text.encode()
    return header, payload


def parse_request(request_id: RequestId, header: Header, payload: memoryview | bytes) -> EngineRequest:
    """Raises InvalidRequest on a malformed frame and on values out of range."""
    assert isinstance(header, dict)
    try:
        length, emitted = int(header["prompt"]), int(header.get("emitted", 0))
        if min(length, emitted) < 0:
            raise ValueError(f"{length} tokens of a prompt and {emitted} behind it")
        count = length + emitted
        ids = tuple(np.frombuffer(payload, "<i4", count=count).tolist()) if count else ()
        fields = dict(header["sampling"])
        fields["stop_token_ids"] = tuple(fields.get("stop_token_ids", ()))
        if "grammar" in header:
            fields["grammar"] = Grammar(header["grammar"], bytes(payload[4 * count :]).decode())
        kind = header["kind"]
        if kind not in KINDS:
            raise ValueError(f"unknown kind {kind!r}")
        return EngineRequest(
            request_id,
            ids[:length],
            SamplingParams(**fields),
            kind,
            int(header.get("priority", PLAIN.priority)),
            str(header.get("tier", PLAIN.tier)),
            str(header.get("tenant", PLAIN.tenant)),
            str(header.get("trace", PLAIN.trace)),
            ids[length:],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidRequest(f"malformed request to the router: {error}") from error


def pack_event(number: int, event: Event) -> tuple[Entry, tuple[bytes, ...]]:
    """One entry of an EVENTS header, and the parts of its payload."""
    match event:
        case Emitted():
            entry = [number, "t", event.token_id, event.logprob]
            if event.alternatives:
                entry.append([value for pair in event.alternatives for value in pair])
            return entry, ()
        case Finished():
            return [number, "f", event.reason, event.prompt_tokens, event.completion_tokens], ()
        case Scored():
            return _pack_score(number, event)
        case Embedded():
            values = np.asarray(event.values, "<f4")
            return [number, "e", len(values), event.prompt_tokens], (values.tobytes(),)
        case Failed():
            return pack_failure(number, event.error, event.emitted), ()


def pack_failure(number: int, error: Exception, emitted: int) -> Entry:
    return [number, "x", type(error).__name__, str(error), emitted]


def _pack_score(number: int, event: Scored) -> tuple[Entry, tuple[bytes, ...]]:
    logprobs = np.asarray(event.logprobs, "<f4").tobytes()
    if not event.alternatives:
        return [number, "s", len(event.logprobs), 0], (logprobs,)
    ids = np.array([[token for token, _ in place] for place in event.alternatives], "<i4")
    values = np.array([[value for _, value in place] for place in event.alternatives], "<f4")
    return [number, "s", len(ids), ids.shape[1]], (logprobs, ids.tobytes(), values.tobytes())


class Payload:
    """Reads the payload of an EVENTS frame, event by event. Raises ValueError where it is too short."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._place = 0

    def floats(self, count: int) -> np.ndarray:
        return self._take("<f4", count)

    def alternatives(self, places: int, each: int) -> tuple[Alternatives, ...]:
        """Of a score: `each` at every place."""
        ids = self._take("<i4", places * each).reshape(places, each).tolist()
        values = self._take("<f4", places * each).reshape(places, each).tolist()
        pairs = zip(ids, values, strict=True) if each else ()
        return tuple(tuple(zip(row, value, strict=True)) for row, value in pairs)

    def _take(self, kind: str, count: int) -> np.ndarray:
        if count == 0:
            return np.zeros(0, kind)
        found = np.frombuffer(self._data, kind, count=count, offset=self._place)
        self._place += found.nbytes
        return found


def unpack_alternatives(flat: list[Any]) -> Alternatives:
    """Of a token: [id, logprob, id, logprob, ...]. Raises ValueError for half a pair."""
    return tuple(zip(flat[::2], flat[1::2], strict=True))
