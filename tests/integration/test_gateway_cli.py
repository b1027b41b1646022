"""generate, chat and score as a client of a real gateway."""

from __future__ import annotations

import io
import json
import math
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cluster.cli import chat, embed, generate, score
from cluster.cli.chat import Talk
from cluster.cli.client import Client, connect
from cluster.cli.completion import stream_completion
from cluster.errors import InvalidRequest, Unavailable, UnknownModel
from cluster.types import sample_seed
from protos import generation_pb2 as pb
from support.fake_router import WIDTH, FakeRouter, logprob
from support.gateways import byte_tokenizer, gateway, served_model, wait_until


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with FakeRouter() as router, gateway({"r0": router.address}) as service:
        yield service.address


@pytest.fixture
def app() -> typer.Typer:
    made = typer.Typer()
    for verb in (generate, chat, score, embed):
        verb.register(made)
    return made


def output(app: typer.Typer, *arguments: str, stdin: str | None = None) -> str:
    """What the command prints to stdout; what it raises is raised here."""
    result = CliRunner().invoke(app, arguments, input=stdin, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_generate_streams_text(app: typer.Typer, address: str) -> None:
    assert output(app, "generate", "añ", "--max-tokens", "6", "--address", address) == "añañ\n"


def test_generate_reads_a_prompt_from_stdin(app: typer.Typer, address: str) -> None:
    shown = output(app, "generate", "-", "--max-tokens", "4", "--address", address, stdin="xy")
    assert shown == "xyxy\n"


def test_generate_prints_json(app: typer.Typer, address: str) -> None:
    arguments = ["--max-tokens", "4", "--temperature", "0.5", "--seed", "2", "--json", "--address", address]
    values = json.loads(output(app, "generate", "abcd", *arguments))
    assert values.pop("ttft_ms") > 0
    assert values.pop("tokens_per_s") > 0
    assert values == {
        "text": "cdab",
        "token_ids": byte_tokenizer().encode("cdab"),
        "prompt_tokens": 4,
        "completion_tokens": 4,
        "finish_reason": "length",
        "tier": "exact",
        "seed": 2,
    }


def test_generate_stops_at_a_string_and_says_which(app: typer.Typer, address: str) -> None:
    arguments = ["--max-tokens", "8", "--stop", "zz", "--stop", "da", "--json", "--address", address]
    values = json.loads(output(app, "generate", "abcd", *arguments))
    assert (values["text"], values["finish_reason"], values["stop"]) == ("abc", "stop", "da")
    assert values["completion_tokens"] == 5
    plain = output(app, "generate", "abcd", "--max-tokens", "8", "--stop", "da", "--address", address)
    assert plain == "abc\n"


def test_generate_prints_several_samples(app: typer.Typer, address: str) -> None:
    arguments = ["--max-tokens", "3", "--temperature", "1", "--seed", "2", "-n", "3", "--address", address]
    samples = json.loads(output(app, "generate", "abcd", *arguments, "--json"))["samples"]
    assert [sample["seed"] for sample in samples] == [sample_seed(2, i) for i in range(3)]
    shown = output(app, "generate", "abcd", *arguments)
    assert shown == "".join(f"[{i}] {sample['text']}\n" for i, sample in enumerate(samples))


def test_generate_prints_log_probabilities_if_asked(app: typer.Typer, address: str) -> None:
    arguments = ["--max-tokens", "3", "--json", "--address", address]
    values = json.loads(output(app, "generate", "abcd", *arguments, "--logprobs", "2"))
    assert values["logprobs"] == [logprob(i) for i in range(3)]
    assert values["alternatives"] == [[[0, logprob(0)], [1, logprob(1)]]] * 3
    values = json.loads(output(app, "generate", "abcd", *arguments, "--logprobs", "0"))
    assert (len(values["logprobs"]), values["alternatives"]) == (3, [])
    assert "logprobs" not in json.loads(output(app, "generate", "abcd", *arguments))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--logprobs", "2"], "--json"),
        (["--logprobs", str(1 << 40), "--json"], "--logprobs"),
        (["-n", str(1 << 40)], "-n"),
        (["--regex", "a", "--json-schema", __file__], "--json-schema"),
    ],
)
def test_generate_explains_bad_usage(app: typer.Typer, address: str, arguments: list[str], says: str) -> None:
    result = CliRunner().invoke(app, ["generate", "a", *arguments, "--address", address])
    assert result.exit_code == 2
    assert says in result.output


def test_embed_prints_a_vector(app: typer.Typer, address: str, tmp_path: Path) -> None:
    values = json.loads(output(app, "embed", "abcdef", "--json", "--address", address))
    ids = byte_tokenizer().encode("abcdef")
    assert values == {
        "dimension": WIDTH,
        "prompt_tokens": 6,
        "normalised": False,
        "values": ids[:WIDTH],
    }
    file = tmp_path / "text"
    file.write_text("abcdef")
    shown = output(app, "embed", "--file", str(file), "--normalise", "--address", address)
    assert shown.startswith(f"{WIDTH} values of length 1 for 6 tokens: ")
    assert output(app, "embed", "-", "--normalise", "--address", address, stdin="abcdef") == shown
    with pytest.raises(InvalidRequest, match="empty"):
        output(app, "embed", "--address", address)


def test_generate_names_what_is_wrong(app: typer.Typer, address: str) -> None:
    for arguments, error in (
        (["", "--address", address], InvalidRequest),
        (["a", "--max-tokens", "-1", "--address", address], InvalidRequest),
        (["a", "--temperature", "-1", "--address", address], InvalidRequest),
        (["a", "--tier", "lowbit", "--address", address], InvalidRequest),
        (["a", "--model", "gpt", "--address", address], UnknownModel),
        (["a", "--address", "127.0.0.1:1"], Unavailable),
    ):
        with pytest.raises(error) as caught:
            output(app, "generate", *arguments)
        assert "\n" not in str(caught.value)


def test_variant_needs_local(app: typer.Typer, address: str) -> None:
    result = CliRunner().invoke(app, ["generate", "a", "--variant", "int4", "--address", address])
    assert result.exit_code == 2


def test_stream_completion_writes_as_it_comes(address: str) -> None:
    out = io.StringIO()
    done = stream_completion(address, "abc", 5, out)
    assert out.getvalue() == done.text == "abcab"
    assert done.completion_tokens == 5


def test_a_completion_that_is_given_up_is_aborted() -> None:
    with (
        FakeRouter(paused=True) as router,
        gateway({"r0": router.address}) as service,
        connect(service.address) as client,
    ):
        stream = client.generate(pb.GenerateRequest(text="abc", sampling=pb.Sampling(max_tokens=9)))
        next(stream)
        wait_until(lambda: len(router.running) == 1, "the request")
        stream.close()
        wait_until(lambda: not router.running, "its end")


def test_score_in_windows_scores_every_token_once(app: typer.Typer, address: str, tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text("abcdefghij")
    arguments = [str(file), "--window", "4", "--json", "--address", address]
    values = json.loads(output(app, "score", *arguments))
    assert values["tokens"] == 10
    assert values["token_ids"] == byte_tokenizer().encode("abcdefghij")
    # The scripted router gives the place within its window away: 3 a window.
    assert values["logprobs"] == [logprob(i % 3) for i in range(9)]
    assert values["perplexity"] == pytest.approx(math.exp(-sum(values["logprobs"]) / 9))
    assert values["gate_topk_agreement"] is None


def test_score_of_a_text_longer_than_the_context(app: typer.Typer, address: str, tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text("x" * 1000)
    values = json.loads(output(app, "score", str(file), "--json", "--address", address))
    assert len(values["logprobs"]) == 999


def talk(client: Client, max_tokens: int) -> Talk:
    info = client.tokenize(pb.TokenizeRequest(text=" "))
    return Talk(client, info, "", pb.Sampling(max_tokens=max_tokens))


def decoded(prompt: list[int]) -> str:
    return byte_tokenizer().decode(prompt)


def test_chat_sends_what_was_said(app: typer.Typer) -> None:
    with FakeRouter() as router, gateway({"r0": router.address}) as service:
        arguments = ["--max-tokens", "3", "--temperature", "0", "--address", service.address]
        shown = output(app, "chat", *arguments, stdin="hi\n\nyo\n/reset\nnew\n")
    assert shown == "<us\n<us\n<us\n"
    assert [decoded(one.prompt) for one in router.counts.submitted] == [
        "<user>hi<a>",
        "<user>hi<assistant><us<user>yo<a>",
        "<user>new<a>",
    ]


def test_chat_with_a_base_model_stops_at_the_next_turn(app: typer.Typer) -> None:
    written = byte_tokenizer().encode(" Well met.\nUser: What now?\nAssistant: Go.")
    router = FakeRouter(lambda prompt, sampling: written)
    with router, gateway({"r0": router.address}, served_model(template=False)) as service:
        arguments = ["--max-tokens", "90", "--address", service.address]
        result = CliRunner().invoke(app, ["chat", *arguments], input="hi\nyo\n", catch_exceptions=False)
    assert "base model" in result.stderr
    assert result.stdout == " Well met.\n" * 2
    assert [decoded(one.prompt) for one in router.counts.submitted] == [
        "User: hi\nAssistant:",
        "User: hi\nAssistant: Well met.\nUser: yo\nAssistant:",
    ]


def test_chat_drops_the_oldest_turns_when_the_context_is_full() -> None:
    with (
        FakeRouter() as router,
        gateway({"r0": router.address}) as service,
        connect(service.address) as client,
    ):
        conversation = talk(client, max_tokens=50)
        for n in range(6):
            conversation.answer(f"{n}" * 30, None)
    last = decoded(router.counts.submitted[-1].prompt)
    assert "5" * 30 in last
    assert "0" * 30 not in last
    assert len(router.counts.submitted[-1].prompt) <= 256 - 50


def test_an_interrupt_ends_the_answer_and_keeps_the_chat() -> None:
    """Ctrl-C while an answer streams: what came is kept, the request is aborted, the next turn works."""
    with (
        FakeRouter(paused=True) as router,
        gateway({"r0": router.address}) as service,
        connect(service.address) as client,
    ):
        conversation = talk(client, max_tokens=50)
        done = conversation.answer("hi", Interrupting(router))
        assert done.finish_reason == "aborted"
        assert done.text == "<"
        wait_until(lambda: not router.running, "the request to be aborted")
        assert conversation.turns == [("user", "hi"), ("assistant", "<")]
        router.resume()
        assert conversation.answer("yo", None).finish_reason == "length"


class Interrupting(io.StringIO):
    """Gives the router one step, then interrupts as soon as the text of it is written."""

    def __init__(self, router: FakeRouter) -> None:
        super().__init__()
        self._thread = threading.Thread(target=self._step, args=(router,))
        self._thread.start()

    def _step(self, router: FakeRouter) -> None:
        wait_until(lambda: len(router.running) == 1, "the request")
        router.step()

    def write(self, text: str) -> int:
        self._thread.join()
        raise KeyboardInterrupt


def test_after_an_error_nothing_was_said(address: str) -> None:
    with connect(address) as client:
        conversation = talk(client, max_tokens=-1)
        with pytest.raises(InvalidRequest):
            conversation.answer("hi", None)
        assert conversation.turns == []
