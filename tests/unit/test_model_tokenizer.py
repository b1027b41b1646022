"""Ids to text: a stream never splits a character and adds up to the whole."""

from __future__ import annotations

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import BrokenCheckpoint, InvalidRequest
from cluster.model.tokenizer import MOST_HELD, ByteDecoder, Decoder, Tokenizer, WindowDecoder
from support.checkpoint_files import byte_tokenizer

TEXTS = ["", "hello world", " leading", "héllo wörld", "世界 🙂🙂👩‍👩‍👧", "a\ufffdb", "\n\n  x\t", "é" * 40]

RAW = byte_tokenizer(1000)
BYTES = Tokenizer.from_bytes(RAW.to_str().encode())


def fallback_tokenizer() -> tokenizers.Tokenizer:
    """Words with a leading ▁ and <0xNN> for everything else, as in Mixtral's."""
    words = ["<unk>", "<s>", "▁", "▁hello", "▁world", "x", *(f"<0x{byte:02X}>" for byte in range(256))]
    model = tokenizers.models.BPE(
        vocab={word: index for index, word in enumerate(words)},
        merges=[],
        unk_token="<unk>",
        byte_fallback=True,
    )
    tokenizer = tokenizers.Tokenizer(model)
    decoders = tokenizers.decoders
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>"])
    return tokenizer


FALLBACK = Tokenizer(fallback_tokenizer())


def pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    return added_up(tokenizer.stream(), ids)


def added_up(stream: Decoder, ids: list[int]) -> list[str]:
    return [*map(stream.push, ids), stream.flush()]


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip(text: str) -> None:
    assert BYTES.decode(BYTES.encode(text)) == text


@pytest.mark.parametrize("text", TEXTS)
def test_a_stream_is_the_text_in_whole_characters(text: str) -> None:
    given_out = pieces(BYTES, BYTES.encode(text))
    assert "".join(given_out) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in given_out)
        assert [piece for piece in given_out if piece] == list(
            text
        )  # one byte a token: a character at a time


@settings(max_examples=300)
@given(st.lists(st.integers(0, 259), max_size=40))
def test_any_bytes_decode_as_the_library_decodes_them(ids: list[int]) -> None:
    whole = RAW.decode(ids)
    assert "".join(pieces(BYTES, ids)) == whole == BYTES.decode(ids)
    assert "".join(added_up(WindowDecoder(BYTES), ids)) == whole


def test_where_texts_are_the_bytes_of_their_tokens_nothing_else_is_looked_at() -> None:
    assert isinstance(BYTES.stream(), ByteDecoder)
    assert isinstance(FALLBACK.stream(), WindowDecoder)


@settings(max_examples=300)
@given(st.lists(st.integers(0, 261), max_size=40))
def test_a_byte_fallback_stream_adds_up(ids: list[int]) -> None:
    assert "".join(pieces(FALLBACK, ids)) == FALLBACK.decode(ids)


@settings(max_examples=100)
@given(st.lists(st.sampled_from(["hello", "world", "é", "世界", "🙂", "<s>"]), max_size=8))
def test_valid_byte_fallback_text_decodes_as_the_library_decodes_it(words: list[str]) -> None:
    raw = fallback_tokenizer()
    ids = []
    for word in words:
        known = raw.token_to_id(f"▁{word}") or raw.token_to_id(word)
        ids += [known] if known else [6 + byte for byte in word.encode()]
    assert "".join(pieces(FALLBACK, ids)) == raw.decode(ids)


def test_an_unfinished_character_behind_a_good_byte_run_spoils_nothing() -> None:
    ids = [6 + byte for byte in "世".encode() + b"\xe7\x95"]
    assert pieces(FALLBACK, [*ids, 5]) == ["", "", "世", "", "", "\ufffd\ufffdx", ""]
    assert "".join(pieces(FALLBACK, ids)) == "世\ufffd\ufffd"


@pytest.mark.parametrize("kind", [ByteDecoder, WindowDecoder])
def test_flush_gives_out_an_unfinished_character_and_starts_afresh(kind: type[Decoder]) -> None:
    stream = kind(BYTES)
    ids = BYTES.encode("a世")
    assert [stream.push(token) for token in ids[:-1]] == ["a", "", ""]
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""
    assert stream.push(ids[0]) == "a"


def test_special_tokens_print_nothing() -> None:
    ids = [1, *BYTES.encode("a"), 2, *BYTES.encode("b"), 3]
    assert pieces(BYTES, ids) == ["", "a", "", "b", "", ""]


@pytest.mark.parametrize("token", [1, 900, BYTES.encode("世")[0]], ids=["special", "unknown", "no character"])
def test_what_prints_nothing_does_not_cost_more_and_more(monkeypatch, token: int) -> None:
    """A client may ask for thousands of tokens beyond the end of a text."""
    decoded: list[int] = []
    whole = BYTES.decode_window
    monkeypatch.setattr(BYTES, "decode_window", lambda ids: (decoded.append(len(ids)), whole(ids))[1])
    stream = WindowDecoder(BYTES)
    for _ in range(4 * MOST_HELD):
        stream.push(token)
    assert max(decoded, default=0) <= 2 * MOST_HELD
    assert stream.push(BYTES.encode("a")[0]).endswith("a")


def test_ids_beyond_the_tokenizer_print_nothing() -> None:
    """Models pad their vocabulary; a padded id may be sampled."""
    assert BYTES.decode([*BYTES.encode("a"), 900, *BYTES.encode("b")]) == "ab"


@pytest.mark.parametrize("text", TEXTS)
def test_the_bytes_of_tokens_add_up_to_the_texts(text: str) -> None:
    assert b"".join(map(BYTES.bytes_of, BYTES.encode(text))) == text.encode()


@settings(max_examples=300)
@given(st.lists(st.integers(0, 270), max_size=40))
def test_the_bytes_of_any_tokens_are_what_is_decoded(ids: list[int]) -> None:
    assert b"".join(map(BYTES.bytes_of, ids)).decode(errors="replace") == RAW.decode(ids)


def test_the_bytes_of_a_token_do_not_depend_on_its_place() -> None:
    """A leading space is a part of its token, also where decoding strips it at the beginning."""
    spelled = {
        **{word: word.replace("▁", " ").encode() for word in ("▁", "▁hello", "x")},
        "<0x41>": b"A",
        "<0xE4>": b"\xe4",
        "<s>": b"",
    }
    raw = fallback_tokenizer()
    assert {token: FALLBACK.bytes_of(raw.token_to_id(token)) for token in spelled} == spelled
    ids = [raw.token_to_id("▁hello"), *(6 + byte for byte in "世".encode()), raw.token_to_id("▁world")]
    assert b"".join(map(FALLBACK.bytes_of, ids)).decode() == " " + raw.decode(ids)


def test_truncation_and_padding_of_the_training_run_are_off() -> None:
    raw = byte_tokenizer(1000)
    raw.enable_truncation(4)
    raw.enable_padding(length=16)
    assert len(Tokenizer.from_bytes(raw.to_str().encode()).encode("0123456789")) == 10


def test_special_tokens_are_added_by_the_tokenizers_own_rules_or_not() -> None:
    raw = byte_tokenizer(1000)
    raw.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 1)]
    )
    tokenizer = Tokenizer.from_bytes(raw.to_str().encode())
    plain = tokenizer.encode("hi", add_special_tokens=False)
    assert tokenizer.encode("hi") == [1, *plain]


def test_bad_text_and_bad_files() -> None:
    with pytest.raises(InvalidRequest, match="surrogate"):
        BYTES.encode("\ud800")
    for data in (b"", b"{}", b"\xff", b'{"model": 1}'):
        with pytest.raises(BrokenCheckpoint, match=r"tokenizer\.json is not readable"):
            Tokenizer.from_bytes(data)
    with pytest.raises(BrokenCheckpoint, match="different models"):
        Tokenizer.from_bytes(RAW.to_str().encode(), vocab=259)
    assert Tokenizer.from_bytes(RAW.to_str().encode(), vocab=260).vocab_size == 260
