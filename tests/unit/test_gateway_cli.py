"""The pure parts of generate, chat and score."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import typer

from cluster.cli import chat, options
from cluster.cli.chat import transcript
from cluster.cli.client import default_address
from cluster.cli.completion import Recorder
from cluster.cli.score import read_text
from cluster.config import KvType
from cluster.errors import InvalidRequest
from cluster.gateway.admission import Wishes


def test_a_transcript_names_who_speaks_next() -> None:
    turns = [("system", "A play."), ("user", "Who is there?"), ("assistant", "I."), ("user", "You?")]
    assert transcript(turns) == "A play.\nUser: Who is there?\nAssistant: I.\nUser: You?\nAssistant:"
    assert chat.NEXT_TURN == "\nUser:"


@pytest.mark.parametrize("wishes", [Wishes(seed=-1), Wishes(seed=1 << 64), Wishes(max_tokens=1 << 40)])
def test_a_number_that_no_field_holds_is_bad_usage(wishes: Wishes) -> None:
    with pytest.raises(typer.BadParameter):
        options.check_ranges(wishes)


def test_a_recorder_counts_time_from_request_to_first_token_and_to_the_end() -> None:
    times = iter([10.0, 10.5, 12.0])
    out = io.StringIO()
    recorder = Recorder(out, lambda: next(times))
    recorder.add("", [])  # the first message has no token
    recorder.add("a", [1])
    recorder.add("bc", [2, 3, 4])
    done = recorder.finish("stop", 7, 4)
    assert out.getvalue() == done.text == "abc"
    assert (done.ttft_ms, done.tokens_per_s, done.token_ids) == (500.0, 2.0, [1, 2, 3, 4])


def test_the_default_address_is_the_running_clusters(state_dir: Path) -> None:
    assert default_address() == "127.0.0.1:8471"
    record = {"version": 1, "phase": "up", "owner": [1, 1.0], "processes": [], "grpc": "127.0.0.1:7000"}
    (state_dir / "state.json").write_text(json.dumps(record))
    assert default_address() == "127.0.0.1:7000"


def test_a_text_must_be_utf8_and_not_empty(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes(b"ok \xff")
    with pytest.raises(InvalidRequest, match="UTF-8"):
        read_text(file)
    file.write_bytes(b"")
    with pytest.raises(InvalidRequest, match="empty"):
        read_text(file)


@pytest.mark.parametrize(
    ("variant", "kv", "words"), [("int4", None, "one variant"), ("", KvType.int8, "moemesh up --kv")]
)
def test_what_the_cluster_has_decided_is_not_asked_of_it(variant: str, kv: KvType | None, words: str) -> None:
    with pytest.raises(typer.BadParameter, match=words):
        options.refuse_without_local(variant, kv)
    options.refuse_without_local("", None)
