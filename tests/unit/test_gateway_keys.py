"""API keys, their limits and their scopes, without a server."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import ConfigError, Forbidden, RateLimited, Unauthenticated
from cluster.gateway.caller import Caller
from cluster.gateway.security import keys
from cluster.gateway.security.guard import Guard
from cluster.gateway.security.keys import Scope
from cluster.gateway.security.limits import KeyLimits, capacity, take
from cluster.gateway.security.routes import ANY, OPEN, scopes_of

WHEN = "2026-11-22T10:00:00+00:00"


def test_a_key_is_found_by_itself_alone() -> None:
    made = [keys.create(name, [Scope.infer], WHEN) for name in ("ann", "ben")]
    records = [record for _, record in made]
    for key, record in made:
        assert keys.find(records, key) is record
        assert key.split("_", 2)[2] not in json.dumps(dataclasses.asdict(record))


@given(st.text())
def test_no_text_is_a_key_by_chance(presented: str) -> None:
    _, record = keys.create("ann", [Scope.infer], WHEN)
    with pytest.raises(Unauthenticated):
        keys.find([record], presented)


def test_a_right_id_with_a_wrong_secret_and_a_revoked_key_read_alike() -> None:
    key, record = keys.create("ann", [Scope.infer], WHEN)
    other, _ = keys.create("ben", [Scope.infer], WHEN)
    forged = "_".join([*key.split("_", 2)[:2], other.split("_", 2)[2]])
    revoked = dataclasses.replace(record, revoked=WHEN)
    messages = set()
    for known, presented in (([record], forged), ([revoked], key), ([], key)):
        with pytest.raises(Unauthenticated) as caught:
            keys.find(known, presented)
        messages.add(str(caught.value))
    assert len(messages) == 1


def test_a_file_of_keys_is_its_owners_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "keys.json"
    _, record = keys.create("ann", [Scope.infer, Scope.admin], WHEN, 60, 2)
    keys.write(path, [record])
    assert keys.read(path) == (record,)
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"version": 2, "keys": []}', '{"version": 1, "keys": [1]}']
)
def test_a_broken_file_of_keys_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"keys\.json"):
        keys.read(path)


def test_a_guard_follows_its_file(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key, record = keys.create("ann", [Scope.infer], WHEN, 60, 2)
    keys.write(path, [])
    guard = Guard(path)
    header = f"Bearer {key}"
    with pytest.raises(Unauthenticated):
        guard.authorise(header, ANY)
    keys.write(path, [record])
    assert guard.authorise(header, ANY) == Caller(record.id, 60, 2)
    path.write_text("{")  # caught in the middle of somebody's edit
    assert guard.authorise(header, ANY).id == record.id
    with pytest.raises(Forbidden, match="observe"):
        guard.authorise(header, (Scope.observe,))
    keys.write(path, [dataclasses.replace(record, revoked=WHEN)])
    with pytest.raises(Unauthenticated):
        guard.authorise(header, ANY)
    for wrong in (None, "", "Basic eDp5", key, "Bearer"):
        with pytest.raises(Unauthenticated):
            guard.authorise(wrong, ANY)


@given(
    per_minute=st.integers(1, 10_000),
    gaps=st.lists(st.floats(0, 30, allow_nan=False), min_size=1, max_size=60),
)
def test_a_bucket_gives_no_more_than_its_rate_and_one_burst(per_minute: int, gaps: list[float]) -> None:
    bucket, now, passed = None, 0.0, 0
    for gap in gaps:
        now += gap
        bucket, wait_s = take(bucket, per_minute, now)
        passed += wait_s == 0.0
    assert passed <= capacity(per_minute) + now * per_minute / 60 + 1e-6


@given(per_minute=st.integers(1, 10_000))
def test_the_wait_that_a_bucket_names_is_enough(per_minute: int) -> None:
    bucket, wait_s, now = None, 0.0, 0.0
    while wait_s == 0.0:
        bucket, wait_s = take(bucket, per_minute, now)
    _, after = take(bucket, per_minute, now + wait_s + 1e-9)
    assert after == 0.0


def test_limits_are_each_keys_own() -> None:
    now = [0.0]
    limits = KeyLimits(lambda: now[0])
    ann, ben, free = Caller("a", concurrent=2), Caller("b", requests_per_minute=6), Caller("c")
    for who in (ann, ann, ben, *[free] * 50):
        limits.enter(who)
    with pytest.raises(RateLimited, match="2 requests at once"):
        limits.enter(ann)
    limits.leave(ann)
    limits.enter(ann)
    with pytest.raises(RateLimited) as caught:
        limits.enter(ben)
    assert caught.value.retry_after_s == pytest.approx(10.0)
    now[0] = 10.0
    limits.enter(ben)


@pytest.mark.parametrize(
    ("path", "scopes"),
    [
        ("/moemesh.v1.Generation/Generate", (Scope.infer,)),
        ("/inference.GRPCInferenceService/ModelInfer", (Scope.infer,)),
        ("/inference.GRPCInferenceService/ModelStreamInfer", (Scope.infer,)),
        ("/inference.GRPCInferenceService/ServerReady", ANY),
        ("/v1/chat/completions", (Scope.infer,)),
        ("/v1/models", ANY),
        ("/metrics", (Scope.observe,)),
        ("/metrics/experts", (Scope.observe,)),
        ("/moemesh.v1.Admin/Drain", (Scope.admin,)),
        ("/anything/else", (Scope.admin,)),
        ("/health", OPEN),
        ("/grpc.health.v1.Health/Watch", OPEN),
    ],
)
def test_the_scope_of_a_path(path: str, scopes: tuple[Scope, ...]) -> None:
    assert scopes_of(path, guard_health=False) == scopes


def test_health_is_guarded_when_asked() -> None:
    assert scopes_of("/ready", guard_health=True) == ANY
    assert scopes_of("/grpc.health.v1.Health/Check", guard_health=True) == ANY


def test_written_keys_leave_no_draft(tmp_path: Path) -> None:
    keys.write(tmp_path / "keys.json", [])
    assert os.listdir(tmp_path) == ["keys.json"]
