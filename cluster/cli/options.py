"""Options that several verbs share, each with one meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.config import KvType
from cluster.errors import InvalidRequest
from cluster.gateway.admission import TIERS, Wishes
from cluster.types import Grammar

INT32 = (-(2**31), 2**31 - 1)
RANGES = (
    *((name, *INT32) for name in ("max_tokens", "top_k", "top_logprobs", "n", "priority")),
    ("seed", 0, 2**64 - 1),
)

HINTS = {"n": "-n", "top_logprobs": "--logprobs"}
"""Where an option is not called as its field."""

Address = Annotated[
    str, typer.Option(help="Gateway's HOST:PORT; the cluster that `moemesh up` started if absent.")
]
Addresses = Annotated[
    list[str] | None,
    typer.Option(
        "--address",
        help="Gateway's HOST:PORT; A,B or the option again for several of one cluster: when one is lost, "
        "the next goes on. Those of the cluster that `moemesh up` started if absent.",
    ),
]
ApiKey = Annotated[
    str, typer.Option(envvar="MOEMESH_API_KEY", help="Key for a gateway that asks for one.", show_envvar=True)
]
Ca = Annotated[
    str,
    typer.Option(envvar="MOEMESH_CA", help="PEM of the authority of a gateway with TLS; or: system."),
]
ClientCert = Annotated[
    str, typer.Option(envvar="MOEMESH_CLIENT_CERT", help="PEM to show to a gateway that asks for one.")
]
ClientKey = Annotated[str, typer.Option(envvar="MOEMESH_CLIENT_KEY", help="Private key of --client-cert.")]
Model = Annotated[
    str, typer.Option(help="With --local a library folder, else a name that the gateway serves.")
]
Variant = Annotated[str, typer.Option(help="With --local: variant of the experts, e.g. int8.")]
Kv = Annotated[
    KvType, typer.Option("--kv", help="Type of the KV cache; int8 holds twice the tokens, in other bits.")
]
LocalKv = Annotated[
    KvType | None, typer.Option("--kv", help="With --local: type of the KV cache, bf16 unless said.")
]
Local = Annotated[bool, typer.Option("--local", help="Run the model in this process, without a cluster.")]
Tier = Annotated[str, typer.Option(help=f"Quality tier: {', '.join(TIERS)}.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
MaxTokens = Annotated[int, typer.Option(help="Most tokens to generate.")]
Temperature = Annotated[float, typer.Option(help="0 always takes the most likely token.")]
TopK = Annotated[int, typer.Option(help="Keep the k most likely tokens; 0 keeps all.")]
TopP = Annotated[float, typer.Option(help="Keep the smallest set of this probability.")]
MinP = Annotated[float, typer.Option(help="Drop tokens below this share of the most likely one.")]
RepetitionPenalty = Annotated[float, typer.Option(help="Above 1: tokens already seen become less likely.")]
PresencePenalty = Annotated[
    float, typer.Option(help="Above 0: tokens generated already become less likely, -2 to 2.")
]
FrequencyPenalty = Annotated[
    float, typer.Option(help="Above 0: the more often generated, the less likely, -2 to 2.")
]
Stop = Annotated[
    list[str] | None, typer.Option(help="The text ends before this string; may be given several times.")
]
JsonSchema = Annotated[
    Path | None,
    typer.Option(help="File with a JSON Schema that the text will follow.", exists=True, dir_okay=False),
]
Regex = Annotated[str, typer.Option(help="Regular expression that the whole text will match.")]
Logprobs = Annotated[
    int | None,
    typer.Option("--logprobs", help="With --json: log-probabilities, and those of N alternatives a token."),
]
Samples = Annotated[int, typer.Option("-n", help="Texts to generate, with seeds derived from the one.")]
Priority = Annotated[int, typer.Option(help="Higher is admitted first when requests wait, -100 to 100.")]
Seed = Annotated[int | None, typer.Option(help="Same seed, same tokens; drawn if absent.")]


def read_grammar(schema: Path | None, regex: str) -> Grammar | None:
    """Raises BadParameter for both at once, InvalidRequest for a file that is not UTF-8."""
    if schema is not None and regex:
        raise typer.BadParameter("cannot be used with --json-schema", param_hint="--regex")
    if schema is None:
        return Grammar("regex", regex) if regex else None
    try:
        return Grammar("json_schema", schema.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{schema} is not UTF-8: {error.reason} at byte {error.start}") from None


def check_ranges(wishes: Wishes) -> None:
    """Numbers that do not fit the message's fields, before protobuf says so in its own words."""
    for name, low, high in RANGES:
        value = getattr(wishes, name)
        if value is not None and not low <= value <= high:
            hint = HINTS.get(name, f"--{name.replace('_', '-')}")
            raise typer.BadParameter(f"{value} is not in {low}..{high}", param_hint=hint)


def refuse_without_local(variant: str, kv: KvType | None) -> None:
    """Raises BadParameter for what the cluster has decided when it was started."""
    if variant:
        raise typer.BadParameter("needs --local; a gateway serves one variant", param_hint="--variant")
    if kv is not None:
        raise typer.BadParameter("needs --local; `moemesh up --kv` decides it", param_hint="--kv")
