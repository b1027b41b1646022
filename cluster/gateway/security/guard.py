"""Whether a caller may do what it asks for."""

from __future__ import annotations

from pathlib import Path

from cluster.errors import Forbidden, Unauthenticated
from cluster.gateway.caller import Caller
from cluster.gateway.security import keys
from cluster.gateway.security.keys import Scope
from cluster.gateway.security.watched import Watched

BEARER = "bearer "
ANY: tuple[Scope, ...] = tuple(Scope)


class Guard:
    """Knows the keys of a file, also those that are written or revoked while it runs."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError."""
        self._keys = Watched([path], lambda: keys.read(path))

    def authorise(self, authorization: str | None, scopes: tuple[Scope, ...]) -> Caller:
        """authorization: the header; scopes: one of them is needed. Raises Unauthenticated, Forbidden."""
        if authorization is None or not authorization.lower().startswith(BEARER):
            raise Unauthenticated("an API key is needed; send it as `authorization: Bearer mm_…`")
        key = keys.find(self._keys.current(), authorization[len(BEARER) :].strip())
        if not set(scopes) & set(key.scopes):
            raise Forbidden(
                f"key {key.id} lacks the scope {' or '.join(scopes)}; it has {', '.join(key.scopes)}"
            )
        return Caller(key.id, key.requests_per_minute, key.concurrent)
