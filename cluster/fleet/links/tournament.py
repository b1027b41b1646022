"""Which pairs have their turn together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def rounds(players: Sequence[T]) -> list[list[tuple[T, T]]]:
    """Every pair once, nobody twice in a round: n − 1 rounds of n / 2 pairs for an even number of players, n
    rounds for an odd one. The circle method: all but the first move on by one seat a round, and who sits
    opposite the empty seat of an odd number pauses."""
    seats: list[T | None] = [*players, *([None] if len(players) % 2 else [])]
    found = []
    for _ in range(len(seats) - 1):
        half = len(seats) // 2
        opposite = zip(seats[:half], reversed(seats[half:]), strict=True)
        found.append([(one, other) for one, other in opposite if one is not None and other is not None])
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return found
