"""When a client that was left by a gateway calls again, and when it gives up: docs/clients.md has it for
clients of others. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

AGAIN = "UNAVAILABLE"
"""The code after which another gateway may do what this one did not."""

ELSEWHERE = frozenset({"ABORTED", "NOT_FOUND"})
"""Codes of a gateway that serves another model, while the fleet changes from one to another: each of the
others is asked once."""

NEXT = ELSEWHERE | {AGAIN}
"""All codes after which the next gateway is asked."""


@dataclass(frozen=True)
class Policy:
    """first_s: pause before the second call, doubled with every one up to most_s. give_up_s: of errors, since
    the last token."""

    first_s: float = 0.1
    most_s: float = 1.0
    give_up_s: float = 60.0


POLICY = Policy()


@dataclass(frozen=True)
class Patience:
    """Of one request. since: when its last token came, or when it was first asked for. pause_s: before the
    next call."""

    policy: Policy
    since: float
    pause_s: float

    @classmethod
    def new(cls, now: float, policy: Policy = POLICY) -> Patience:
        return cls(policy, now, policy.first_s)

    def tired(self, now: float) -> bool:
        """Whether it is time to give up."""
        return now - self.since > self.policy.give_up_s

    def longer(self) -> Patience:
        """After another error."""
        return replace(self, pause_s=min(2 * self.pause_s, self.policy.most_s))
