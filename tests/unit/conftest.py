"""Unit tests run plain classes: a test that starts Ray belongs in tests/integration or tests/fleet."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _ray_stays_out() -> Iterator[None]:
    yield
    ray = sys.modules.get("ray")
    assert ray is None or not ray.is_initialized(), "a unit test initialised Ray; help: test the plain class"
