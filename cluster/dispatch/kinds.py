"""What a frame can be. The numbers are the wire: never reuse one."""

from __future__ import annotations

from enum import IntEnum


class Kind(IntEnum):
    """Kinds below 16 are of the link itself, the same in every protocol. Those below 32 belong to the data
    plane: each is matched by its own header, so that a small one may overtake a large one. Kinds from 32 on
    keep the order in which they were sent."""

    HELLO = 1
    WELCOME = 2
    REFUSED = 3
    PING = 4
    PONG = 5
    CHALLENGE = 6
    PROOF = 7

    DISPATCH = 16
    RESULT = 17
    NOT_HERE = 18
    FAULT = 19

    SUBMIT = 32
    ABORT = 33
    EVENTS = 34

    SYNC = 48
    STATE = 49
    STATUS = 50
    SHUTDOWN = 51
    REBALANCE = 52
    TRACE = 53
    DRAIN = 54
    TIERS = 55

    REPLY = 64
    ERROR = 65

    BLOB = 80


FIRST_SPOKEN = 16
FIRST_ORDERED = 32
