"""A request between its submission and its release: the sequences it asked for, and where they are."""

from __future__ import annotations

import dataclasses

from cluster.errors import MoemeshError
from cluster.gateway.caller import Caller
from cluster.gateway.mailbox import Bell, Mailbox
from cluster.gateway.meter import FAILED
from cluster.gateway.routers import RouterLink
from cluster.gateway.spans import RequestSpan
from cluster.types import EngineRequest, FinishReason, RequestId

ENDED = -1
"""In place of a number, of a sequence that had ended before its request was let in."""


@dataclasses.dataclass(slots=True, eq=False)
class Ticket:
    """A submitted request: read its mailboxes, then give the ticket to `RouterPool.release`.

    mailboxes: one a sequence; all share one bell. owner: whose key it came with; nobody else can abort it or
    take its place. link, numbers: where its sequences are while they are let in. window_s: for how
    long it goes on without a reader. charged: its key's limits have counted it as a part of something larger.
    """

    owner: Caller
    requests: tuple[EngineRequest, ...]
    mailboxes: tuple[Mailbox, ...]
    link: RouterLink | None = None
    numbers: tuple[int, ...] = ()
    window_s: float = 0.0
    span: RequestSpan | None = None
    charged: bool = False

    @property
    def request_id(self) -> RequestId:
        return self.requests[0].request_id

    @property
    def prompt_tokens(self) -> int:
        return len(self.requests[0].prompt_ids)

    @property
    def bell(self) -> Bell:
        return self.mailboxes[0].bell

    @property
    def failed(self) -> bool:
        return any(mailbox.reason == FAILED for mailbox in self.mailboxes)

    @property
    def ended(self) -> bool:
        return all(mailbox.ended for mailbox in self.mailboxes)

    def held_at(self, link: RouterLink) -> int:
        """Its sequences that a router still has."""
        return sum(number in link.outstanding for number in self.numbers) if link is self.link else 0

    def same_as(self, requests: tuple[EngineRequest, ...]) -> bool:
        """Whether they ask for the same tokens. The seed of a greedy request plays no part, nor does a trace,
        nor which tokens their readers have."""
        return tuple(map(_unseeded, self.requests)) == tuple(map(_unseeded, requests))

    def hand_over(self) -> None:
        """To a new reader, who gets everything from the first token; the one before finds another bell."""
        before, bell = self.bell, Bell()
        for mailbox in self.mailboxes:
            mailbox.rewind(bell, self.prompt_tokens)
        before.ring()

    def let_in(self, link: RouterLink) -> None:
        """A router gets what has not ended: from the beginning, or behind the tokens that have come."""
        self.link = link
        if self.span is not None:
            self.span.let_in(link.name)
        for mailbox in self.mailboxes:
            mailbox.let_in()
        pairs = zip(self.requests, self.mailboxes, strict=True)
        self.numbers = tuple(
            ENDED if mailbox.ended else link.submit(dataclasses.replace(each, emitted=mailbox.ids), mailbox)
            for each, mailbox in pairs
        )

    def leave_router(self) -> None:
        """It was lost, or has refused a sequence: those that it took are aborted there."""
        if self.link is not None:
            for number in self.numbers:
                self.link.release(number)
        self.link, self.numbers = None, ()
        if self.span is not None:
            self.span.leave_router()

    def fail(self, error: MoemeshError) -> None:
        """All that has not ended."""
        for mailbox in self.mailboxes:
            mailbox.fail(error)

    def drop(self, place: int, reason: FinishReason | None = None) -> None:
        """One sequence has given all that is wanted of it: free it at its router. Twice is fine.

        reason: why it ended, if its reader knows better than the router.
        """
        if self.link is not None:
            self.link.release(self.numbers[place])
        self.mailboxes[place].close(reason)


def _unseeded(request: EngineRequest) -> EngineRequest:
    request = dataclasses.replace(request, trace="", emitted=())
    if request.sampling.temperature > 0:
        return request
    return dataclasses.replace(request, sampling=dataclasses.replace(request.sampling, seed=0))
