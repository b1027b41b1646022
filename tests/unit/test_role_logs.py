"""Lines of a role's log, for people and for programs."""

from __future__ import annotations

import json
import logging
import sys

from cluster.config import LogFormat
from cluster.fleet.roles.logs import formatter


def record(message: str, *args: object, error: bool = False, **fields: object) -> logging.LogRecord:
    info = sys.exc_info() if error else None
    made = logging.LogRecord("cluster.gateway", logging.INFO, __file__, 1, message, args, info)
    if fields:
        made.fields = fields
    return made


def test_text_has_fields_behind_the_message() -> None:
    line = formatter(LogFormat.text, "gateway").format(record("request %d", 7, request_id="r", tokens=3))
    assert line.endswith("INFO cluster.gateway: request 7 request_id=r tokens=3")


def test_json_is_one_object_a_line() -> None:
    line = formatter(LogFormat.json, "gateway").format(record("two\nlines ñ", request_id="r", tokens=3))
    assert "\n" not in line
    values = json.loads(line)
    assert values.pop("time").endswith("+00:00")
    assert values == {
        "level": "info",
        "role": "gateway",
        "logger": "cluster.gateway",
        "message": "two\nlines ñ",
        "request_id": "r",
        "tokens": 3,
    }


def test_a_traceback_is_kept_in_both() -> None:
    try:
        raise ValueError("why")
    except ValueError:
        broken = record("it failed", error=True)
    assert "ValueError: why" in formatter(LogFormat.text, "r").format(broken)
    assert "ValueError: why" in json.loads(formatter(LogFormat.json, "r").format(broken))["exception"]
