"""The model behind this gateway, as far as a gateway needs it: names, limits, text to ids and back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.gateway import admission
from cluster.gateway.admission import Limits
from cluster.model.template import ChatTemplate, Message, render_chat
from cluster.model.tokenizer import StreamDecoder, Tokenizer

INLINE_CHARS = 2048
"""Up to this length tokenising costs less than handing it to a thread and back."""


@dataclass(frozen=True)
class ServedModel:
    """name: what clients ask for; library: digest of its manifest; template None: no chat template."""

    name: str
    limits: Limits
    tokenizer: Tokenizer
    template: ChatTemplate | None = None
    library: str = ""

    def stream_decoder(self) -> StreamDecoder:
        return StreamDecoder(self.tokenizer)

    async def tokenise(self, text: str) -> list[int]:
        """Long texts go to a thread and do not stop the streams of others. Raises InvalidRequest."""
        admission.check_text(text)
        return await self._encode(text, special=True)

    async def tokenise_chat(self, messages: Sequence[Message]) -> list[int]:
        """Raises InvalidRequest, also for a model without a template."""
        return await self._encode(render_chat(self.template, messages), special=False)

    async def _encode(self, text: str, special: bool) -> list[int]:
        if len(text) <= INLINE_CHARS:
            return self.tokenizer.encode(text, special)
        return await asyncio.to_thread(self.tokenizer.encode, text, special)
