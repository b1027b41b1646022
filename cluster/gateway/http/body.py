"""A request's JSON: read within a limit, its keys taken one by one with their types."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from cluster.errors import InvalidRequest, RequestAborted, TooLarge

T = TypeVar("T")

MISSING = object()


async def read_object(request: Request, most_bytes: int) -> Fields:
    """Raises TooLarge, InvalidRequest for anything but a JSON object, RequestAborted if the client left."""
    data = bytearray()
    try:
        async for chunk in request.stream():
            data += chunk
            if len(data) > most_bytes:
                raise TooLarge(f"the request has more than {most_bytes} bytes; send less at once")
    except ClientDisconnect:
        raise RequestAborted("the client left before its request had come") from None
    try:
        value = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object")
    return Fields(value)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


class Fields:
    """Keys of one object. Each is taken once; `finish` refuses what nobody took. null counts as absent."""

    def __init__(self, values: dict[str, Any], path: str = "") -> None:
        self._values = {name: value for name, value in values.items() if value is not None}
        self._path = path

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def take(self, name: str, read: Callable[[str, Any], T]) -> T | None:
        """`read(name, value)` of a key that is there, else None. Raises what it raises."""
        value = self._values.pop(name, MISSING)
        return None if value is MISSING else read(self._path + name, value)

    def require(self, name: str, read: Callable[[str, Any], T]) -> T:
        value = self.take(name, read)
        if value is None:
            raise InvalidRequest(f"{self._path}{name} is missing")
        return value

    def ignore(self, *names: str) -> None:
        """Keys that change nothing in the answer."""
        for name in names:
            self._values.pop(name, None)

    def finish(self) -> None:
        if self._values:
            raise InvalidRequest(f"{self._path}{min(self._values)} is not a key that is understood here")


def string(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} must be a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{name} has half of a surrogate pair, which is no character") from None
    return value


def flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name} must be true or false")
    return value


def integer(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequest(f"{name} must be an integer")
    return value


def number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequest(f"{name} must be a number")
    try:
        return float(value)
    except OverflowError:
        raise InvalidRequest(f"{name} is out of range") from None


def listed(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidRequest(f"{name} must be a list")
    return value


def nested(name: str, value: Any) -> Fields:
    if not isinstance(value, dict):
        raise InvalidRequest(f"{name} must be an object")
    return Fields(value, f"{name}.")


def integers(name: str, value: Any) -> tuple[int, ...]:
    return tuple(integer(f"an element of {name}", item) for item in listed(name, value))


def strings(name: str, value: Any) -> tuple[str, ...]:
    """One string, or a list of them."""
    if isinstance(value, str):
        return (string(name, value),)
    return tuple(string(f"an element of {name}", item) for item in listed(name, value))
