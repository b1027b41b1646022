"""The text model behind the open inference protocol: its tensors, what they ask for, what they answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from reprlib import repr as shown  # short: a message travels in a header
from typing import Any

from cluster.errors import InvalidRequest
from cluster.gateway.admission import MODEL_VERSION, Wishes
from cluster.gateway.run import Delta
from cluster.gateway.tensors import Element, read_inputs, write_output
from cluster.types import GRAMMAR_KINDS, Grammar, GrammarKind
from protos import open_inference_pb2 as pb

SCALARS: Mapping[str, tuple[str, type]] = {
    "max_tokens": ("INT32", int),
    "temperature": ("FP32", float),
    "top_k": ("INT32", int),
    "top_p": ("FP32", float),
    "min_p": ("FP32", float),
    "repetition_penalty": ("FP32", float),
    "presence_penalty": ("FP32", float),
    "frequency_penalty": ("FP32", float),
    "priority": ("INT32", int),
    "seed": ("UINT64", int),
    "ignore_eos": ("BOOL", bool),
}
INPUTS: Mapping[str, tuple[str, type]] = {
    "text_input": ("BYTES", str),
    "stream": ("BOOL", bool),
    "sampling_parameters": ("BYTES", str),
    "stop_words": ("BYTES", list),
    **SCALARS,
}
REQUIRED = frozenset({"text_input"})
OUTPUTS: Mapping[str, str] = {
    "text_output": "BYTES",
    "finish_reason": "BYTES",
    "num_input_tokens": "UINT32",
    "num_output_tokens": "UINT32",
    "cumulative_logprob": "FP32",
}
EMPTY_FINAL = "triton_enable_empty_final_response"
FINAL = "triton_final_response"
TIMEOUT = "timeout"
KNOWN_TYPES = {name: kind for name, (_, kind) in INPUTS.items()}
JSON_KEYS = frozenset({*SCALARS, "stop_token_ids", "stop", *GRAMMAR_KINDS})
"""Of sampling_parameters. One answer has one text, so there is no n; nor outputs for alternatives."""


@dataclass(frozen=True)
class TextRequest:
    """outputs: the names asked for, in order; empty_final: end a stream with an answer without outputs;
    timeout_s: None is none."""

    text: str
    stream: bool
    wishes: Wishes
    outputs: tuple[str, ...]
    empty_final: bool
    timeout_s: float | None


def read_request(request: pb.ModelInferRequest) -> TextRequest:
    """Raises InvalidRequest naming the tensor, key or parameter that is wrong."""
    values = read_inputs(request, KNOWN_TYPES)
    if "text_input" not in values:
        raise InvalidRequest("input 'text_input' is missing")
    sampling = _json_sampling(str(values.pop("sampling_parameters", "{}")))
    text, stream = str(values.pop("text_input")), bool(values.pop("stream", False))
    words = values.pop("stop_words", None)
    if isinstance(words, list):
        sampling["stop"] = tuple(words)
    sampling.update(values)
    empty_final, timeout_s = _parameters(request)
    return TextRequest(text, stream, Wishes(**sampling), _outputs(request), empty_final, timeout_s)


def _json_sampling(text: str) -> dict[str, Any]:
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"sampling_parameters is not JSON: {error}") from None
    if not isinstance(given, dict):
        raise InvalidRequest("sampling_parameters must be a JSON object")
    unknown = sorted(set(given) - JSON_KEYS)
    if unknown:
        raise InvalidRequest(
            f"sampling_parameters has unknown key {shown(unknown[0])}; "
            f"known are {', '.join(sorted(JSON_KEYS))}"
        )
    grammars = [_json_grammar(kind, given.pop(kind)) for kind in GRAMMAR_KINDS if kind in given]
    if len(grammars) > 1:
        raise InvalidRequest(f"sampling_parameters: send one of {', '.join(GRAMMAR_KINDS)}")
    values = {key: _json_value(key, value) for key, value in given.items()}
    return {**values, "grammar": grammars[0]} if grammars else values


def _json_grammar(kind: GrammarKind, value: Any) -> Grammar:
    """A schema may come as the JSON that it is."""
    if kind == "json_schema" and isinstance(value, dict):
        try:
            value = json.dumps(value)
        except RecursionError:
            raise InvalidRequest(f"sampling_parameters: {kind} is nested too deeply") from None
    if not isinstance(value, str):
        raise InvalidRequest(f"sampling_parameters: {kind} must be a string")
    return Grammar(kind, value)


def _json_list(key: str, value: Any, kind: type, noun: str) -> tuple[Any, ...]:
    if not isinstance(value, list) or not all(type(item) is kind for item in value):
        raise InvalidRequest(f"sampling_parameters: {key} must be a list of {noun}")
    return tuple(value)


def _json_value(key: str, value: Any) -> Any:
    """Numbers may come as strings, as some published clients send them."""
    if key == "stop_token_ids":
        return _json_list(key, value, int, "integers")
    if key == "stop":
        return _json_list(key, [value] if isinstance(value, str) else value, str, "strings")
    kind = SCALARS[key][1]
    if kind is bool:
        if not isinstance(value, bool):
            raise InvalidRequest(f"sampling_parameters: {key} must be true or false")
        return value
    try:
        if isinstance(value, bool) or (kind is int and isinstance(value, float)):
            raise ValueError
        return kind(value)
    except (TypeError, ValueError, OverflowError):
        raise InvalidRequest(
            f"sampling_parameters: {key} is {shown(value)}; it must be {_NOUN[kind]}"
        ) from None


_NOUN = {int: "an integer", float: "a number"}


def _outputs(request: pb.ModelInferRequest) -> tuple[str, ...]:
    names = tuple(output.name for output in request.outputs)
    for name in names:
        if name not in OUTPUTS:
            raise InvalidRequest(f"unknown output {name!r}; known are {', '.join(OUTPUTS)}")
    return names or tuple(OUTPUTS)


def _parameters(request: pb.ModelInferRequest) -> tuple[bool, float | None]:
    """Whether to end with an empty response, and the time-out in seconds; as a parameter in µs, 0 is none."""
    empty_final, timeout_us = False, 0
    for name, value in request.parameters.items():
        kind = value.WhichOneof("parameter_choice")
        if name == EMPTY_FINAL and kind == "bool_param":
            empty_final = value.bool_param
        elif name == TIMEOUT and kind in ("int64_param", "uint64_param") and getattr(value, kind) >= 0:
            timeout_us = getattr(value, kind)
        elif name in (EMPTY_FINAL, TIMEOUT):
            wanted = "a bool" if name == EMPTY_FINAL else "an integer, microseconds"
            raise InvalidRequest(f"parameter {name} must be {wanted}")
        else:
            raise InvalidRequest(f"unknown parameter {name!r}; known are {EMPTY_FINAL}, {TIMEOUT}")
    return empty_final, timeout_us / 1e6 if timeout_us else None


class Answers:
    """Builds the answers of one request: each delta of a stream, or all of it at once."""

    def __init__(self, model: str, request_id: str, prompt_tokens: int, outputs: tuple[str, ...]) -> None:
        self._model = model
        self._id = request_id
        self._prompt_tokens = prompt_tokens
        self._outputs = outputs
        self._logprob = 0.0

    def of(self, delta: Delta) -> pb.ModelInferResponse:
        self._logprob += sum(delta.logprobs)
        values: dict[str, Element] = {
            "text_output": delta.text,
            "finish_reason": "" if delta.outcome is None else delta.outcome.reason,
            "num_input_tokens": self._prompt_tokens,
            "num_output_tokens": len(delta.token_ids),
            "cumulative_logprob": self._logprob,
        }
        response = self.empty()
        for name in self._outputs:
            write_output(response, name, OUTPUTS[name], values[name])
        return response

    def empty(self) -> pb.ModelInferResponse:
        return pb.ModelInferResponse(model_name=self._model, model_version=MODEL_VERSION, id=self._id)
