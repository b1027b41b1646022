"""`fleet upgrade --model`, from any machine that reaches the hosts by ssh: the fleet changes to another
model, or to another variant of it, one device after the other, under load.

    hosts looked at ─► new controller and nodes ─► new routers ─► gateways, one by one ─► the old ones end

The new roles are a second generation beside the old one (generations.py). What is done on a host it does
itself (turn.py). What goes wrong before the last gateway has changed over is taken back by the same steps
towards the old one, gateways first; a second run goes on where one was cut.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.errors import AlreadyUp, IncompleteLibrary, MoemeshError, ProtocolError
from cluster.fleet.file import FleetFile, Host
from cluster.fleet.generations import Generation, Generations, Turn, heard, turn_to
from cluster.fleet.machine import Progress, Quiet
from cluster.fleet.muster import Muster, call
from cluster.fleet.shell import Shell
from cluster.fleet.signals import Signals
from cluster.fleet.upgrade import everybody
from cluster.fleet.versions import in_order

Part = tuple[str, Sequence[Host]]
"""A step of turn.py, and on which hosts, one after the other."""


def change(fleet: FleetFile, text: str, progress: Progress, signals: Signals) -> dict[str, Any]:
    """Have the fleet serve what the file names: {"model", "variant", "changed": whether it did not}.

    text: the fleet file. Raises what a host reported, HostFailed; what the error says serves on.
    """
    muster = Muster(fleet, progress, signals)
    everybody(muster, fleet, text)
    now, asked = heard(muster.on(fleet.head, lambda shell: call(shell, Quiet(), "generations")))
    if isinstance(asked, MoemeshError):
        raise asked
    turn = turn_to(asked, now)
    answer = {"model": asked.name, "variant": asked.variant, "changed": turn is not None}
    if turn is not None:
        _Change(fleet, muster, progress).run(turn, now)
    return answer


def parts(fleet: FleetFile, back: bool = False) -> tuple[Part, ...]:
    """The whole order. The old roles end at the head last, to whose controller the others say goodbye. back:
    as in Turn; gateways leave the roles that shall end before any of these does."""
    hosts, head = in_order(fleet), [fleet.head]
    computing: tuple[Part, ...] = (
        ("nodes", [host for host in hosts if host.head or host.memory_bytes]),
        ("routers", [host for host in hosts if host.routers]),
    )
    gateways: tuple[Part, ...] = (("gateways", [host for host in hosts if host.gateways]),)
    return (
        *(gateways + computing if back else computing + gateways),
        ("commit", head),
        ("strays", head),
        ("end", [*hosts[1:], *head]),
        ("finish", head),
    )


def check_looked(fleet: FleetFile, to: Generation, looked: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises ProtocolError for hosts with different libraries, IncompleteLibrary if none has all experts."""
    for name, one in looked.items():
        if one["digest"] != to.digest:
            raise ProtocolError(
                f"host {name} has another library at {to.model or 'the bundled model'} than the head "
                f"({one['digest'][:12]}, not {to.digest[:12]}); put the same one there. Nothing was started"
            )
    if all(one["missing"] for one in looked.values()):
        most = min((int(one["missing"]), name) for name, one in looked.items())
        raise IncompleteLibrary(
            f"no host has every expert of {to.told}: {most[1]} lacks {most[0]} blobs, the others as many or "
            "more; put the whole library on one host, as the head. Nothing was started"
        )


class _Change:
    def __init__(self, fleet: FleetFile, muster: Muster, progress: Progress) -> None:
        self._fleet, self._muster, self._progress = fleet, muster, progress
        self._committed = False

    def run(self, turn: Turn, now: Generations) -> None:
        if now.other is None:
            self._look(turn)
            self._on(self._fleet.head, "begin", turn)
        self._progress.done(self._muster.watch.timed(f"from {turn.of.told} to {turn.to.told}"))
        try:
            self._carry_out(turn)
        except AlreadyUp as error:  # a step of a run that was cut: nothing is to be taken back beside it
            raise AlreadyUp(f"{error}, and call it again then: it goes on where it is") from None
        except MoemeshError as error:
            raise type(error)(f"{error}. {self._after(turn)}") from None

    def _look(self, turn: Turn) -> None:
        def look(shell: Shell) -> Any:
            return self._call(shell, Quiet(), "look", turn)

        check_looked(self._fleet, turn.to, self._muster.everywhere("looking at", self._fleet.hosts, look))

    def _carry_out(self, turn: Turn) -> None:
        for step, hosts in parts(self._fleet, turn.back):
            for host in hosts:
                self._on(host, step, turn)
            self._committed = self._committed or step == "commit"
            self._progress.done(self._muster.watch.timed(f"{step}: {', '.join(host.name for host in hosts)}"))

    def _after(self, turn: Turn) -> str:
        """What serves after an error, with what this run has started ended again as far as it can be."""
        if self._committed:
            return f"The fleet serves {turn.to.told}; call it again to have the rest of {turn.of.told} ended"
        if turn.back:
            return f"Call it again: {turn.of.told} has not ended everywhere"
        failed = self._take_back(turn.reverse)
        old, new = turn.of.told, turn.to.told
        if not failed:
            return f"The fleet serves {old} as before; what was started of {new} has been ended"
        step, error = failed[0]
        both = f"The fleet serves {old}, but not all of {new} could be ended"
        if step == "gateways":
            both = f"Not every gateway serves {old} again, so that both models stay"
        return (
            f"{both} ({error}); mend that, name {old} in the fleet file again, and call "
            "`moemesh fleet upgrade --model`"
        )

    def _take_back(self, turn: Turn) -> list[tuple[str, MoemeshError]]:
        """What has failed, and in which step. After that step nothing is started any more, and what is not
        needed ends all the same; a gateway that has not changed may need everything."""
        self._progress.done(self._muster.watch.timed(f"taken back: to {turn.to.told}"))
        failed: list[tuple[str, MoemeshError]] = []
        for step, hosts in parts(self._fleet, turn.back):
            if failed and (failed[0][0] == "gateways" or step not in ("strays", "end")):
                continue
            for host in hosts:
                try:
                    self._on(host, step, turn)
                except MoemeshError as error:
                    failed.append((step, error))
        return failed

    def _on(self, host: Host, step: str, turn: Turn) -> Any:
        return self._muster.on(host, lambda shell: self._call(shell, self._progress, step, turn))

    def _call(self, shell: Shell, progress: Progress, step: str, turn: Turn) -> Any:
        return call(shell, progress, "turn", "--step", step, "--between", json.dumps(turn.to_wire()))
