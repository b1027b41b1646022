"""What several modules of HTTP tests begin with: a gateway in front of a scripted router."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from support.fake_router import FakeRouter
from support.http import serving


@pytest.fixture(scope="module")
def router() -> Iterator[FakeRouter]:
    with FakeRouter() as running:
        yield running


@pytest.fixture(scope="module")
def client(router: FakeRouter) -> Iterator[httpx.Client]:
    with serving(router) as (_, running):
        yield running
