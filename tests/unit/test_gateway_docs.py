"""The tables of limits and of errors in the documentation say what the gateway does."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.config import GatewayConfig
from cluster.gateway import admission
from cluster.gateway.http.errors import STATUS
from cluster.gateway.http.openai_request import MOST_PROMPTS
from cluster.gateway.http.server import MAX_HEAD_BYTES
from cluster.gateway.replay import MOST_LOSSES

DOCS = Path(__file__).resolve().parents[2] / "docs"
CONFIG = GatewayConfig()

LIMITS = {
    "a message or body": f"{CONFIG.max_message_bytes >> 20} MiB",
    "HTTP request line and headers": f"{MAX_HEAD_BYTES >> 10} KiB",
    "an HTTP request, from its first byte to its last": f"{CONFIG.request_s:g} s",
    "a write that waits for its client to read": f"{CONFIG.reader_s:g} s",
    "prompts in one HTTP body": f"{MOST_PROMPTS}",
    "samples of one prompt (`n`)": f"{admission.MAX_SAMPLES}",
    "sequences that a router is given at a time": f"{CONFIG.window}",
    "sequences that wait for their turn, the line": f"{CONFIG.max_queued}",
    "of these, those of one key": "as many as places are left",
    "the wait in the line": f"{CONFIG.wait_share:g} of what requests of late took, "
    f"{CONFIG.max_wait_s:g} s at most",
    "a resume window": f"{CONFIG.max_resume_s:g} s",
    "requests in their resume windows, without a reader": f"{CONFIG.max_resumable}",
    "a request whose router was lost, while there is no other": f"{CONFIG.replay_s:g} s",
    "routers that a request may lose in a row, without a token between": f"{MOST_LOSSES}",
    "running requests, after the gateway was told to stop": f"{CONFIG.drain_s:g} s",
    "calls at once on one gRPC connection": f"{CONFIG.max_streams:,}",
    "calls at once on all gRPC connections": f"{CONFIG.max_calls:,}",
    "what a key may have": "`--requests-per-minute`, `--concurrent`",
}


def table(page: str, heading: str) -> list[list[str]]:
    """Cells of the first table under a heading, without its own head."""
    part = (DOCS / page).read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_limits_are_those_of_the_configuration() -> None:
    assert {what: limit for what, limit, _ in table("gateway.md", "Limits")} == LIMITS


@pytest.mark.parametrize("code", [code for code in STATUS if code != "CANCELLED"])
def test_every_error_that_a_client_can_meet_is_explained(code: str) -> None:
    """Nobody reads the answer of what was cancelled."""
    explained = [row[1] for row in table("clients.md", "What an error means") if row[0] == code]
    assert str(STATUS[code]) in explained


def test_an_internal_error_is_explained() -> None:
    assert ["INTERNAL", "500"] in [row[:2] for row in table("clients.md", "What an error means")]


def test_a_reader_that_is_cut_learns_how_long_it_had() -> None:
    rows = [row for row in table("clients.md", "What an error means") if "SlowReader" in row[2]]
    assert [(row[0], f"{CONFIG.reader_s:g} s" in row[2]) for row in rows] == [("RESOURCE_EXHAUSTED", True)]
