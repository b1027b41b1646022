"""A thread on one core, and where it was afterwards."""

from __future__ import annotations

import os

import pytest

from cluster.errors import ConfigError
from cluster.experiments.live.pin import cores, pin, pinned


def test_a_thread_is_on_its_core_while_the_context_lasts():
    before = cores()
    with pinned(before[-1]):
        assert cores() == (before[-1],)
    assert cores() == before
    with pinned(None):
        assert cores() == before


def test_a_core_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="core 100000 is none of"):
        pin(100000)


def test_a_system_that_binds_nothing_says_so(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    with pytest.raises(ConfigError, match="Linux"):
        cores()
