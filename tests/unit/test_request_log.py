"""A bug that ends a request is logged with the ids by which its line and its trace are found."""

from __future__ import annotations

import contextvars
import logging

import pytest

from cluster.config import LogFormat
from cluster.fleet.roles.logs import formatter
from cluster.gateway.caller import request_fields, set_request
from cluster.gateway.http.errors import known


@pytest.mark.parametrize(
    ("trace_id", "expected"),
    [("", {"request_id": "mine"}), ("4bf9", {"request_id": "mine", "trace_id": "4bf9"})],
)
def test_the_line_names_request_and_trace(trace_id, expected, caplog):
    def fail():
        set_request("mine", trace_id)
        known(ValueError("a bug"))

    with caplog.at_level(logging.ERROR, "cluster.gateway.http.errors"):
        contextvars.copy_context().run(fail)
    [record] = caplog.records
    assert record.fields == expected
    assert '"request_id": "mine"' in formatter(LogFormat.json, "gateway").format(record)
    assert not request_fields()
