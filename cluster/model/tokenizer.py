"""Text to token ids and back, over Hugging Face's `tokenizers`."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from typing import Protocol

import tokenizers

from cluster.errors import BrokenCheckpoint, InvalidRequest

REPLACEMENT = "\ufffd"  # what decoding puts where bytes are no complete UTF-8 character

MOST_HELD = 64
"""Ids that may wait for the end of a character, which has four bytes at most. Beyond are invalid bytes, and
without a bound each of them would cost as much as all before it."""


_FALLBACK = re.compile("<0x([0-9A-F]{2})>")
"""A byte in a vocabulary of words, as SentencePiece names it."""


def _byte_level() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for: printable ones of Latin-1 for
    themselves, those from 256 on, in order, for the others (Radford et al. 2019)."""
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    others = [byte for byte in range(256) if chr(byte) not in alphabet]
    stand_ins = sorted(character for character in alphabet if ord(character) > 255)
    same = {character: ord(character) for character in alphabet if ord(character) < 256}
    return same | dict(zip(stand_ins, others, strict=True))


_BYTES = _byte_level()


class Tokenizer:
    """Immutable but for what it remembers; safe to share between threads."""

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        inner.no_truncation()  # tokenizer.json may carry the settings of its last training run
        inner.no_padding()
        self._inner = inner
        added = inner.get_added_tokens_decoder()
        self._special = frozenset(number for number, token in added.items() if token.special)
        self._bytes: dict[int, bytes] = {}
        self._byte_level = isinstance(inner.decoder, tokenizers.decoders.ByteLevel)
        self.vocab_size = max(inner.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        """One more than the largest id."""

    @staticmethod
    def from_bytes(data: bytes, vocab: int | None = None) -> Tokenizer:
        """From the bytes of a tokenizer.json; `vocab`: the model's vocabulary, checked against it.

        Raises BrokenCheckpoint if it cannot be parsed or has ids that the model has no embedding for. Fewer
        ids than the vocabulary are fine: models pad theirs.
        """
        try:
            inner = tokenizers.Tokenizer.from_str(data.decode())
        except Exception as error:  # tokenizers raises bare Exception for a file it cannot parse
            raise BrokenCheckpoint(f"tokenizer.json is not readable ({error}); download it again") from error
        tokenizer = Tokenizer(inner)
        if vocab is not None and tokenizer.vocab_size > vocab:
            raise BrokenCheckpoint(
                f"tokenizer.json has ids up to {tokenizer.vocab_size - 1}, the model's end at {vocab - 1}; "
                "the two belong to different models"
            )
        return tokenizer

    def to_json(self) -> str:
        """As a tokenizer.json."""
        return str(self._inner.to_str())

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids. add_special_tokens: let the tokenizer's own rules add e.g. a beginning of sequence;
        False for text from a chat template, which has them already."""
        try:
            return list(self._inner.encode(text, add_special_tokens=add_special_tokens).ids)
        except (UnicodeEncodeError, TypeError) as error:
            raise InvalidRequest("the text is not valid Unicode (a lone surrogate?)") from error

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids` without special tokens: by definition what `stream` makes of them."""
        stream = self.stream()
        return "".join([*map(stream.push, ids), stream.flush()])

    def stream(self) -> Decoder:
        """For one text, its ids one at a time."""
        return ByteDecoder(self) if self._byte_level else WindowDecoder(self)

    def prints(self, token_id: int) -> bool:
        """False for special tokens and ids that no token has: decoding leaves them out."""
        return token_id not in self._special and self._inner.id_to_token(token_id) is not None

    def bytes_of(self, token_id: int) -> bytes:
        """What one token adds to a text behind others, maybe a part of a character; none for special ones."""
        spelled = self._bytes.get(token_id)
        if spelled is None:
            spelled = self._bytes[token_id] = self._spell(token_id)
        return spelled

    def _spell(self, token_id: int) -> bytes:
        # Behind itself, since a decoder may strip the space in front of a text.
        once, twice = self.decode_window([token_id]), self.decode_window([token_id] * 2)
        if REPLACEMENT not in twice:
            return twice[len(once) :].encode()
        # No whole characters: its name in the vocabulary says which bytes.
        name = str(self._inner.id_to_token(token_id))
        if (byte := _FALLBACK.fullmatch(name)) is not None:
            return bytes([int(byte[1], 16)])
        return bytes(_BYTES[each] for each in name) if _BYTES.keys() >= set(name) else name.encode()

    def decode_window(self, ids: Sequence[int]) -> str:
        """The library's own decoding of a run of ids. Parts of a text do not simply concatenate."""
        return str(self._inner.decode(ids, skip_special_tokens=True))


class Decoder(Protocol):
    """Ids one at a time in, text out: `push` returns what has become certain, `flush` the rest, with U+FFFD
    for an unfinished character; the decoder starts afresh then. Never splits a character."""

    def push(self, token_id: int) -> str: ...

    def flush(self) -> str: ...


class ByteDecoder:
    """For vocabularies whose texts are the bytes of their tokens, one behind the other: a quarter of the time
    of a WindowDecoder, which asks the library twice a token."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._bytes_of = tokenizer.bytes_of
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode

    def push(self, token_id: int) -> str:
        return self._decode(self._bytes_of(token_id))

    def flush(self) -> str:
        return self._decode(b"", True)


class WindowDecoder:
    """For any vocabulary. Text is decoded behind the last piece given out, since a token's text may depend on
    the token before it (a leading space). tokenizers' own DecodeStream was rejected: it keeps an unfinished
    character for ever where a flush should give it out, and raises where byte tokens turn out to be invalid.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._given: list[int] = []  # the ids of the last piece given out: context for the next
        self._before = ""  # their text
        self._held: list[int] = []  # ids since then

    def push(self, token_id: int) -> str:
        if not self._tokenizer.prints(token_id):
            return ""
        self._held.append(token_id)
        text = self._pending()
        unfinished = not text or text.endswith(REPLACEMENT)
        if unfinished and len(self._held) < MOST_HELD:
            return ""
        self._take(self._held)
        return text

    def flush(self) -> str:
        text = self._pending()
        self._take([])
        return text

    def _take(self, given: list[int]) -> None:
        self._given, self._held = given, []
        self._before = self._tokenizer.decode_window(given)

    def _pending(self) -> str:
        both = self._tokenizer.decode_window(self._given + self._held)
        if both.startswith(self._before):
            return both[len(self._before) :]
        # Byte-fallback decoders judge a run of byte tokens as a whole: an unfinished character behind a good
        # one spoils both. The good one has been given out, so the rest is decoded by itself.
        return self._tokenizer.decode_window(self._held)
