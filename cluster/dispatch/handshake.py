"""Who a process is, and with whom it works: protocol, numerics and library must fit."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.config import WireSecurity
from cluster.dispatch.frames import PROTOCOL, spoken
from cluster.errors import ConfigError, MoemeshError, ProtocolError, error_from_wire
from cluster.types import NUMERICS_VERSION

KEY_VARIABLE = "MOEMESH_CLUSTER_KEY_FILE"
SECURITY_VARIABLE = "MOEMESH_WIRE_SECURITY"


@functools.cache
def cluster_key() -> bytes:
    """Of the cluster that this process belongs to, from the file that the environment names; b"" for none."""
    path = os.environ.get(KEY_VARIABLE)
    return Path(path).read_bytes() if path else b""


@functools.cache
def wire_security() -> WireSecurity:
    """Of the cluster that this process belongs to, as the environment says. Raises ConfigError."""
    value = os.environ.get(SECURITY_VARIABLE, WireSecurity.auto)
    try:
        return WireSecurity(value)
    except ValueError:
        raise ConfigError(
            f"{SECURITY_VARIABLE} is {value!r}; set it to {' or '.join(WireSecurity)}"
        ) from None


_WORDS, _NUMBERS = ("role", "id", "library"), ("incarnation", "numerics", "protocol")


@dataclass(frozen=True)
class Identity:
    """Who a process is.

    library: digest of the manifest it serves, "" for a process that serves any (controller, tools).
    incarnation: 0 ≤ incarnation < 2**32, another one after every restart of the process.
    key: the cluster's, b"" where none is asked for; never said (cluster/dispatch/greeting.py).
    security: which of its links it wants sealed.
    """

    role: str
    id: str
    incarnation: int = 0
    library: str = ""
    numerics: int = NUMERICS_VERSION
    protocol: int = PROTOCOL
    key: bytes = field(default_factory=cluster_key, repr=False, compare=False)
    security: WireSecurity = field(default_factory=wire_security, repr=False, compare=False)

    def to_header(self) -> dict[str, Any]:
        return {
            "protocol": self.protocol,
            "numerics": self.numerics,
            "library": self.library,
            "role": self.role,
            "id": self.id,
            "incarnation": self.incarnation,
        }

    @staticmethod
    def from_header(header: Any) -> Identity:
        """Raises ProtocolError on anything that is not the header of a HELLO or WELCOME."""
        try:
            given = {name: header[name] for name in (*_WORDS, *_NUMBERS)}
        except (KeyError, TypeError) as error:
            raise ProtocolError(f"a peer introduced itself with a broken header: {error!r}") from error
        words = all(type(given[name]) is str for name in _WORDS)
        if not words or not all(type(given[name]) is int and 0 <= given[name] < 2**32 for name in _NUMBERS):
            raise ProtocolError("a peer introduced itself with a broken header")
        return Identity(**given)

    def check(self, peer: Identity) -> int:
        """The protocol to speak with it. Raises ProtocolError, naming what differs, if the two must not work
        together."""
        protocol = spoken(self.protocol, peer.protocol)
        if protocol is None:
            raise ProtocolError(
                f"{peer.role} {peer.id} speaks protocol {peer.protocol}, {self.role} {self.id} speaks "
                f"{self.protocol}; upgrade the older one, one protocol at a time"
            )
        if peer.numerics != self.numerics:
            raise ProtocolError(
                f"{peer.role} {peer.id} computes by numerics {peer.numerics}, {self.role} {self.id} by "
                f"{self.numerics}; their bits would differ: upgrade the older one"
            )
        if peer.library and self.library and peer.library != self.library:
            raise ProtocolError(
                f"{peer.role} {peer.id} serves library {peer.library[:12]}, {self.role} {self.id} serves "
                f"{self.library[:12]}; start both with the same model"
            )
        return protocol


def error_header(error: Exception) -> dict[str, Any]:
    """Header of a REFUSED or ERROR frame: the error's class name and its message."""
    if isinstance(error, MoemeshError):
        return {"error": type(error).__name__, "message": str(error)}
    return {"error": "MoemeshError", "message": f"internal error: {error!r}"}


def error_of(header: Any) -> MoemeshError:
    """Inverse of `error_header`."""
    if not isinstance(header, dict):
        return ProtocolError("a peer refused with a broken header")
    return error_from_wire(str(header.get("error", "")), str(header.get("message", "")))


def split_address(address: str) -> tuple[str, int]:
    """ "host:port" as a pair. Raises ProtocolError on anything else."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ProtocolError(f"{address!r} is not an address; give HOST:PORT")
    return host.strip("[]"), int(port)
