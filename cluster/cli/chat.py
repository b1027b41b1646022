"""`moemesh chat`: talk with the model that a gateway serves."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Annotated, TextIO

import typer

from cluster.cli import options
from cluster.cli.client import Access, Client, connect
from cluster.cli.completion import Completion, Recorder
from cluster.cli.options import MaxTokens, MinP, RepetitionPenalty, Temperature, TopK, TopP
from cluster.errors import MoemeshError
from cluster.gateway.admission import DEFAULTS, Wishes
from cluster.gateway.messages import sampling_of
from protos import generation_pb2 as pb

USER, ASSISTANT = "User", "Assistant"
NEXT_TURN = f"\n{USER}:"
HELP = "Ctrl-C stops an answer, Ctrl-D ends the chat, /reset forgets what was said."
BASE_MODEL = (
    "{model} is a base model without a chat template: it continues a transcript of {user} and {assistant} "
    "and does not follow instructions."
)


def register(app: typer.Typer) -> None:
    app.command("chat")(chat)


def chat(
    address: options.Addresses = None,
    api_key: options.ApiKey = "",
    ca: options.Ca = "",
    client_cert: options.ClientCert = "",
    client_key: options.ClientKey = "",
    model: Annotated[str, typer.Option(help="A name that the gateway serves.")] = "",
    system: Annotated[str, typer.Option(help="Instructions that stand before the conversation.")] = "",
    max_tokens: MaxTokens = 200,
    temperature: Temperature = 0.7,
    top_k: TopK = DEFAULTS.top_k,
    top_p: TopP = 0.95,
    min_p: MinP = DEFAULTS.min_p,
    repetition_penalty: RepetitionPenalty = 1.1,
    presence_penalty: options.PresencePenalty = DEFAULTS.presence_penalty,
    frequency_penalty: options.FrequencyPenalty = DEFAULTS.frequency_penalty,
    seed: options.Seed = None,
    stop: options.Stop = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object an answer.")] = False,
) -> None:
    """Talk with the model. All that was said is sent along, less the oldest turns where it is too long."""
    wishes = Wishes(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        stop=tuple(stop or ()),
    )
    options.check_ranges(wishes)
    with connect(address, Access(api_key, ca, client_cert, client_key)) as client:
        info = client.tokenize(pb.TokenizeRequest(model=model, text=" "))
        if not info.chat_template:
            typer.echo(BASE_MODEL.format(model=info.model, user=USER, assistant=ASSISTANT), err=True)
        if sys.stdin.isatty():
            typer.echo(HELP, err=True)
        talk = Talk(client, info, system, sampling_of(wishes))
        _converse(talk, as_json)


def _converse(talk: Talk, as_json: bool) -> None:
    """Read, answer, until the end of the input."""
    while (line := _read_line()) is not None:
        if line == "/reset":
            talk.turns.clear()
        elif line.startswith("/"):
            typer.echo(f"{line.split()[0]} is not a command. {HELP}", err=True)
        elif line:
            _answer(talk, line, as_json)
    if sys.stdin.isatty():
        typer.echo("", err=True)  # Ctrl-D leaves the cursor behind the prompt


def _answer(talk: Talk, line: str, as_json: bool) -> None:
    try:
        done = talk.answer(line, None if as_json else sys.stdout)
    except MoemeshError as error:
        if not sys.stdin.isatty():
            raise
        typer.echo(f"error: {error}", err=True)  # a person may say it again, or in other words
    else:
        typer.echo(json.dumps(done.to_dict()) if as_json else "")


def _read_line() -> str | None:
    """None at the end of the input. Ctrl-C drops what was typed."""
    while True:
        try:
            return input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return None
        except KeyboardInterrupt:
            typer.echo("", err=True)


@dataclass
class Talk:
    """A conversation. turns: (role, content) in order, the user's first; changed by `answer`."""

    client: Client
    info: pb.TokenizeResponse
    system: str
    sampling: pb.Sampling
    turns: list[tuple[str, str]] = field(default_factory=list)

    def answer(self, line: str, out: TextIO | None) -> Completion:
        """Ctrl-C ends the answer early and keeps what there is of it. After an error nothing was said."""
        self.turns.append(("user", line))
        try:
            done = self._ask(out)
        except BaseException:
            del self.turns[-1]
            raise
        self.turns.append(("assistant", done.text.strip()))
        return done

    def _ask(self, out: TextIO | None) -> Completion:
        self._make_room()
        if self.info.chat_template:
            request = pb.ChatRequest(model=self.info.model, sampling=self.sampling, messages=self._messages())
            return stoppable(self.client.chat(request), out)
        transcribed = pb.GenerateRequest(
            model=self.info.model, sampling=self.sampling, text=transcript(self._turns())
        )
        transcribed.sampling.stop.append(NEXT_TURN)
        return stoppable(self.client.generate(transcribed), out)

    def _make_room(self) -> None:
        """Drop the oldest exchange until prompt and answer fit; one turn is kept whatever its length."""
        room = self.info.context - self.sampling.max_tokens
        while len(self.turns) > 2 and self._tokens() > room:
            del self.turns[:2]

    def _tokens(self) -> int:
        request = pb.TokenizeRequest(model=self.info.model)
        if self.info.chat_template:
            request.messages.messages.extend(self._messages())
        else:
            request.text = transcript(self._turns())
        return len(self.client.tokenize(request).token_ids)

    def _turns(self) -> list[tuple[str, str]]:
        return [("system", self.system), *self.turns] if self.system else self.turns

    def _messages(self) -> list[pb.ChatMessage]:
        return [pb.ChatMessage(role=role, content=content) for role, content in self._turns()]


def transcript(turns: list[tuple[str, str]]) -> str:
    """For a base model: lines of "role: text", and the name of who speaks next."""
    names = {"user": f"{USER}: ", "assistant": f"{ASSISTANT}: ", "system": ""}
    return "\n".join([*(names[role] + content for role, content in turns), f"{ASSISTANT}:"])


def stoppable(answers: Generator[pb.GenerateResponse, None, None], out: TextIO | None) -> Completion:
    """As `remote_completion`, ended early by Ctrl-C."""
    recorder = Recorder(out)
    try:
        with closing(answers) as responses:
            for response in responses:
                recorder.take(response)
    except KeyboardInterrupt:
        return recorder.cut("aborted")
    return recorder.completion
