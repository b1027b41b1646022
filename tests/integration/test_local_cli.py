"""generate and score with --local: the model in this process, and how far it is from its reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from cluster.cli import embed, generate, score
from cluster.config import EngineConfig
from cluster.errors import InvalidRequest, LibraryError
from cluster.library.bundled import open_model
from cluster.library.reader import Library
from support.engines import engine_over, request, run_all, tiny_library

MODEL = "qwen3-tied-gqa"
PROMPT = "In the beginning"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return tiny_library(tmp_path_factory.mktemp("models"), MODEL)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return tiny_library(tmp_path_factory.mktemp("models"), MODEL, ["f32"])


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("And the earth was without form, and void.")
    return file


def invoke(*arguments: object) -> str:
    """What the command prints to stdout; what it raises is raised here."""
    app = typer.Typer()
    for verb in (generate, score, embed):
        verb.register(app)
    result = CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def generated(library: Library, *arguments: object) -> dict[str, Any]:
    shown = invoke("generate", PROMPT, "--local", "--model", library.path, "--json", *arguments)
    values: dict[str, Any] = json.loads(shown)
    return values


def test_it_generates_what_the_engine_generates(library: Library) -> None:
    ids = library.tokenizer().encode(PROMPT)
    with engine_over(library, EngineConfig()) as engine:
        wanted = run_all(engine, [request("a", ids, tokens=8)])["a"].tokens
    answer = generated(library, "--max-tokens", 8)
    ended = answer["finish_reason"] == "stop"
    assert answer["token_ids"] == wanted[: len(answer["token_ids"])]
    assert ended or len(answer["token_ids"]) == 8
    assert answer["completion_tokens"] == len(answer["token_ids"])
    assert answer["prompt_tokens"] == len(ids)
    plain = invoke("generate", PROMPT, "--local", "--model", library.path, "--max-tokens", 8)
    assert plain == answer["text"] + "\n"


def test_a_seed_repeats_a_sample_and_is_drawn_if_absent(library: Library) -> None:
    first = generated(library, "--temperature", 1.5, "--max-tokens", 8)
    again = generated(library, "--temperature", 1.5, "--max-tokens", 8, "--seed", first["seed"])
    assert again["token_ids"] == first["token_ids"]


def test_a_stop_string_ends_a_local_answer_too() -> None:
    library = open_model()
    whole = generated(library, "--max-tokens", 8)
    stop = whole["text"][3:5]
    answer = generated(library, "--max-tokens", 8, "--stop", stop)
    assert (answer["text"], answer["finish_reason"]) == (whole["text"][: whole["text"].index(stop)], "stop")
    assert answer["stop"] == stop
    assert answer["token_ids"] == whole["token_ids"][: answer["completion_tokens"]]


def test_local_samples_are_those_of_their_seeds(library: Library) -> None:
    wishes = ("--temperature", 1.5, "--max-tokens", 8)
    samples = generated(library, *wishes, "--seed", 3, "-n", 3)["samples"]
    assert len({tuple(sample["token_ids"]) for sample in samples}) > 1
    for sample in samples:
        alone = generated(library, *wishes, "--seed", sample["seed"])
        assert alone["token_ids"] == sample["token_ids"]


def test_local_output_follows_a_schema(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "array", "items": {"enum": ["yes", "no"]}, "minItems": 2, "maxItems": 2}')
    shown = invoke("generate", "Is it?", "--local", "--json", "--json-schema", schema, "--logprobs", 2)
    answer = json.loads(shown)
    assert all(each in ("yes", "no") for each in json.loads(answer["text"]))
    assert len(answer["logprobs"]) == len(answer["alternatives"]) == answer["completion_tokens"]
    schema.write_bytes(b"\xff")
    with pytest.raises(InvalidRequest, match="UTF-8"):
        invoke("generate", "Is it?", "--local", "--json-schema", schema)


def test_an_embedding_is_the_engines(library: Library) -> None:
    ids = library.tokenizer().encode(PROMPT)
    with engine_over(library, EngineConfig()) as engine:
        expected = run_all(engine, [request("a", ids, 0, "embed")])["a"].embedding
    found = json.loads(invoke("embed", PROMPT, "--local", "--model", library.path, "--json"))
    assert expected is not None
    assert (found["values"], found["prompt_tokens"]) == (expected.tolist(), len(ids))


def test_no_tokens_load_no_model(library: Library) -> None:
    assert generated(library, "--max-tokens", 0)["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (["", "--local"], InvalidRequest, "prompt is empty"),
        ([PROMPT * 100, "--local"], InvalidRequest, "at most .* fit the context"),
        ([PROMPT, "--local", "--max-tokens", "-1"], InvalidRequest, "max_tokens is -1"),
        ([PROMPT, "--local", "--temperature", "-1"], InvalidRequest, "temperature is -1"),
        ([PROMPT, "--local", "--tier", "lowbit"], InvalidRequest, "unknown tier"),
        ([PROMPT, "--local", "--variant", "int4"], LibraryError, "no variant 'int4', only int8"),
    ],
)
def test_what_is_wrong_is_named(
    library: Library, arguments: list[str], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        invoke("generate", *arguments, "--model", library.path)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_library(tmp_path: Path, text: Path) -> None:
    for arguments in (["generate", PROMPT], ["score", text]):
        with pytest.raises(LibraryError, match=r"is not a library.*moemesh pack"):
            invoke(*arguments, "--local", "--model", tmp_path)


def test_scores_add_up_to_the_perplexity_in_any_window(library: Library, text: Path) -> None:
    whole = json.loads(invoke("score", text, "--local", "--model", library.path, "--json"))
    ids = library.tokenizer().encode(text.read_text())
    assert whole["token_ids"] == ids
    assert len(whole["logprobs"]) == whole["tokens"] - 1 == len(ids) - 1
    assert whole["perplexity"] == pytest.approx(np.exp(-np.mean(whole["logprobs"])))
    assert whole["kl"] is whole["gate_topk_agreement"] is None
    parts = json.loads(invoke("score", text, "--local", "--model", library.path, "--window", 8, "--json"))
    assert len(parts["logprobs"]) == len(ids) - 1
    assert parts["logprobs"][:7] == whole["logprobs"][:7], "the first window has the same context"


def test_a_model_is_compared_with_its_reference(library: Library, reference: Library, text: Path) -> None:
    arguments = ["score", text, "--json", "--reference", reference.path]
    same = json.loads(invoke(*arguments, "--model", reference.path))
    assert (same["kl"], same["gate_topk_agreement"]) == (0.0, 1.0)
    assert same["perplexity"] == same["reference_perplexity"]
    packed = json.loads(invoke(*arguments, "--model", library.path, "--window", 16))
    assert 0 < packed["kl"] < 0.05
    assert 0.8 < packed["gate_topk_agreement"] <= 1
    assert packed["perplexity"] == pytest.approx(packed["reference_perplexity"], rel=0.1)


def test_another_model_is_no_reference(library: Library, text: Path, tmp_path: Path) -> None:
    other = tiny_library(tmp_path, "olmoe-gqa-normed")
    with pytest.raises(InvalidRequest, match="not the same model"):
        invoke("score", text, "--model", library.path, "--reference", other.path)


def test_an_int8_kv_cache_can_be_chosen(library: Library, text: Path) -> None:
    arguments = ["score", text, "--local", "--model", library.path, "--json"]
    bf16, int8 = (json.loads(invoke(*arguments, "--kv", kind)) for kind in ("bf16", "int8"))
    assert bf16["logprobs"] == json.loads(invoke(*arguments))["logprobs"]
    assert int8["logprobs"] != bf16["logprobs"]
    assert int8["perplexity"] == pytest.approx(bf16["perplexity"], rel=0.02)
    assert generated(library, "--kv", "int8")["completion_tokens"] > 0
