"""Clients that we did not write, each in a process and an environment of its own, against `moemesh up`.

Whatever dialect they speak, they get the tokens that our own gets.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cluster.gateway.grpc_server import ADMIN
from cluster.gateway.service import SERVICES
from protos import open_inference_pb2
from support.own_client import Served
from support.pages import PAGE, ROOT, block, generate_stubs, shell
from support.scripts import run

pytestmark = [pytest.mark.clients, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

PROMPT, TOKENS = "And it came to pass", 16
"""Of the page's snippets."""


def test_tritonclient(client_python: Path, served: Served) -> None:
    seen = run(client_python, "run_triton.py", "sync", served.grpc, served.model)
    assert seen["live"]
    assert seen["ready"]
    assert seen["model_ready"]
    assert (seen["server"], seen["id"]) == ("moemesh", "r1")
    assert "text_input" in seen["inputs"]
    ours = served.generate("añ", 6)
    assert seen["answer"]["text_output"] == ours.text
    assert seen["answer"]["finish_reason"] == ours.reason
    counts = ours.prompt_tokens, len(ours.token_ids)
    assert (seen["answer"]["num_input_tokens"], seen["answer"]["num_output_tokens"]) == counts
    assert seen["answer"]["cumulative_logprob"] == pytest.approx(ours.logprob, rel=1e-5)
    assert seen["sampled"]["text_output"] == served.generate("abcd", 4, temperature=0.5, seed=2).text
    short = served.generate("ab", 3).text
    assert seen["one_output"] == {"text_output": short}
    assert seen["with_deadline"]["text_output"] == short


def test_tritonclient_aio(client_python: Path, served: Served) -> None:
    seen = run(client_python, "run_triton.py", "aio", served.grpc, served.model)
    assert seen["ready"]
    assert seen["texts"] == [served.generate(f"{n}ñ", 10).text for n in range(8)]


def test_tritonclient_stream(client_python: Path, served: Served) -> None:
    seen = run(client_python, "run_triton.py", "stream", served.grpc, served.model)
    prompts = {"one": "añ漢", "two": "xyz"}
    assert seen["texts"] == {name: served.generate(text, 12).text for name, text in prompts.items()}
    assert seen["empty_finals"] == 2
    assert "max_tokens" in seen["error"]
    assert seen["after_error"] == served.generate("ab", 3).text
    assert seen["good_error"] is None


def test_tritonclient_aio_stream(client_python: Path, served: Served) -> None:
    seen = run(client_python, "run_triton.py", "aio_stream", served.grpc, served.model)
    assert seen["texts"] == {str(n): served.generate(f"{n}漢", 8).text for n in range(4)}


def test_tritonclient_sees_our_status_codes(client_python: Path, served: Served) -> None:
    assert run(client_python, "run_triton.py", "errors", served.grpc, served.model) == {
        "unknown_model": "StatusCode.NOT_FOUND",
        "wrong_shape": "StatusCode.INVALID_ARGUMENT",
        "empty_prompt": "StatusCode.INVALID_ARGUMENT",
        "negative": "StatusCode.INVALID_ARGUMENT",
        "temperature": "StatusCode.INVALID_ARGUMENT",
        "not_offered": "StatusCode.UNIMPLEMENTED",
    }


def test_what_the_server_tells_of_its_model(client_python: Path, served: Served) -> None:
    seen = run(client_python, "run_triton.py", "about", served.grpc, served.model)
    assert (seen["count"], seen["inferences"]) == (3, 3)
    assert seen["ns"] > 0
    assert seen["decoupled"]
    assert seen["required"] == ["text_input"]
    assert seen["output_types"]["text_output"] == open_inference_pb2.TYPE_STRING
    assert seen["index"] == [[served.model, "1", "READY"]]
    assert "RepositoryModelLoad is not offered" in seen["sentence"]


@pytest.fixture(scope="module")
def openai_saw(openai_python: Path, served: Served) -> Any:
    return run(openai_python, "run_openai.py", "all", served.http, served.model)


def test_openai(openai_saw: Any, served: Served) -> None:
    seen = openai_saw["sync"]
    assert (seen["models"], seen["model"]) == ([served.model], served.model)
    ours = served.generate("añ漢", 12)
    assert (seen["streamed"], seen["stream_finish"]) == (ours.text, [ours.reason])
    usage = {"prompt_tokens": ours.prompt_tokens, "completion_tokens": len(ours.token_ids)}
    assert seen["stream_usage"] == usage
    texts = [served.generate(prompt, 3).text for prompt in ("abc", "abc", "xy", "xy")]
    assert seen["several"] == [list(pair) for pair in enumerate(texts)]
    assert seen["whole"] == served.generate("abcdef", 20).text
    assert seen["stopped"] == [seen["whole"][: seen["whole"].index(seen["stop"])], "stop"]
    assert len(seen["token_logprobs"]) == 2
    assert all(value < 0 for value in seen["token_logprobs"])
    assert seen["extra"] == served.generate("ab", 2, ignore_eos=True).text, (
        "one candidate is as good as greedy"
    )
    assert seen["seeded"] == served.generate("abcd", 4, temperature=0.5, seed=2).text
    assert len(set(seen["embedding"])) > 100


def test_openai_async_streams(openai_saw: Any, served: Served) -> None:
    assert openai_saw["aio"]["texts"] == [served.generate(f"{n}ñ", 14).text for n in range(8)]


def test_openai_sees_our_statuses(openai_saw: Any) -> None:
    assert openai_saw["errors"] == {
        "unknown_model": ["NotFoundError", 404, "not_found_error"],
        "empty_prompt": ["BadRequestError", 400, "invalid_request_error"],
        "negative": ["BadRequestError", 400, "invalid_request_error"],
        "temperature": ["BadRequestError", 400, "invalid_request_error"],
        "not_offered": ["BadRequestError", 400, "invalid_request_error"],
        "unknown_key": ["BadRequestError", 400, "invalid_request_error"],
    }


def test_a_client_that_knows_only_the_address(client_python: Path, served: Served) -> None:
    seen = run(client_python, "run_reflection.py", served.grpc)
    ours = served.generate("añ", 6)
    assert {*SERVICES, ADMIN, "grpc.health.v1.Health"} <= set(seen["services"])
    assert (seen["text"], seen["ids"]) == (ours.text, ours.token_ids)
    assert seen["reason"] == f"FINISH_REASON_{ours.reason.upper()}"
    assert seen["health"] == "SERVING"
    assert seen["ready"] is True


def ask(program: Path, served: Served, *what: str, data: str = "") -> str:
    """grpcurl's answer."""
    body = ("-d", data) if data else ()
    done = subprocess.run(
        [str(program), "-plaintext", *body, served.grpc, *what],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def objects(text: str) -> list[Any]:
    """JSON values one after the other."""
    found, decoder = [], json.JSONDecoder()
    while text := text.lstrip():
        value, end = decoder.raw_decode(text)
        found.append(value)
        text = text[end:]
    return found


def test_grpcurl(grpcurl: Path, served: Served) -> None:
    """Without our files: it asks the server what it speaks."""
    services = ask(grpcurl, served, "list").split()
    assert {*SERVICES, ADMIN, "grpc.health.v1.Health"} <= set(services)
    assert "rpc Generate" in ask(grpcurl, served, "describe", "moemesh.v1.Generation")
    asked = json.dumps({"text": "añ", "sampling": {"max_tokens": 6}})
    parts = objects(ask(grpcurl, served, "moemesh.v1.Generation/Generate", data=asked))
    ours = served.generate("añ", 6)
    assert "".join(part.get("text", "") for part in parts) == ours.text
    assert parts[-1]["finish"]["reason"] == f"FINISH_REASON_{ours.reason.upper()}"
    assert json.loads(ask(grpcurl, served, "grpc.health.v1.Health/Check")) == {"status": "SERVING"}
    ready = ask(grpcurl, served, "inference.GRPCInferenceService/ServerReady")
    assert json.loads(ready) == {"ready": True}
    assert json.loads(ask(grpcurl, served, "moemesh.v1.Admin/GetStats"))["routers"]


def snippet(label: str, served: Served) -> str:
    """The block of docs/clients.md of this label, with the addresses of the cluster."""
    return block(label).replace("127.0.0.1:8471", served.grpc).replace("127.0.0.1:8472", served.http)


def written(folder: Path, name: str, code: str) -> str:
    (folder / name).write_text(code)
    return name


@pytest.fixture(scope="module")
def answer(served: Served) -> str:
    return served.generate(PROMPT, TOKENS).text


def test_the_page_s_openai(openai_python: Path, served: Served, answer: str, tmp_path: Path) -> None:
    file = written(tmp_path, "client.py", snippet("python openai", served))
    assert shell([str(openai_python), file], tmp_path) == answer


def test_the_page_s_tritonclient(client_python: Path, served: Served, answer: str, tmp_path: Path) -> None:
    file = written(tmp_path, "client.py", snippet("python tritonclient", served))
    assert shell([str(client_python), file], tmp_path) == answer


def test_the_page_s_grpcio(client_python: Path, served: Served, answer: str, tmp_path: Path) -> None:
    generate_stubs(client_python, tmp_path)
    file = written(tmp_path, "client.py", snippet("python grpcio", served))
    assert shell([str(client_python), file], tmp_path) == answer


def test_the_page_s_node(node_folder: Path, served: Served, answer: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / "protos" / "generation.proto", tmp_path)
    (tmp_path / "node_modules").symlink_to(node_folder / "node_modules")
    file = written(tmp_path, "client.js", snippet("js node", served))
    assert shell(["node", file], tmp_path) == answer


def test_the_page_s_curl(served: Served, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    commands = re.findall(r"^```sh\n(curl .*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    shown = shell(["sh", "-c", commands[0].replace("127.0.0.1:8472", served.http)], tmp_path)
    assert shown.rstrip().endswith("data: [DONE]")


def test_the_page_s_grpcurl(
    grpcurl: Path, served: Served, answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{grpcurl.parent}:{os.environ['PATH']}")
    (commands,) = re.findall(r"^```sh\n(grpcurl .*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    shown = shell(["sh", "-c", commands.replace("127.0.0.1:8471", served.grpc)], tmp_path)
    assert shown.startswith("grpc.health.v1.Health\n")
    parts = objects(shown[shown.index("{") :])
    assert "".join(part.get("text", "") for part in parts) == answer
