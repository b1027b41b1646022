"""A real gateway on a real port, with a tokenizer small enough to read: one token a byte."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

import grpc
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from cluster.config import GatewayConfig
from cluster.gateway.admission import Limits
from cluster.gateway.served import ServedModel
from cluster.gateway.service import GatewayService
from cluster.model.template import ChatTemplate
from cluster.model.tokenizer import Tokenizer
from protos import generation_pb2 as pb
from protos import generation_pb2_grpc

MODEL = "tiny"
CONTEXT = 256
TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
TEMPLATE = TURNS + "{% if add_generation_prompt %}<a>{% endif %}"


def byte_tokenizer() -> Tokenizer:
    """Ids are places in the byte-level alphabet: every character beyond ASCII spans several tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return Tokenizer(inner)


def served_model(template: bool = True, context: int = CONTEXT, library: str = "") -> ServedModel:
    return ServedModel(
        name=MODEL,
        limits=Limits(context=context, vocab=256),
        tokenizer=byte_tokenizer(),
        template=ChatTemplate(TEMPLATE) if template else None,
        library=library,
    )


def wait_until(what: Callable[[], Any], message: str, seconds: float = 20.0) -> None:
    """Poll until true; never a measurement, only a bound against hanging."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"waited {seconds:g} s in vain: {message}"
        time.sleep(0.002)


@contextmanager
def gateway(
    routers: Mapping[str, str], served: ServedModel | None = None, **config: Any
) -> Iterator[GatewayService]:
    """Started, connected to all `routers` (id → address), shut down at the end. http_port=0 offers HTTP."""
    service = GatewayService(GatewayConfig(port=0, **config), served or served_model())
    service.start()
    try:
        service.update(routers)
        wait_until(lambda: service.stats()["routers"] == len(routers), "routers to connect")
        yield service
    finally:
        service.shutdown(grace_s=0.2)


@contextmanager
def generation_stub(service: GatewayService) -> Iterator[generation_pb2_grpc.GenerationStub]:
    with grpc.insecure_channel(service.address) as channel:
        yield generation_pb2_grpc.GenerationStub(channel)


def request(text: str = "abc", **fields: Any) -> pb.GenerateRequest:
    """Sampling fields go into `sampling`, all others into the request."""
    names = set(pb.Sampling.DESCRIPTOR.fields_by_name)
    sampling = {name: fields.pop(name) for name in list(fields) if name in names}
    prompt = {} if "token_ids" in fields else {"text": text}
    return pb.GenerateRequest(sampling=pb.Sampling(**sampling), **prompt, **fields)


def serve(pipe: Connection, routers: Mapping[str, str]) -> None:
    """A gateway as a process of `cluster.fleet.children.family`, which says its address."""
    with gateway(routers) as service, suppress(EOFError):
        pipe.send(service.address)
        pipe.recv()
