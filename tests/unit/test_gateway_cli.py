"""The pure parts of generate, chat and score."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import typer

from cluster.cli import chat, options
from cluster.cli.chat import StopAt, transcript
from cluster.cli.client import default_address
from cluster.cli.completion import Recorder
from cluster.cli.score import read_text
from cluster.config import KvType
from cluster.errors import InvalidRequest
from cluster.gateway.admission import Wishes


@pytest.mark.parametrize("cut", range(1, 16))
def test_a_marker_is_found_however_the_text_is_cut(cut: int) -> None:
    text = "well\nUse it.\nUser: and more"
    stop = StopAt("\nUser:")
    pieces = [text[i : i + cut] for i in range(0, len(text), cut)]
    assert "".join(stop.push(piece) for piece in pieces) == "well\nUse it."
    assert stop.found


def test_a_held_back_beginning_is_given_out_at_the_end() -> None:
    stop = StopAt("\nUser:")
    assert stop.push("yes\nUs") == "yes"
    assert stop.flush() == "\nUs"
    assert not stop.found


def test_a_transcript_names_who_speaks_next() -> None:
    turns = [("system", "A play."), ("user", "Who is there?"), ("assistant", "I."), ("user", "You?")]
    assert transcript(turns) == "A play.\nUser: Who is there?\nAssistant: I.\nUser: You?\nAssistant:"
    assert chat.NEXT_TURN == "\nUser:"


def test_absent_wishes_stay_absent_in_the_message() -> None:
    sampling = options.to_sampling(Wishes(max_tokens=3, temperature=0.0))
    assert sampling.max_tokens == 3
    assert sampling.HasField("temperature")
    assert not sampling.HasField("seed")


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
