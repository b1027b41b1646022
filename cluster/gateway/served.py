"""The model behind this gateway, as far as a gateway needs it: names, limits, text to ids and back."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.errors import InvalidRequest
from cluster.gateway import admission
from cluster.gateway.admission import Limits
from cluster.library.grammars import grammars_of
from cluster.library.reader import Library
from cluster.model.grammar import Grammars
from cluster.model.template import ChatTemplate, Message, render_chat
from cluster.model.text_stream import TextStream
from cluster.model.tokenizer import Tokenizer
from cluster.types import Grammar

INLINE_CHARS = 2048
"""Up to this length tokenising costs less than handing it to a thread and back."""


@dataclass(frozen=True)
class Facts:
    """What clients may want to know of the model. experts, top_k: routed experts of a layer, and of a token;
    hidden: width of a hidden state, and so of an embedding; variants: the default one first."""

    family: str = ""
    layers: int = 0
    experts: int = 0
    top_k: int = 0
    hidden: int = 0
    eos_ids: tuple[int, ...] = ()
    variants: tuple[str, ...] = ()
    variant: str = ""


@dataclass(frozen=True)
class ServedModel:
    """name: what clients ask for; library: digest of its manifest; template None: no chat template."""

    name: str
    limits: Limits
    tokenizer: Tokenizer
    template: ChatTemplate | None = None
    library: str = ""
    facts: Facts = Facts()
    grammars: Grammars | None = None

    @property
    def weights(self) -> str:
        """What computes its tokens: two gateways with the same may go on with each other's answers."""
        return f"{self.library}/{self.facts.variant}"

    @staticmethod
    def of(library: Library, context: int, variant: str = "") -> ServedModel:
        """context: longest sequence that the routers take. Raises LibraryError without a tokenizer."""
        spec = library.spec
        facts = Facts(
            family=spec.family,
            layers=spec.layers,
            experts=spec.experts,
            top_k=spec.top_k,
            hidden=spec.hidden,
            eos_ids=spec.eos_ids,
            variants=library.variants,
            variant=variant or library.variants[0],
        )
        limits = Limits(context, spec.vocab)
        template = library.chat_template()
        tokenizer, grammars = library.tokenizer(), grammars_of(library)
        return ServedModel(library.name, limits, tokenizer, template, library.digest, facts, grammars)

    def text_stream(self, stops: Sequence[str] = ()) -> TextStream:
        return TextStream(self.tokenizer, stops)

    async def tokenise(self, text: str) -> list[int]:
        """Long texts go to a thread and do not stop the streams of others. Raises InvalidRequest."""
        admission.check_text(text)
        return await self._encode(text, special=True)

    async def tokenise_chat(
        self, messages: Sequence[Message], variables: Mapping[str, Any] | None = None
    ) -> list[int]:
        """variables: further values for the template. Raises InvalidRequest, also for a model without one."""
        admission.check_messages(messages)
        return await self._encode(render_chat(self.template, messages, variables=variables), special=False)

    async def detokenise(self, ids: Sequence[int]) -> str:
        if len(ids) <= INLINE_CHARS:
            return self.tokenizer.decode(ids)
        return await asyncio.to_thread(self.tokenizer.decode, ids)

    async def check_grammar(self, grammar: Grammar) -> None:
        """Routers compile it again; here its author hears of what is wrong before anything is queued.

        Raises InvalidRequest.
        """
        if self.grammars is None:
            raise InvalidRequest("this model has no tokenizer, so its output cannot follow a grammar")
        await asyncio.to_thread(self.grammars.compile, grammar)

    async def _encode(self, text: str, special: bool) -> list[int]:
        if len(text) <= INLINE_CHARS:
            return self.tokenizer.encode(text, special)
        return await asyncio.to_thread(self.tokenizer.encode, text, special)
